"""Sandboxes and API keys.

Spelled out rather than taken from store/tables.py: a migration says what was, whatever the tables become later.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "sandboxes",
        sa.Column("sandbox_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("alias", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("end_at", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("env", sa.JSON, nullable=False),
        sa.Column("access_token", sa.Text, nullable=False),
        sa.Column("resources", sa.JSON, nullable=False),
        sa.Column("runtime", sa.Text, nullable=False),
        sa.Column("boundary", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("end_reason", sa.Text),
        sa.Column("instance", sa.JSON),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_hash", sa.Text),
    )
    op.create_index("sandboxes_by_state", "sandboxes", ["state"])
    op.create_index("sandboxes_by_tenant", "sandboxes", ["tenant", "started_at"])
    op.create_index("sandboxes_by_idempotency_key", "sandboxes", ["tenant", "idempotency_key"])
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("max_sandboxes", sa.Integer),
        sa.Column("admin", sa.Boolean, nullable=False),
    )
