"""What the manager asks of a node: one machine that makes, holds and ends instances. It may be this process or far away."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from glovebox_server.contract import guest, runtime
from glovebox_server.model import ids, resources, sandbox


@dataclasses.dataclass(frozen=True)
class Made:
    """What a node says of an instance it has just made or found again."""

    sandbox_id: ids.SandboxId
    boundary: str
    record: Mapping[str, Any]


#: Called by the node when an instance has ended by itself: its id, and the reason in words.
OnEnded = Callable[[ids.SandboxId, str], Awaitable[None]]


class Node(Protocol):
    """One host machine."""

    @property
    def name(self) -> str: ...

    async def start(self, on_ended: OnEnded) -> None:
        """Be ready: templates prepared. Nothing is adopted or swept yet."""

    async def probe(self) -> Sequence[runtime.Probe]:
        """What every runtime can do here."""

    async def create(self, spec: sandbox.SandboxSpec, runtime: str) -> Made:
        """Make one, configured and ready. Raises UnsupportedError, CapacityError, TemplateNotFoundError; leaves nothing then."""

    async def adopt(self, sandbox_id: ids.SandboxId, runtime: str, record: Mapping[str, Any]) -> Made | None:
        """Take one back that an earlier server made; None if it is no more."""

    async def sweep(self, keep: Sequence[ids.SandboxId]) -> Sequence[ids.SandboxId]:
        """Destroy every instance that is not in `keep`."""

    async def destroy(self, sandbox_id: ids.SandboxId) -> None:
        """End it and leave nothing. Safe at any moment, twice, and for an unknown id."""

    def guest(self, sandbox_id: ids.SandboxId) -> guest.Guest:
        """Its guest agent's face. Raises SandboxGoneError when this node does not hold it."""

    async def usage(self, sandbox_id: ids.SandboxId) -> resources.Usage: ...

    async def close(self, *, destroy: bool) -> None: ...
