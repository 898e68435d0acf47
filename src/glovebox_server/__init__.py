"""The server: everything that runs on the host."""
