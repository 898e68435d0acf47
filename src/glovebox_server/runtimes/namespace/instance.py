"""A sandbox of the namespace runtime, as the server holds it: a pidfd of its process 1, its control group, its socket."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

from glovebox import errors
from glovebox_server.linux import cgroups, processes
from glovebox_server.model import ids, resources
from glovebox_server.runtimes.namespace import groups, zygotes

_DEATH_TIMEOUT_S = 30.0


class NamespaceInstance:
    """See contract.runtime.Instance."""

    def __init__(
        self,
        sandbox_id: ids.SandboxId,
        boundary: str,
        identity: processes.Identity,
        socket_path: pathlib.Path,
        group: cgroups.Group | None,
        record: Mapping[str, Any],
        on_gone: Callable[[], None],
        link: socket.socket | None = None,  # connected already: for whoever opens one first
    ) -> None:
        self.sandbox_id = sandbox_id
        self.boundary = boundary
        self._socket_path = socket_path
        self._group = group
        self._record = record
        self._on_gone = on_gone
        self._waiting_link = link
        self._pidfd = processes.open_pidfd(identity)
        self._ended = asyncio.get_running_loop().create_future()
        self._doomed = False
        self._cleaned = False
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)

    def record(self) -> Mapping[str, Any]:
        return self._record

    def _process_ended(self) -> None:
        """Process 1 is gone, and with it, by the kernel's doing, every process of its pid namespace."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(self._reason())

    def _reason(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            if self._group is not None and self._group.usage().oom_kills:
                return "its guest agent ended; processes of the sandbox were killed for memory"
        return "its guest agent ended"

    async def open_link(self) -> socket.socket:
        if self._ended.done():
            raise errors.SandboxGoneError("the sandbox has ended")
        if self._waiting_link is not None:
            link, self._waiting_link = self._waiting_link, None
            return link
        try:
            return zygotes.connect(self._socket_path, socket.SOCK_STREAM)
        except OSError as error:
            raise errors.SandboxGoneError("the sandbox's guest agent cannot be reached") from error

    async def usage(self) -> resources.Usage:
        if self._group is None:
            raise errors.UnsupportedError("usage is not measured: this host gives us no control group")
        try:
            return self._group.usage()
        except OSError as error:
            raise errors.SandboxGoneError("the sandbox has ended") from error

    async def pause(self) -> None:
        if self._group is None or not self._group.can_freeze:
            raise errors.UnsupportedError("the sandbox cannot be paused: this host gives us no freezer control group")
        try:
            await groups.freeze(self._group, self._is_ending)
        except OSError as error:
            raise errors.SandboxGoneError("the sandbox has ended") from error
        if self._is_ending():
            raise errors.SandboxGoneError("the sandbox has ended")

    async def resume(self) -> None:
        if self._is_ending():
            raise errors.SandboxGoneError("the sandbox has ended")
        if self._group is not None:
            try:
                self._group.thaw()
            except OSError as error:
                raise errors.SandboxGoneError("the sandbox has ended") from error

    def _is_ending(self) -> bool:
        return self._doomed or self._ended.done()

    async def wait(self) -> str:
        return str(await asyncio.shield(self._ended))

    def kill(self) -> None:
        """Let it die, though it be frozen: `wait` returns soon. It is still to be destroyed."""
        self._doomed = True
        with contextlib.suppress(ProcessLookupError):
            # Safety: a pidfd cannot mean another process. SIGKILL to process 1 of the pid namespace ends them all, and
            # its exit is reported only when they are gone.
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._group is not None:
            groups.let_die(self._group)

    async def destroy(self) -> None:
        if self._cleaned:
            return
        self.kill()
        async with asyncio.timeout(_DEATH_TIMEOUT_S):
            await asyncio.shield(self._ended)
        if self._group is not None:
            await groups.remove(self._group)
        if not self._cleaned:  # by another call, meanwhile
            self._socket_path.unlink(missing_ok=True)
            self._cleaned = True
            self.release()
            self._on_gone()

    def release(self) -> None:
        """Let go of the descriptors; the sandbox lives on."""
        if self._waiting_link is not None:
            self._waiting_link.close()
            self._waiting_link = None
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
