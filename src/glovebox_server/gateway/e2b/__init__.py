"""The E2B protocol as a translation onto the manager and the guest."""
