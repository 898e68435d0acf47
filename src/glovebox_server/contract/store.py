"""What must outlive the process: sandboxes and API keys. Every write is durable against SIGKILL when it returns."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Protocol

from glovebox_server.model import ids, lifecycle, sandbox


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """An API key, as it is kept: only its hash."""

    key_id: ids.KeyId
    tenant: ids.TenantId
    name: str
    prefix: str  # the first characters, for people to tell keys apart
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    max_sandboxes: int | None  # at once; None: the server's default
    admin: bool = False  # may manage keys, and sees every tenant's sandboxes


@dataclasses.dataclass(frozen=True)
class Page:
    """Which sandboxes to list: newest first (or oldest), after a place in that order."""

    limit: int
    descending: bool = True
    after: tuple[dt.datetime, str] | None = None  # started_at and id of the last one seen


class Store(Protocol):
    """Kept state. One writer: the manager."""

    async def put_sandbox(self, sandbox: sandbox.Sandbox) -> None:
        """Write it, new or changed."""

    async def get_sandbox(self, sandbox_id: ids.SandboxId) -> sandbox.Sandbox | None: ...

    async def list_sandboxes(
        self,
        *,
        tenant: ids.TenantId | None = None,
        states: Sequence[lifecycle.State] | None = None,
        started_after: dt.datetime | None = None,
        template_id: str | None = None,
        metadata: dict[str, str] | None = None,
        page: Page | None = None,
    ) -> Sequence[sandbox.Sandbox]:
        """Those that match all that is given; `started_after` is inclusive."""

    async def find_created(
        self, tenant: ids.TenantId, idempotency_key: str, started_after: dt.datetime
    ) -> sandbox.Sandbox | None:
        """The newest sandbox that the tenant created with this key since then (inclusive), whatever became of it."""

    async def forget_sandboxes(self, ended_before: dt.datetime) -> int:
        """Drop the records of killed sandboxes that were to end before then."""

    async def put_key(self, key: ApiKey, secret_hash: str) -> None: ...

    async def find_key(self, secret_hash: str) -> ApiKey | None: ...

    async def list_keys(self) -> Sequence[ApiKey]: ...

    async def revoke_key(self, key_id: ids.KeyId, at: dt.datetime) -> bool:
        """False when there is no such key."""

    async def close(self) -> None: ...
