"""Decisions about limits, isolation and code. Pure: no I/O."""
