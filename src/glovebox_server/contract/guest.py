"""What a guest can be asked, in types: the face of one sandbox's guest agent for the layers above.

All that comes back is guest data: checked in form and size here, believed nowhere. The link's operations are listed in
docs/reference/guest-link.md. Every method may raise GuestError (the agent refused) and SandboxGoneError (the link
is lost or the sandbox has ended).
"""

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file, directory or symlink inside."""

    name: str
    type: Literal["file", "directory", "symlink", "other"]
    path: str
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    mtime_ns: int
    symlink_target: str | None = None
    is_symlink: bool = False
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Change:
    """One change below a watched directory; `name` is relative to it."""

    name: str
    type: Literal["create", "write", "remove", "rename", "chmod"]
    entry: Entry | None = None


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """A process that was started through the link and is alive."""

    pid: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    tag: str | None


@dataclasses.dataclass(frozen=True)
class Started:
    """The process runs (always the first event)."""

    pid: int


@dataclasses.dataclass(frozen=True)
class Output:
    """Bytes that a program wrote."""

    stream: Literal["stdout", "stderr", "pty"]
    data: bytes


@dataclasses.dataclass(frozen=True)
class Exited:
    """The process has ended (always the last event)."""

    exit_code: int
    exited: bool
    status: str
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class ExecutionStarted:
    """A code context has accepted the code."""

    execution_count: int


@dataclasses.dataclass(frozen=True)
class Result:
    """A value that the code showed: a whole MIME bundle."""

    data: Mapping[str, Any]
    is_main_result: bool


@dataclasses.dataclass(frozen=True)
class ExecutionError:
    """The code raised, or its context died."""

    name: str
    value: str
    traceback: str


@dataclasses.dataclass(frozen=True)
class ExecutionEnded:
    """The execution is over (always the last event)."""

    execution_count: int


@dataclasses.dataclass(frozen=True)
class Context:
    """A code context: an interpreter that keeps its state."""

    context_id: str
    language: str
    cwd: str


#: Which process: by its pid inside, or by the tag it was started with.
Selector = int | str

ProcessEvent = Started | Output | Exited
CodeEvent = ExecutionStarted | Output | Result | ExecutionError | ExecutionEnded


class Connection(Protocol):
    """A TCP connection to a port inside."""

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end."""

    async def send(self, data: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def close(self) -> None: ...


class Guest(Protocol):
    """One sandbox's guest agent.

    The iterators are opened lazily, and closing one (`aclose`) cancels its channel: a process goes on without its
    subscriber, an execution is interrupted, a download stops.
    """

    async def configure(
        self, env: Mapping[str, str], *, default_user: str | None = None, default_workdir: str | None = None
    ) -> None: ...

    async def env(self) -> Mapping[str, str]: ...

    async def metrics(self) -> Mapping[str, float]: ...

    def start_process(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        user: str | None,
        stdin: bool,
        pty: tuple[int, int] | None,
        tag: str | None,
    ) -> AsyncIterator[ProcessEvent]:
        """`pty` is (columns, rows)."""

    def connect_process(self, process: Selector) -> AsyncIterator[ProcessEvent]: ...

    async def list_processes(self) -> Sequence[ProcessInfo]: ...

    async def signal_process(self, process: Selector, signal: int) -> None: ...

    async def send_input(self, process: Selector, data: AsyncIterator[bytes]) -> None: ...

    async def close_stdin(self, process: Selector) -> None: ...

    async def resize(self, process: Selector, cols: int, rows: int) -> None: ...

    async def stat(self, path: str, *, user: str | None) -> Entry: ...

    async def list_dir(self, path: str, *, depth: int, user: str | None) -> Sequence[Entry]: ...

    async def make_dir(self, path: str, *, user: str | None) -> Entry: ...

    async def move(self, source: str, destination: str, *, user: str | None) -> Entry: ...

    async def remove(self, path: str, *, user: str | None) -> None: ...

    def read_file(
        self, path: str, *, user: str | None, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[Entry | bytes]:
        """The entry first, then the content."""

    async def write_file(
        self, path: str, content: AsyncIterator[bytes], *, user: str | None, metadata: Mapping[str, str]
    ) -> Entry:
        """If `content` raises, the write is cancelled and the file stays as it was."""

    def watch(
        self, path: str, *, recursive: bool, include_entry: bool, user: str | None
    ) -> AsyncIterator[Change | None]:
        """None first, once the watch stands; then the changes."""

    async def create_watcher(self, path: str, *, recursive: bool, include_entry: bool, user: str | None) -> str: ...

    async def watcher_events(self, watcher_id: str) -> Sequence[Change]: ...

    async def remove_watcher(self, watcher_id: str) -> None: ...

    def execute(
        self,
        code: str,
        *,
        context_id: str | None,
        language: str | None,
        env: Mapping[str, str],
        user: str | None = None,
    ) -> AsyncIterator[CodeEvent]: ...

    async def create_context(self, *, language: str | None, cwd: str | None) -> Context: ...

    async def list_contexts(self) -> Sequence[Context]: ...

    async def remove_context(self, context_id: str) -> None: ...

    async def restart_context(self, context_id: str) -> None: ...

    async def interrupt_context(self, context_id: str) -> None: ...

    async def dial(self, port: int) -> Connection:
        """Connect to a port inside. GuestError `unavailable` when nothing listens there."""
