"""The store on SQLite: one file, one connection, one thread, so that the event loop never waits for a disk.

WAL with synchronous=NORMAL: a commit is in the kernel's hands when it returns, so it survives the death of the
process; only a crash of the machine may take the last commits (and then it takes the sandboxes too).
"""

import asyncio
import concurrent.futures
import datetime as dt
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import pool
from sqlalchemy.dialects import sqlite

from glovebox_server.contract import store
from glovebox_server.model import ids, lifecycle, sandbox
from glovebox_server.store import schema, tables

T = TypeVar("T")

_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000")


def _upsert() -> sqlite.Insert:
    insert = sqlite.insert(tables.SANDBOXES)
    changed = {column.name: insert.excluded[column.name] for column in tables.SANDBOXES.c if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=["sandbox_id"], set_=changed)


# Built once: SQLAlchemy then finds their compiled form without walking them again.
_PUT_SANDBOX = _upsert()
_GET_SANDBOX = sa.select(tables.SANDBOXES).where(tables.SANDBOXES.c.sandbox_id == sa.bindparam("id"))
_FIND_KEY = sa.select(tables.API_KEYS).where(tables.API_KEYS.c.secret_hash == sa.bindparam("hash"))
_FIND_CREATED = (
    sa.select(tables.SANDBOXES)
    .where(
        tables.SANDBOXES.c.tenant == sa.bindparam("tenant"),
        tables.SANDBOXES.c.idempotency_key == sa.bindparam("key"),
        tables.SANDBOXES.c.started_at >= sa.bindparam("since"),
    )
    .order_by(tables.SANDBOXES.c.started_at.desc())
    .limit(1)
)


class SqliteStore:
    """Implements contract.store.Store. `open` before use; the folder must exist."""

    def __init__(self, path: pathlib.Path | None) -> None:
        """`path` None: in memory, gone with the object."""
        self._path = path
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sa.Connection | None = None

    async def open(self) -> None:
        """Open the file, make it if need be, and bring its tables up to date."""
        try:
            await self._run(self._open)
        except BaseException:
            await self.close()
            raise

    async def put_sandbox(self, sandbox: sandbox.Sandbox) -> None:
        row = tables.sandbox_row(sandbox)
        await self._write(lambda connection: connection.execute(_PUT_SANDBOX, row))

    async def get_sandbox(self, sandbox_id: ids.SandboxId) -> sandbox.Sandbox | None:
        rows = await self._read(_GET_SANDBOX, {"id": sandbox_id})
        return tables.sandbox_of(rows[0]) if rows else None

    async def list_sandboxes(
        self,
        *,
        tenant: ids.TenantId | None = None,
        states: Sequence[lifecycle.State] | None = None,
        started_after: dt.datetime | None = None,
        template_id: str | None = None,
        metadata: dict[str, str] | None = None,
        page: store.Page | None = None,
    ) -> Sequence[sandbox.Sandbox]:
        columns = tables.SANDBOXES.c
        query = sa.select(tables.SANDBOXES)
        if tenant is not None:
            query = query.where(columns.tenant == tenant)
        if states is not None:
            query = query.where(columns.state.in_([state.value for state in states]))
        if started_after is not None:
            query = query.where(columns.started_at >= tables.microseconds(started_after))
        if template_id is not None:
            query = query.where(columns.template_id == template_id)
        for name, value in (metadata or {}).items():
            query = query.where(_has_pair(name, value))
        return [tables.sandbox_of(row) for row in await self._read(_paged(query, page), {})]

    async def find_created(
        self, tenant: ids.TenantId, idempotency_key: str, started_after: dt.datetime
    ) -> sandbox.Sandbox | None:
        since = tables.microseconds(started_after)
        rows = await self._read(_FIND_CREATED, {"tenant": tenant, "key": idempotency_key, "since": since})
        return tables.sandbox_of(rows[0]) if rows else None

    async def forget_sandboxes(self, ended_before: dt.datetime) -> int:
        columns = tables.SANDBOXES.c
        old = (columns.state == lifecycle.State.KILLED.value) & (columns.end_at < tables.microseconds(ended_before))
        return await self._write(lambda connection: connection.execute(sa.delete(tables.SANDBOXES).where(old)).rowcount)

    async def put_key(self, key: store.ApiKey, secret_hash: str) -> None:
        row = tables.key_row(key, secret_hash)
        await self._write(lambda connection: connection.execute(sa.insert(tables.API_KEYS), row))

    async def find_key(self, secret_hash: str) -> store.ApiKey | None:
        rows = await self._read(_FIND_KEY, {"hash": secret_hash})
        return tables.key_of(rows[0]) if rows else None

    async def list_keys(self) -> Sequence[store.ApiKey]:
        columns = tables.API_KEYS.c
        rows = await self._read(sa.select(tables.API_KEYS).order_by(columns.created_at, columns.key_id), {})
        return [tables.key_of(row) for row in rows]

    async def revoke_key(self, key_id: ids.KeyId, at: dt.datetime) -> bool:
        columns = tables.API_KEYS.c
        # The first revocation is the one that is remembered.
        revoked_at = sa.func.coalesce(columns.revoked_at, tables.microseconds(at))
        change = sa.update(tables.API_KEYS).where(columns.key_id == key_id).values(revoked_at=revoked_at)
        return await self._write(lambda connection: connection.execute(change).rowcount > 0)

    async def close(self) -> None:
        if self._connection is not None:
            await self._run(self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        def transaction() -> T:
            assert self._connection is not None
            with self._connection.begin():
                return work(self._connection)

        return await self._run(transaction)

    async def _read(self, query: sa.Select[Any], parameters: dict[str, Any]) -> Sequence[sa.RowMapping]:
        return await self._write(lambda connection: connection.execute(query, parameters).mappings().all())

    def _open(self) -> None:
        if self._path is not None:
            # SQLite gives its -wal and -shm files the mode of the database: for the owner only, for it holds access
            # tokens and environments in clear.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
        url = sa.URL.create("sqlite", database=str(self._path) if self._path else ":memory:")
        engine = sa.create_engine(url, poolclass=pool.StaticPool, connect_args={"check_same_thread": False})
        self._connection = engine.connect()
        for pragma in _PRAGMAS:
            self._connection.exec_driver_sql(f"PRAGMA {pragma}")
        self._connection.commit()
        schema.upgrade(self._connection)
        self._connection.commit()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection.engine.dispose()
            self._connection = None


def _has_pair(name: str, value: str) -> sa.ColumnElement[bool]:
    pairs = sa.func.json_each(tables.SANDBOXES.c["metadata"]).table_valued("key", "value")
    return sa.exists(sa.select(1).select_from(pairs).where(pairs.c.key == name, pairs.c.value == value))


def _paged(query: sa.Select[Any], page: store.Page | None) -> sa.Select[Any]:
    started, box_id = tables.SANDBOXES.c.started_at, tables.SANDBOXES.c.sandbox_id
    descending = page is None or page.descending
    if page is not None and page.after is not None:
        place = tables.microseconds(page.after[0])
        beyond = started < place if descending else started > place
        query = query.where(beyond | ((started == place) & (box_id > page.after[1])))
    query = query.order_by(started.desc() if descending else started.asc(), box_id.asc())
    return query if page is None else query.limit(page.limit)
