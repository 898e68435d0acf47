"""The store's tables, and how sandboxes and API keys are written as rows."""

import dataclasses
import datetime as dt
from typing import Any

import sqlalchemy as sa

from glovebox_server.contract import store
from glovebox_server.model import ids, lifecycle, resources, sandbox

METADATA = sa.MetaData()

# Times are whole microseconds since 1970, UTC: exact, sortable, and the same in every database.
SANDBOXES = sa.Table(
    "sandboxes",
    METADATA,
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
    # In clear, for it is handed out again at every connect: this is why the file is for its owner only.
    sa.Column("access_token", sa.Text, nullable=False),
    sa.Column("auto_pause", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("auto_resume", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("resources", sa.JSON, nullable=False),
    sa.Column("runtime", sa.Text, nullable=False),
    sa.Column("boundary", sa.Text, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("end_reason", sa.Text),
    sa.Column("instance", sa.JSON(none_as_null=True)),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_hash", sa.Text),
    sa.Index("sandboxes_by_state", "state"),
    sa.Index("sandboxes_by_tenant", "tenant", "started_at"),
    sa.Index("sandboxes_by_idempotency_key", "tenant", "idempotency_key"),
)

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
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

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def microseconds(time: dt.datetime) -> int:
    """`time` as the tables keep it."""
    return (time - _EPOCH) // _MICROSECOND


def sandbox_row(box: sandbox.Sandbox) -> dict[str, Any]:
    """All columns of a sandbox."""
    row = {field.name: getattr(box, field.name) for field in dataclasses.fields(box)}
    row |= {
        "state": box.state.value,
        "started_at": microseconds(box.started_at),
        "end_at": microseconds(box.end_at),
        "metadata": dict(box.metadata),
        "env": dict(box.env),
        "resources": vars(box.resources),
        "instance": None if box.instance is None else dict(box.instance),
    }
    return row


def sandbox_of(row: sa.RowMapping) -> sandbox.Sandbox:
    """The sandbox that a row says."""
    values = dict(row)
    values |= {
        "state": lifecycle.State(row["state"]),
        "started_at": _time(row["started_at"]),
        "end_at": _time(row["end_at"]),
        "resources": resources.Resources(**row["resources"]),
    }
    return sandbox.Sandbox(**values)


def key_row(key: store.ApiKey, secret_hash: str) -> dict[str, Any]:
    """All columns of an API key."""
    return {
        **vars(key),
        "secret_hash": secret_hash,
        "created_at": microseconds(key.created_at),
        "expires_at": None if key.expires_at is None else microseconds(key.expires_at),
        "revoked_at": None if key.revoked_at is None else microseconds(key.revoked_at),
    }


def key_of(row: sa.RowMapping) -> store.ApiKey:
    """The API key that a row says."""
    return store.ApiKey(
        key_id=ids.KeyId(row["key_id"]),
        tenant=ids.TenantId(row["tenant"]),
        name=row["name"],
        prefix=row["prefix"],
        created_at=_time(row["created_at"]),
        expires_at=None if row["expires_at"] is None else _time(row["expires_at"]),
        revoked_at=None if row["revoked_at"] is None else _time(row["revoked_at"]),
        max_sandboxes=row["max_sandboxes"],
        admin=row["admin"],
    )


def _time(value: int) -> dt.datetime:
    return _EPOCH + value * _MICROSECOND
