"""Decides: lifecycle, placement, quotas, timeouts, recovery. No I/O of its own."""
