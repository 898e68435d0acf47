"""A guest that is a few dictionaries: what tests of the gateway need to find inside a sandbox, without a process."""

import asyncio
import collections

from glovebox import errors
from glovebox_server.contract import guest
from tests.support import manager_fakes

_USERS = ("user", "root")


class MemoryGuest:
    """Commands: `echo X`, `cat`, `sleep`, `fail N`. Files are bytes by absolute path. Code: `1+1`-like sums, `sleep`."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.dirs = {"/home/user"}
        self.signals = []
        self.unsubscribed = 0
        self.interrupted = 0
        self.environment = {"E2B_SANDBOX": "true"}
        self.contexts = [guest.Context("python-1", "python", "/home/user")]
        self.ports: dict[int, asyncio.StreamReader] = {}
        self.servers = {}  # port -> callable(request bytes) -> response bytes
        self._pid = 100
        self._ends = {}
        self._stdin = {}
        self._infos = {}
        self._watchers = {}
        self._watching = collections.defaultdict(list)

    async def configure(self, env, *, default_user=None, default_workdir=None):
        self.environment = dict(env)

    async def env(self):
        return self.environment

    async def metrics(self):
        return {"ts": 1.0, "cpu_count": 2, "cpu_used_pct": 12.5, "mem_total": 2**30, "mem_used": 2**20, "mem_cache": 0,
                "disk_used": 4096, "disk_total": 2**30}  # fmt: skip

    # Processes

    async def start_process(self, argv, *, env, cwd, user, stdin, pty, tag):
        _known(user)
        if cwd == "/nope":
            raise errors.GuestError("invalid_argument", f"cwd '{cwd}' does not exist")
        self._pid += 1
        pid = self._pid
        command = argv[-1]
        self._ends[pid] = asyncio.get_running_loop().create_future()
        self._stdin[pid] = asyncio.Queue()
        self._infos[pid] = guest.ProcessInfo(pid, tuple(argv), env, cwd, tag)
        yield guest.Started(pid)
        try:
            async for event in self._run(pid, command, env):
                yield event
        except GeneratorExit:
            self.unsubscribed += 1
            raise
        except asyncio.CancelledError:
            self.unsubscribed += 1
            raise

    async def _run(self, pid, command, env):
        word, _, rest = command.partition(" ")
        code, status = 0, "exit status 0"
        if word == "echo":
            yield guest.Output("stdout", (env.get(rest[1:], "") if rest.startswith("$") else rest).encode() + b"\n")
        elif word == "fail":
            code, status = int(rest), f"exit status {rest}"
            yield guest.Output("stderr", b"failed\n")
        elif word == "flood":
            for _ in range(int(rest)):
                yield guest.Output("stdout", b"x" * 32768)
        elif word == "cat":
            while (data := await self._stdin[pid].get()) is not None:
                yield guest.Output("stdout", data)
        elif word == "sleep":
            signal = await asyncio.shield(self._ends[pid])
            self._infos.pop(pid, None)
            yield guest.Exited(-1, False, f"signal: {signal}")
            return
        self._infos.pop(pid, None)
        yield guest.Exited(code, True, status)

    async def connect_process(self, process):
        pid = self._find(process)
        yield guest.Started(pid)
        signal = await asyncio.shield(self._ends[pid])
        yield guest.Exited(-1, False, f"signal: {signal}")

    async def list_processes(self):
        return list(self._infos.values())

    def _find(self, process):
        for info in self._infos.values():
            if process in (info.pid, info.tag):
                return info.pid
        raise errors.GuestError("not_found", f"process with pid {process} not found")

    async def signal_process(self, process, signal):
        pid = self._find(process)
        self.signals.append((pid, signal))
        if not self._ends[pid].done():
            self._ends[pid].set_result("killed")
        self._infos.pop(pid)

    async def send_input(self, process, data):
        pid = self._find(process)
        async for chunk in data:
            self._stdin[pid].put_nowait(chunk)

    async def close_stdin(self, process):
        pid = self._find(process)
        if self._infos[pid].tag == "pty":
            raise errors.GuestError("failed_precondition", "it is a terminal")
        self._stdin[pid].put_nowait(None)

    async def resize(self, process, cols, rows):
        self._find(process)

    # Files

    def _entry(self, path):
        if path in self.files:
            return guest.Entry(path.rpartition("/")[2], "file", path, len(self.files[path]), 0o644, "-rw-r--r--", "user",
                               "user", 1_700_000_000_500_000_000, metadata=self.metadata.get(path, {}))  # fmt: skip
        if path in self.dirs:
            return guest.Entry(path.rpartition("/")[2], "directory", path, 0, 0o755, "drwxr-xr-x", "user", "user", 0)
        raise errors.GuestError("not_found", f"path '{path}' does not exist")

    async def stat(self, path, *, user):
        _known(user)
        return self._entry(_absolute(path))

    async def list_dir(self, path, *, depth, user):
        root = _absolute(path)
        self._entry(root)
        return [self._entry(one) for one in sorted({*self.files, *self.dirs}) if one.rpartition("/")[0] == root]

    async def make_dir(self, path, *, user):
        path = _absolute(path)
        if path in self.dirs:
            raise errors.GuestError("already_exists", f"path '{path}' exists")
        self.dirs.add(path)
        return self._entry(path)

    async def move(self, source, destination, *, user):
        source, destination = _absolute(source), _absolute(destination)
        self._entry(source)
        self.files[destination] = self.files.pop(source)
        return self._entry(destination)

    async def remove(self, path, *, user):
        self.files.pop(_absolute(path), None)

    async def read_file(self, path, *, user, offset=0, length=None):
        _known(user)
        path = _absolute(path)
        entry = self._entry(path)
        if entry.type == "directory":
            raise errors.GuestError("invalid_argument", f"path '{path}' is a directory")
        yield entry
        end = len(self.files[path]) if length is None else offset + length
        for start in range(offset, end, 65536):
            yield self.files[path][start : min(end, start + 65536)]

    async def write_file(self, path, content, *, user, metadata):
        _known(user)
        path = _absolute(path)
        if path in self.dirs:
            raise errors.GuestError("invalid_argument", f"path '{path}' is a directory")
        if path.startswith("/full/"):
            raise errors.GuestError("no_space", "no space left on device")
        data = b"".join([chunk async for chunk in content])
        self.files[path], self.metadata[path] = data, dict(metadata)
        for queue in self._watching[path.rpartition("/")[0]]:
            for kind in ("create", "chmod", "write"):
                queue.put_nowait(guest.Change(path.rpartition("/")[2], kind))
        return self._entry(path)

    async def watch(self, path, *, recursive, include_entry, user):
        queue = asyncio.Queue()
        self._entry(_absolute(path))
        self._watching[_absolute(path)].append(queue)
        yield None
        while True:
            yield await queue.get()

    async def create_watcher(self, path, *, recursive, include_entry, user):
        self._entry(_absolute(path))
        queue = asyncio.Queue()
        self._watching[_absolute(path)].append(queue)
        self._watchers[f"w{len(self._watchers)}"] = queue
        return f"w{len(self._watchers) - 1}"

    async def watcher_events(self, watcher_id):
        if watcher_id not in self._watchers:
            raise errors.GuestError("not_found", f"watcher {watcher_id} not found")
        queue = self._watchers[watcher_id]
        return [queue.get_nowait() for _ in range(queue.qsize())]

    async def remove_watcher(self, watcher_id):
        await self.watcher_events(watcher_id)
        del self._watchers[watcher_id]

    # Code

    async def execute(self, code, *, context_id, language, env, user=None):
        if context_id is not None and context_id not in [one.context_id for one in self.contexts]:
            raise errors.GuestError("not_found", f"Context {context_id} not found")
        yield guest.ExecutionStarted(1)
        try:
            if code == "sleep":
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.interrupted += 1
            raise
        if code == "die":
            yield guest.ExecutionError("ContextDied", "killed by signal 9", "")
        elif code.startswith("print"):
            # One character, in two pieces.
            yield guest.Output("stdout", b"a\xe2\x82")
            yield guest.Output("stdout", b"\xac\xff")
        elif code.startswith("raise"):
            yield guest.ExecutionError("ValueError", "no", "Traceback")
        else:
            yield guest.Result({"text/plain": str(sum(map(int, code.split("+")))), "x/y": 1}, True)
        yield guest.ExecutionEnded(1)

    async def create_context(self, *, language, cwd):
        self.contexts.append(guest.Context(f"c{len(self.contexts)}", language or "python", cwd or "/home/user"))
        return self.contexts[-1]

    async def list_contexts(self):
        return self.contexts

    async def remove_context(self, context_id):
        found = [one for one in self.contexts if one.context_id == context_id]
        if not found:
            raise errors.GuestError("not_found", f"Context {context_id} not found")
        self.contexts.remove(found[0])

    async def restart_context(self, context_id):
        if context_id not in [one.context_id for one in self.contexts]:
            raise errors.GuestError("not_found", f"Context {context_id} not found")

    async def interrupt_context(self, context_id):
        self.interrupted += 1

    # Ports

    async def dial(self, port):
        if port not in self.servers:
            raise errors.GuestError("unavailable", "nothing listens there")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.servers[port])
        return _Socket(reader, writer)


class _Socket:
    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    async def receive(self):
        return await self._reader.read(65536)

    async def send(self, data):
        self._writer.write(data)
        await self._writer.drain()

    async def send_eof(self):
        self._writer.write_eof()

    async def close(self):
        self._writer.close()


class MemoryNode(manager_fakes.FakeNode):
    """Its sandboxes hold memory guests."""

    def guest(self, sandbox_id):
        if sandbox_id not in self.instances:
            raise errors.SandboxGoneError(sandbox_id)
        return self.guests.setdefault(sandbox_id, MemoryGuest())


def _absolute(path):
    return path if path.startswith("/") else f"/home/user/{path}".rstrip("/")


def _known(user):
    if user is not None and user not in _USERS:
        raise errors.GuestError("unauthenticated", f"invalid username: '{user}'")
