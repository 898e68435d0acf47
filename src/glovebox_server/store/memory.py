"""The store in memory: for tests, and the plainest statement of what a store must do."""

import dataclasses
import datetime as dt
from collections.abc import Sequence

from glovebox_server.contract import store
from glovebox_server.model import ids, lifecycle, sandbox


class MemoryStore:
    """Implements contract.store.Store in two dictionaries."""

    def __init__(self) -> None:
        self._sandboxes: dict[ids.SandboxId, sandbox.Sandbox] = {}
        self._keys: dict[str, store.ApiKey] = {}  # by the secret's hash

    async def put_sandbox(self, sandbox: sandbox.Sandbox) -> None:
        self._sandboxes[sandbox.sandbox_id] = sandbox

    async def get_sandbox(self, sandbox_id: ids.SandboxId) -> sandbox.Sandbox | None:
        return self._sandboxes.get(sandbox_id)

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
        found = [
            box
            for box in self._sandboxes.values()
            if (tenant is None or box.tenant == tenant)
            and (states is None or box.state in states)
            and (started_after is None or box.started_at >= started_after)
            and (template_id is None or box.template_id == template_id)
            and all(box.metadata.get(name) == value for name, value in (metadata or {}).items())
        ]
        descending = page is None or page.descending
        found.sort(key=lambda box: box.sandbox_id)
        found.sort(key=lambda box: box.started_at, reverse=descending)  # stable: equal times stay in the order of ids
        if page is not None and page.after is not None:
            time, last_id = page.after
            found = [box for box in found if _is_after(box, time, last_id, descending=descending)]
        return found if page is None else found[: page.limit]

    async def find_created(
        self, tenant: ids.TenantId, idempotency_key: str, started_after: dt.datetime
    ) -> sandbox.Sandbox | None:
        found = [
            box
            for box in self._sandboxes.values()
            if (box.tenant, box.idempotency_key) == (tenant, idempotency_key) and box.started_at >= started_after
        ]
        return max(found, key=lambda box: box.started_at, default=None)

    async def forget_sandboxes(self, ended_before: dt.datetime) -> int:
        old = [
            box.sandbox_id
            for box in self._sandboxes.values()
            if box.state is lifecycle.State.KILLED and box.end_at < ended_before
        ]
        for sandbox_id in old:
            del self._sandboxes[sandbox_id]
        return len(old)

    async def put_key(self, key: store.ApiKey, secret_hash: str) -> None:
        self._keys[secret_hash] = key

    async def find_key(self, secret_hash: str) -> store.ApiKey | None:
        return self._keys.get(secret_hash)

    async def list_keys(self) -> Sequence[store.ApiKey]:
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.key_id))

    async def revoke_key(self, key_id: ids.KeyId, at: dt.datetime) -> bool:
        for secret_hash, key in self._keys.items():
            if key.key_id == key_id:
                self._keys[secret_hash] = dataclasses.replace(key, revoked_at=key.revoked_at or at)
                return True
        return False

    async def close(self) -> None:
        pass


def _is_after(box: sandbox.Sandbox, time: dt.datetime, last_id: str, *, descending: bool) -> bool:
    if box.started_at == time:
        return box.sandbox_id > last_id
    return box.started_at < time if descending else box.started_at > time
