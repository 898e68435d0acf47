"""Zygotes as the server sees them: started, found again after a restart, told to fork, ended.

A zygote's folder, `<data folder>/zygotes/<key>/`, has its control socket, its log and `zygote.json` (who it is). The key is
made of all that a zygote is warm with: when the template or the guest agent changes there is a new key and a new zygote,
and the old one is ended when its last sandbox is gone.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Self

from glovebox import errors
from glovebox_server.linux import cgroups, processes, syscalls
from glovebox_server.model import template
from glovebox_server.runtimes.namespace import ids, waiting

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 15.0
_MAX_MESSAGE_BYTES = 128 * 1024


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is written down of a zygote."""

    key: str
    pid: int
    start_time: int
    uid_map: str
    gid_map: str
    slots: int
    narrow: bool
    pids: int  # the limit that its sandboxes' user namespaces are made with

    @property
    def window(self) -> ids.Window:
        return ids.Window(self.uid_map, self.gid_map, self.slots, self.narrow, lock_fd=-1)


def key_of(made_of: template.Template) -> str:
    """A name for everything that a zygote of this template is warm with, and its sandboxes are bound by."""
    root = made_of.layers[0].source
    archive = root / made_of.guest_archive.lstrip("/")
    facts = [
        made_of.template_id,
        [(str(layer.source), layer.target) for layer in made_of.layers],
        made_of.python,
        made_of.path,
        list(made_of.warm_modules),
        made_of.resources.pids,
        hashlib.sha256(archive.read_bytes()).hexdigest(),
    ]
    return f"{made_of.template_id}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


