"""Glovebox at the caller: the `glovebox` command and the errors it shares with the server."""
