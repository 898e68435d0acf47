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

    def capabilities(self, runtime: str) -> frozenset[str]:
        """What sandboxes of this runtime can do here (contract.runtime.Probe); nothing for an unknown runtime."""

    async def create(self, spec: sandbox.SandboxSpec, runtime: str) -> Made:
        """Make one, configured and ready. Raises UnsupportedError, CapacityError, TemplateNotFoundError; leaves nothing then."""

    async def adopt(
        self, sandbox_id: ids.SandboxId, runtime: str, record: Mapping[str, Any], *, paused: bool = False
    ) -> Made | None:
        """Take one back that an earlier server made; None if it is no more. It is `paused` afterwards, or runs."""

    async def sweep(self, keep: Sequence[ids.SandboxId]) -> Sequence[ids.SandboxId]:
        """Destroy every instance that is not in `keep`."""

    async def check(self, sandbox_id: ids.SandboxId) -> None:
        """See that its guest agent answers. Raises SandboxGoneError; CapacityError when it does not answer in time."""

    async def pause(self, sandbox_id: ids.SandboxId) -> None:
        """Stop it where it stands. Its open calls end with SandboxGoneError, and so do new ones. Twice is once.

        Raises SandboxGoneError, UnsupportedError; CapacityError when it takes too long. It runs on then.
        """

    async def resume(self, sandbox_id: ids.SandboxId) -> None:
        """Let it go on; its guest agent answers when this returns. Twice is once. Raises SandboxGoneError."""

    async def destroy(self, sandbox_id: ids.SandboxId) -> None:
        """End it and leave nothing. Safe at any moment, twice, and for an unknown id."""

    def guest(self, sandbox_id: ids.SandboxId) -> guest.Guest:
        """Its guest agent's face. Raises SandboxGoneError when this node does not hold it."""

    async def usage(self, sandbox_id: ids.SandboxId) -> resources.Usage: ...

    async def close(self, *, destroy: bool) -> None: ...
