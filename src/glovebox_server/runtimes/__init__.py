"""The rungs of isolation. They are strangers to one another."""
