"""A runtime for tests that isolates NOTHING: each guest agent is a plain process of the host, with the server's rights.

    <data folder>/<sandbox id>/link    the agent's listening socket
    <data folder>/<sandbox id>/log     what the agent itself printed

An agent runs in a session of its own and so outlives the server. It is the subreaper of all it starts (prctl(2)), so
that its process tree is whole, and carries its folder in its environment, so that it can be found by that alone when the
server died before it wrote anything down. Orphans of a dead agent are known by E2B_SANDBOX_ID in their environment.
"""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import structlog

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.contract import runtime
from glovebox_server.linux import processes
from glovebox_server.model import ids, resources, sandbox, template

BOUNDARY = "none: a plain process of the host (fake runtime, for tests only)"
#: Who makes a FakeRuntime must write this out; nothing but an explicit entry in the configuration may lead there.
Acknowledgement = Literal["isolates nothing"]

_MARK = "GLOVEBOX_FAKE_FOLDER"
_AGENT_FD = 3
_KILL_TIMEOUT_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_CHILD_SUBREAPER = 36
#: A template's Python need not have IPython: then there are no code contexts.
_LAUNCH = f"""\
import contextlib, ctypes, runpy, sys
ctypes.CDLL(None).prctl({_PR_SET_CHILD_SUBREAPER}, 1, 0, 0, 0)
with contextlib.suppress(ImportError):
    from glovebox_guest import kernel
    kernel.warm(sys.argv[1:])
sys.argv[:] = ["glovebox_guest", "--listen-fd", "{_AGENT_FD}"]
runpy.run_module("glovebox_guest", run_name="__main__", alter_sys=True)
"""

_log = structlog.get_logger(__name__)


class FakeInstance:
    """One agent process (contract.runtime.Instance)."""

    def __init__(self, sandbox_id: ids.SandboxId, folder: pathlib.Path, identity: processes.Identity) -> None:
        self._sandbox_id = sandbox_id
        self._folder = folder
        self._identity = identity
        self._ended = asyncio.Event()
        self._pidfd = processes.open_pidfd(identity)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_end)

    @property
    def sandbox_id(self) -> ids.SandboxId:
        return self._sandbox_id

    @property
    def boundary(self) -> str:
        return BOUNDARY

    def record(self) -> Mapping[str, Any]:
        return {
            "pid": self._identity.pid,
            "start_time": self._identity.start_time,
            "socket": str(self._folder / "link"),
        }

    async def open_link(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await self._loop.sock_connect(sock, str(self._folder / "link"))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise errors.SandboxGoneError(f"sandbox {self._sandbox_id} cannot be reached") from error
            raise
        return sock

    async def usage(self) -> resources.Usage:
        pids = [self._identity.pid, *_descendants(self._identity.pid)]
        stats = [stat for stat in map(_stat, pids) if stat is not None]
        if self._ended.is_set() or not stats:
            raise errors.SandboxGoneError(f"sandbox {self._sandbox_id} has ended")
        return resources.Usage(
            cpu_seconds=sum(int(stat[11]) + int(stat[12]) for stat in stats) / _TICKS,
            memory_bytes=sum(int(stat[21]) for stat in stats) * _PAGE,
            memory_cache_bytes=0,
            pids=len(stats),
            oom_kills=0,
        )

    async def pause(self) -> None:
        pids = _freeze_trees({self._root()})
        async with asyncio.timeout(_KILL_TIMEOUT_S):
            while not all(map(_stands_still, pids)):  # noqa: ASYNC110 - SIGSTOP is obeyed a little later, and says nothing
                await asyncio.sleep(0.001)

    async def resume(self) -> None:
        root = self._root()
        for pid in (root, *_descendants(root)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _root(self) -> int:
        if self._ended.is_set():
            raise errors.SandboxGoneError(f"sandbox {self._sandbox_id} has ended")
        return self._identity.pid

    async def wait(self) -> str:
        await self._ended.wait()
        return "its guest agent ended"

    async def destroy(self) -> None:
        await _kill(self._folder, self._identity)
        if self._pidfd >= 0:
            await asyncio.wait_for(self._ended.wait(), _KILL_TIMEOUT_S)

    def let_go(self) -> None:
        """Watch it no longer; it goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_end(self) -> None:
        _reap(self._pidfd)
        self.let_go()
        self._ended.set()


class FakeRuntime:
    """No isolation at all (contract.runtime.Runtime)."""

    def __init__(self, data_folder: pathlib.Path, *, acknowledge: Acknowledgement) -> None:
        if acknowledge != "isolates nothing":
            raise errors.UnsupportedError("the fake runtime isolates nothing, and must be asked for in so many words")
        self._data_folder = data_folder.resolve()
        self._instances: dict[ids.SandboxId, FakeInstance] = {}
        _log.warning("fake runtime enabled", boundary=BOUNDARY)

    @property
    def name(self) -> str:
        return "fake"

    async def probe(self) -> runtime.Probe:
        return runtime.Probe(
            "fake", available=True, boundary=BOUNDARY, notes=("it isolates nothing",), capabilities=self.capabilities
        )

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(("pause",))

    async def prepare(self, template: template.Template) -> None:
        self._data_folder.mkdir(parents=True, exist_ok=True)

    async def create(self, spec: sandbox.SandboxSpec, template: template.Template) -> FakeInstance:
        folder = self._data_folder / spec.sandbox_id
        try:
            folder.mkdir(parents=True)
            pid = _start_agent(folder, template)
            instance = FakeInstance(spec.sandbox_id, folder, processes.identify(pid))
        except (OSError, ProcessLookupError) as error:
            await _kill(folder)
            raise errors.CapacityError(f"sandbox {spec.sandbox_id} could not be started") from error
        self._instances[spec.sandbox_id] = instance
        return instance

    async def adopt(self, sandbox_id: ids.SandboxId, record: Mapping[str, Any]) -> FakeInstance | None:
        folder = self._data_folder / sandbox_id
        try:
            identity = processes.Identity(int(record["pid"]), int(record["start_time"]))
            instance = FakeInstance(sandbox_id, folder, identity)
        except (ProcessLookupError, KeyError, ValueError):
            await _kill(folder)
            return None
        self._instances[sandbox_id] = instance
        return instance

    async def sweep(self, keep: Collection[ids.SandboxId]) -> list[ids.SandboxId]:
        self._data_folder.mkdir(parents=True, exist_ok=True)
        swept = []
        for name in sorted({*os.listdir(self._data_folder), *_marked_below(self._data_folder)}):
            try:
                sandbox_id = ids.parse_sandbox_id(name)
            except errors.SandboxNotFoundError:
                continue  # not one of ours
            if sandbox_id not in keep:
                instance = self._instances.pop(sandbox_id, None)
                await (instance.destroy() if instance else _kill(self._data_folder / name))
                swept.append(sandbox_id)
        return swept

    async def close(self, *, destroy: bool) -> None:
        for instance in self._instances.values():
            instance.let_go()
        self._instances.clear()


def _start_agent(folder: pathlib.Path, template: template.Template) -> int:
    """Start the agent on a listening socket of its own; its pid."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, open(folder / "log", "wb") as log:
        listener.bind(str(folder / "link"))
        listener.listen(4)
        env = {
            "PATH": template.path,
            "PYTHONPATH": str(pathlib.Path(wire.__file__).parent.parent),
            _MARK: str(folder),
        }
        # Not a subprocess.Popen: the process is to outlive every object here, and nothing may wait for it at exit.
        return os.posix_spawn(
            template.python,
            [template.python, "-c", _LAUNCH, *template.warm_modules],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), _AGENT_FD),
            ],
            setsid=True,
        )


