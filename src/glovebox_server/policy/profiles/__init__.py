"""Seccomp profiles in Docker's JSON format."""
