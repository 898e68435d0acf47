"""Whether a sandbox is paused by its timeout, and resumed by traffic."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Sandboxes from before do neither."""
    for name in ("auto_pause", "auto_resume"):
        op.add_column("sandboxes", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
