"""What the node asks of a runtime: to start guest agents in isolation and hand back one byte stream each.

The node calls everything here, from one event loop. Calls for different sandboxes run side by side; for one sandbox they
come one after another, except `destroy`, which may come at any moment, twice, and after a half-done start.
"""

import dataclasses
import socket
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from glovebox_server.model import ids, resources, sandbox, template


@dataclasses.dataclass(frozen=True)
class Probe:
    """What this host can do with a runtime. If it is not available: what is missing, and how to get it."""

    runtime: str
    available: bool
    boundary: str  # in words: what stands between a sandbox and the host
    missing: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()  # commands, one for each thing missing
    notes: tuple[str, ...] = ()  # what is weaker or slower here than it could be
    capabilities: frozenset[str] = frozenset()  # of: pause, snapshot_files, snapshot_memory, fork


class Instance(Protocol):
    """A sandbox as its runtime holds it: alive from `create` or `adopt` until `wait` returns."""

    @property
    def sandbox_id(self) -> ids.SandboxId: ...

    @property
    def boundary(self) -> str:
        """What stands between this very sandbox and the host, in words."""

    def record(self) -> Mapping[str, Any]:
        """JSON-able facts by which `Runtime.adopt` finds the instance again after a restart of the server."""

    async def open_link(self) -> socket.socket:
        """A connected, non-blocking stream to the guest agent. A new one replaces the one before.

        Raises SandboxGoneError.
        """

    async def usage(self) -> resources.Usage:
        """Measured from outside. Raises SandboxGoneError."""

    async def pause(self) -> None:
        """Stop all that runs in it where it stands; memory is kept. Nothing happens when it is paused already.

        No link is open then, and none is opened before `resume`. Called only where the runtime has the capability
        `pause`. Raises SandboxGoneError, and CapacityError when it takes too long; then it runs on.
        """

    async def resume(self) -> None:
        """Let it go on. Nothing happens when it is not paused. Raises SandboxGoneError."""

    async def wait(self) -> str:
        """Return when the instance is no longer alive, with the reason in words. Any number may wait."""

    async def destroy(self) -> None:
        """End it, paused or not, and leave nothing behind: no process, cgroup, mount, namespace or file.

        Nothing of a paused one runs again.
        """


class Runtime(Protocol):
    """One way to isolate."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of `probe`, known without a trial."""

    async def probe(self) -> Probe:
        """Try it out (start something small under a time limit), do not guess from versions."""

    async def prepare(self, template: template.Template) -> None:
        """Make what sandboxes of this template share (a zygote). Safe to call again; finds what an earlier server left."""

    async def create(self, spec: sandbox.SandboxSpec, template: template.Template) -> Instance:
        """Start one. It is ready (its agent answers) when this returns.

        Raises UnsupportedError, CapacityError; leaves nothing behind then.
        """

    async def adopt(self, sandbox_id: ids.SandboxId, record: Mapping[str, Any]) -> Instance | None:
        """The instance that an earlier server made, if it still lives; None, and nothing left of it, if not.

        One that is paused still is.
        """

    async def sweep(self, keep: Collection[ids.SandboxId]) -> list[ids.SandboxId]:
        """Destroy every instance of this runtime (in this data folder) that is not in `keep`; return which.

        Called at start, after the adoptions.
        """

    async def close(self, *, destroy: bool) -> None:
        """Let go. With `destroy` everything shared (zygotes) goes too; else it stays for the next server."""
