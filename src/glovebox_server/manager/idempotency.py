"""Creates that carry an idempotency key: the same request again, within a day, gets the first one's sandbox."""

import asyncio
import dataclasses
import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from glovebox import errors
from glovebox_server.contract import clock, store
from glovebox_server.model import ids, lifecycle, sandbox

_FORM = re.compile(r"[A-Za-z0-9_-]{1,255}")
_VALID_FOR = dt.timedelta(days=1)


def request_hash(*parts: object) -> str:
    """What tells a retry from another request."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Flight:
    request_hash: str
    task: asyncio.Task[sandbox.Sandbox]


class Once:
    """Runs a create once per tenant and key: in flight from memory, afterwards from the store."""

    def __init__(self, store: store.Store, clock: clock.Clock) -> None:
        self._store = store
        self._clock = clock
        self._flights: dict[tuple[ids.TenantId, str], _Flight] = {}

    async def run(
        self,
        tenant: ids.TenantId,
        key: str,
        request_hash: str,
        create: Callable[[], Coroutine[Any, Any, sandbox.Sandbox]],
    ) -> sandbox.Sandbox:
        """The sandbox of the first request with this key. ConflictError when that asked for something else."""
        if not _FORM.fullmatch(key):
            raise errors.InvalidRequestError("the idempotency key must have 1 to 255 letters, digits, '-' or '_'")
        flight = self._flights.get((tenant, key))
        if flight is None:
            # A task of its own: the caller may hang up and ask again, and gets what was being made.
            task = asyncio.create_task(self._find_or_create(tenant, key, request_hash, create))
            flight = self._flights[tenant, key] = _Flight(request_hash, task)
            task.add_done_callback(lambda task: self._landed((tenant, key), task))
        _check_same(flight.request_hash, request_hash)
        return await asyncio.shield(flight.task)

    async def close(self) -> None:
        """Wait for those in flight."""
        await asyncio.gather(*(flight.task for flight in self._flights.values()), return_exceptions=True)

    async def _find_or_create(
        self,
        tenant: ids.TenantId,
        key: str,
        request_hash: str,
        create: Callable[[], Coroutine[Any, Any, sandbox.Sandbox]],
    ) -> sandbox.Sandbox:
        found = await self._store.find_created(tenant, key, self._clock.now() - _VALID_FOR)
        if found is None or (found.state is lifecycle.State.KILLED and found.end_reason == "failed"):
            return await create()
        _check_same(found.request_hash, request_hash)
        return found

    def _landed(self, place: tuple[ids.TenantId, str], task: asyncio.Task[sandbox.Sandbox]) -> None:
        del self._flights[place]
        if not task.cancelled():
            task.exception()  # seen: nobody may be left to wait for it


def _check_same(first: str | None, second: str) -> None:
    if first != second:
        raise errors.ConflictError("the idempotency key was used for a different request")
