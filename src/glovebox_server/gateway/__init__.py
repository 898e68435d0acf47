"""HTTP in: authenticates, translates, forwards. Knows no kernel call."""