class Zygote:
    """A connection to one."""

    def __init__(self, folder: pathlib.Path, facts: Facts, control: socket.socket) -> None:
        self.folder = folder
        self.facts = facts
        self._control = control
        self._turn = asyncio.Lock()
        self._asked = 0

    @classmethod
    async def find(cls, folder: pathlib.Path) -> Self | None:
        """The zygote that lives in this folder, or None. CapacityError when it lives and is too busy to answer."""
        try:
            facts = Facts(**json.loads((folder / "zygote.json").read_text()))
            os.close(processes.open_pidfd(processes.Identity(facts.pid, facts.start_time)))
            zygote = cls(folder, facts, _connect(folder))
        except (OSError, ValueError, TypeError):
            return None
        if not await zygote.lives():
            zygote.close()
            return None
        return zygote

    @classmethod
    async def start(
        cls, folder: pathlib.Path, key: str, made_of: template.Template, group: cgroups.Group | None
    ) -> Self:
        """Start one, and return when it is warm. Raises UnsupportedError, CapacityError."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        window = ids.take_window()
        joins = group.open_join() if group else []
        listener = listen(folder / "control.sock", socket.SOCK_SEQPACKET)
        try:
            pid = await _launch(folder, made_of, window, listener, joins)
        finally:
            listener.close()
            for fd in [*joins, window.lock_fd]:
                if fd >= 0:
                    os.close(fd)
        who = processes.identify(pid)
        facts = Facts(
            key,
            pid,
            who.start_time,
            window.uid_map,
            window.gid_map,
            window.slots,
            window.narrow,
            made_of.resources.pids,
        )
        (folder / "zygote.json").write_text(json.dumps(dataclasses.asdict(facts)))
        zygote = cls(folder, facts, _connect(folder))
        try:
            await zygote._request({"op": "ping"}, timeout_s=_START_TIMEOUT_S)
        except (errors.SandboxGoneError, errors.CapacityError) as error:
            log = (folder / "log").read_text(errors="replace")[-2000:]
            await zygote.end()
            raise errors.UnsupportedError(
                f"the zygote of template {made_of.template_id} did not start: {log}"
            ) from error
        return zygote

    async def sandboxes(self) -> list[str]:
        """Ids of the sandboxes that live in it. Raises SandboxGoneError when it does not answer."""
        reply, _ = await self._request({"op": "ping"})
        return list(reply.get("sandboxes", []))

    async def lives(self) -> bool:
        """Whether it answers. Raises CapacityError when it is too busy to."""
        try:
            await self.sandboxes()
        except errors.SandboxGoneError:
            return False
        return True

    async def user_namespace(self, slot: int) -> int:
        """A descriptor of a user namespace with this slot's ids. Raises CapacityError, SandboxGoneError."""
        window = self.facts.window
        request = {"op": "userns", "map": window.map(slot), "owner": window.base(slot), "pids": self.facts.pids}
        reply, fds = await self._request(request)
        if not fds:
            raise errors.CapacityError(f"no further user namespace: {reply.get('error')}")
        return fds[0]

    async def network_namespace(self) -> int:
        """A descriptor of a new network namespace, loopback up. Raises CapacityError, SandboxGoneError."""
        reply, fds = await self._request({"op": "netns"})
        if not fds:
            raise errors.CapacityError(f"no further network namespace: {reply.get('error')}")
        return fds[0]

    async def filter_with(self, program: bytes) -> None:
        """Have every sandbox from now on filtered with this compiled seccomp program. Raises as `sandboxes` does."""
        await self._request({"op": "seccomp", "program": base64.b64encode(program).decode()})

    async def spawn(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        """Have it fork a sandbox, which answers on the first of `fds` itself. Raises SandboxGoneError."""
        await self._send({"op": "spawn", **request}, fds)

    async def kill(self, sandbox_id: str) -> None:
        """SIGKILL a sandbox's process 1 by its id; nothing when there is none."""
        await self._request({"op": "kill", "sandbox_id": sandbox_id})

    async def end(self) -> None:
        """End it, with every sandbox in it, and remove its folder."""
        with contextlib.suppress(ProcessLookupError):
            fd = processes.open_pidfd(processes.Identity(self.facts.pid, self.facts.start_time))
            try:
                # Safety: the pidfd is of the very process that was written down. It is process 1 of its pid namespace:
                # the kernel ends everything below it.
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                await waiting.readable(fd, _ANSWER_TIMEOUT_S)
            finally:
                os.close(fd)
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of it."""
        self._control.close()

    async def _request(
        self, message: dict[str, Any], *, timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> tuple[dict[str, Any], list[int]]:
        async with self._turn:
            self._asked += 1
            await self._send({**message, "seq": self._asked}, [])
            while True:
                reply, fds = await self._receive(timeout_s)
                if reply.get("seq") == self._asked:
                    return reply, fds
                for fd in fds:  # the answer to a request that was given up
                    os.close(fd)

    async def _receive(self, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        try:
            await waiting.readable(self._control.fileno(), timeout_s)
            data, fds, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE_BYTES, 4)
        except TimeoutError as error:
            raise errors.CapacityError("the zygote is too busy to answer") from error
        except (OSError, ValueError) as error:
            raise errors.SandboxGoneError("the zygote does not answer") from error
        if not data:
            raise errors.SandboxGoneError("the zygote has ended")
        for fd in fds:
            os.set_inheritable(fd, False)
        return json.loads(data), list(fds)

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        data = json.dumps(message).encode()
        while True:
            try:
                socket.send_fds(self._control, [data], list(fds))
                return
            except BlockingIOError:
                await waiting.writable(self._control, _ANSWER_TIMEOUT_S)
            except OSError as error:
                raise errors.SandboxGoneError("the zygote has ended") from error


async def _launch(
    folder: pathlib.Path,
    made_of: template.Template,
    window: ids.Window,
    listener: socket.socket,
    joins: Sequence[int],
) -> int:
    """Run `outer.py`; the zygote's pid on the host."""
    locks = [window.lock_fd] if window.lock_fd >= 0 else []
    # Safety: copies of mounts of the template's own trees, which every sandbox may read; the zygote makes them read-only.
    layers = [] if window.narrow else [syscalls.open_tree(str(one.source), recursive=True) for one in made_of.layers]
    plan = {
        "layer_fds": layers,
        "layers": [(str(layer.source), layer.target) for layer in made_of.layers],
        "python": made_of.python,
        "archive": made_of.guest_archive,
        "path": made_of.path,
        "warm_modules": list(made_of.warm_modules),
        "uid_map": window.uid_map,
        "gid_map": window.gid_map,
        "map_with_helpers": window.narrow,
        "control_fd": listener.fileno(),
        "keep_fds": locks,
        "join_fds": list(joins),
    }
    with open(folder / "log", "wb") as log:
        launcher = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "glovebox_server.runtimes.namespace.outer",
            json.dumps(plan),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            pass_fds=[listener.fileno(), *locks, *joins, *layers],
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8"},
            cwd="/",
        )
    for fd in layers:
        os.close(fd)
    async with asyncio.timeout(_START_TIMEOUT_S):
        report, _ = await launcher.communicate()
    try:
        answer = json.loads(report)
    except ValueError:
        answer = {"error": (folder / "log").read_text(errors="replace")[-2000:]}
    if "pid" not in answer:
        raise errors.UnsupportedError(f"namespaces cannot be made on this host: {answer.get('error')}")
    return int(answer["pid"])


def listen(path: pathlib.Path, kind: socket.SocketKind) -> socket.socket:
    """A listening unix socket at a path of any length (sun_path has 108 bytes; the folder is named by a descriptor)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, kind)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(16)
    finally:
        os.close(folder)
    return listener


def _connect(folder: pathlib.Path) -> socket.socket:
    return connect(folder / "control.sock", socket.SOCK_SEQPACKET)


def connect(path: pathlib.Path, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking connection to the unix socket at `path`. Raises OSError."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.setblocking(False)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection
