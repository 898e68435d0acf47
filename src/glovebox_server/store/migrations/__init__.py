"""The steps by which the store's tables came to be; Alembic runs them at start (see store/schema.py)."""