async def _kill(folder: pathlib.Path, agent: processes.Identity | None = None) -> None:
    """Kill all that belongs to the instance in `folder`, and remove the folder. Safe at any moment, and twice."""
    roots = set(_members(folder))
    # An agent just started has no environment to be known by yet: posix_spawn(3) returns in the midst of its execve(2).
    with contextlib.suppress(ProcessLookupError):
        if agent is not None and processes.identify(agent.pid) == agent:
            roots.add(agent.pid)
    async with asyncio.timeout(_KILL_TIMEOUT_S):
        while roots:
            for pid in _freeze_trees(roots):
                await _kill_one(pid)
            roots = set(_members(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _freeze_trees(roots: set[int]) -> set[int]:
    """Stop the roots and all below them: when a look finds nobody new, nobody is left who could start more."""
    frozen: set[int] = set()
    while fresh := {pid for root in roots for pid in (root, *_descendants(root))} - frozen:
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        frozen |= fresh
    return frozen


def _stands_still(pid: int) -> bool:
    """Whether it is stopped, or has ended."""
    stat = _stat(pid)
    return stat is None or stat[0] in b"TtZX"


def _members(folder: pathlib.Path) -> Iterator[int]:
    """The agent, and orphans of an agent that died before them."""
    marks = {f"{_MARK}={folder}".encode(), f"E2B_SANDBOX_ID={folder.name}".encode()}
    return (pid for pid, variables in _environments() if not marks.isdisjoint(variables))


def _marked_below(data_folder: pathlib.Path) -> Iterator[str]:
    """The names of folders whose agents live, though the folder itself may be gone."""
    prefix = f"{_MARK}={data_folder}/".encode()
    for _, variables in _environments():
        for variable in variables:
            if variable.startswith(prefix):
                yield os.fsdecode(variable.removeprefix(prefix))


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every other process's environment, as it was started with (proc_pid_environ(5))."""
    for pid in _all_pids():
        if pid in (1, os.getpid()):
            continue
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            yield pid, file.read().split(b"\0")


async def _kill_one(pid: int) -> None:
    """Kill it and wait until it is dead."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, dead = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, dead.set)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await dead.wait()
        _reap(pidfd)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _reap(pidfd: int) -> None:
    """Take a dead child off the process table; what is not our child is for its own parent, or init."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for other in _all_pids():
        stat = _stat(other)
        if stat is not None:
            children.setdefault(int(stat[1]), []).append(other)
    found = list(children.get(pid, ()))
    for member in found:  # grows while it is walked
        found += children.get(member, ())
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[bytes] | None:
    """The fields of proc_pid_stat(5) from the third on (state, ppid, ...); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
