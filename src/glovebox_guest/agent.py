"""The guest agent: one process and one thread that serves the host's operations over one link at a time.

    serve ──▶ link (frames) ──▶ channel ──▶ operation (the table below) ──▶ processes, files, watches, code, ports

It outlives what it runs: signals meant for it are ignored, every failure ends at the channel that caused it, and a lost
link costs nothing but its channels.
"""

import _signal
import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import traceback
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, NoReturn, Optional, Set, Tuple

from glovebox_guest import channel as channels
from glovebox_guest import (
    child,
    code_operations,
    files,
    forkable,
    link,
    metrics,
    parameters,
    ports,
    processes,
    reaper,
    refusals,
    settings,
    uploads,
    watch,
    wire,
)

#: How long a shutdown's answer may take to leave.
FAREWELL_S = 1.0
#: Time for the answer to reach the caller before the agent takes a processor for a fork.
_AFTER_THE_ANSWER_S = 0.001
MAX_COMPLAINT_BYTES = 2000
_IGNORED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGXCPU),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)

Handler = Callable[[parameters.Parameters, channels.Channel], Awaitable[Dict[str, Any]]]


class Operation(NamedTuple):
    """What serves an `op`. CANCEL cancels the handler's task, unless it looks after `channel.cancelled` itself."""

    handler: Handler
    cancels_itself: bool = False


class Ready:
    """An agent and its loop, made but not begun: in a zygote, so that every fork of it has them already.

    The child calls `serve` when it is what it shall be, and closes no `descriptors()` before; the parent calls `renew` after
    each fork. With `prepare_code` the default code context is started as soon as the sandbox is configured: worth it where
    the interpreter is warm, and only there.
    """

    def __init__(
        self, contexts_factory: Optional[code_operations.Factory] = None, *, prepare_code: bool = False
    ) -> None:
        self._loop = forkable.Loop()
        self._agent = self._loop.run_until_complete(_make(contexts_factory, prepare_code))

    def descriptors(self) -> Set[int]:
        """What the next child needs."""
        return self._loop.descriptors()

    def renew(self) -> None:
        """In the parent: what the last child has is the child's; be ready for another."""
        self._loop.renew()

    def serve(
        self,
        listener: Optional[socket.socket] = None,
        stream: Optional[socket.socket] = None,
        *,
        pipes: Optional[Tuple[int, int]] = None,
    ) -> NoReturn:
        """See the function `serve`."""
        _settle_process()
        self._loop.run_until_complete(_serve(self._agent, listener, stream, pipes))
        child.kill_all()
        os._exit(0)


def serve(
    listener: Optional[socket.socket] = None,
    stream: Optional[socket.socket] = None,
    *,
    pipes: Optional[Tuple[int, int]] = None,
    contexts_factory: Optional[code_operations.Factory] = None,
) -> NoReturn:
    """Be the guest agent of this sandbox, until a shutdown or the end of the one stream; then exit.

    Serves the links that arrive at `listener`, one at a time, a new one in the place of the old; or the one `stream`;
    or the one link over `pipes`, the descriptors to read and to write. Call it in the main thread of a process that has
    no other and no running loop.
    """
    Ready(contexts_factory).serve(listener, stream, pipes=pipes)


def rehearse(turns: int = 40) -> None:
    """Do what every sandbox does first, over and over, in the process that sandboxes are forked of.

    The interpreter writes into code that it has not run often: counters, then instructions made for the types they meet (PEP
    659). Done here, no fork has to do it, and it runs faster there.
    """
    loop = forkable.Loop()
    try:
        for _ in range(turns):
            loop.run_until_complete(_rehearse())
    finally:
        loop.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))


async def _rehearse() -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as host:
        listener.bind("")  # any abstract name: nobody else connects to it
        listener.listen(1)
        host.connect(listener.getsockname())
        for frame in wire.encode_message(0, wire.HELLO, {"version": wire.VERSION}):
            host.send(frame)
        for channel, name in ((1, "sandbox.configure"), (3, "sandbox.shutdown")):
            for frame in wire.encode_message(channel, wire.OPEN, {"op": name, "env": {}, "default_user": "root"}):
                host.send(frame)
        await _serve(Agent(), listener, None, None)


async def _make(contexts_factory: Optional[code_operations.Factory], prepare_code: bool) -> "Agent":
    return Agent(contexts_factory, prepare_code=prepare_code)


async def _serve(
    agent: "Agent",
    listener: Optional[socket.socket],
    stream: Optional[socket.socket],
    pipes: Optional[Tuple[int, int]],
) -> None:
    agent.begin()
    if listener is not None:
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), agent.accept, listener)
    elif stream is not None:
        agent.connect(stream.fileno(), stream.fileno(), on_lost=agent.stop)
    elif pipes is not None:
        agent.connect(*pipes, on_lost=agent.stop)
    else:
        raise ValueError("the agent needs a listener, a stream or pipes")
    await agent.stopped.wait()
    if listener is not None:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    agent.disconnect()
    # The loop closes in steps, and a child that ends between two of them would find it half closed.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))


def _settle_process() -> None:
    """Make this process fit to be the agent: what it was started with must not matter."""
    ignore_signals()
    # Or a pipe of a program's would land on 0, 1 or 2, where its child puts its own.
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    os.umask(child.UMASK)
    with contextlib.suppress(OSError):
        os.chdir("/")
    # Fewer pages to copy at every fork, and less to look through.
    gc.freeze()


def ignore_signals() -> None:
    """Outlive what a program or a terminal may send. A zygote does it once for all its forks."""
    for number in _IGNORED:
        if _signal.getsignal(number) != _signal.SIG_IGN:  # not `signal`: it makes an enum of each number
            _signal.signal(number, _signal.SIG_IGN)


class Agent:
    """All that the agent is, between links too. Make it within the running loop."""

    def __init__(
        self, contexts_factory: Optional[code_operations.Factory] = None, *, prepare_code: bool = False
    ) -> None:
        self.stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_on_loose_exception)
        self._link: Optional[link.Link] = None
        self._tasks: Set["asyncio.Task[None]"] = set()
        self._hello: Dict[str, Any] = {}
        self._settings = settings.Settings()
        self._reaper = reaper.Reaper()
        self._code = code_operations.Code(self._settings, self._reaper, contexts_factory)
        self._prepare_code = prepare_code
        self._operations = self._table()

    def begin(self) -> None:
        """Take on what belongs to this very process; until then the agent is the same in every fork."""
        self._hello = {"version": wire.VERSION, "boot_id": os.urandom(16).hex(), "pid": os.getpid()}
        self._reaper.start()

    def accept(self, listener: socket.socket) -> None:
        """Take a new link in the place of the old."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        self.disconnect()
        self.connect(connection.fileno(), connection.fileno(), on_lost=connection.close)

    def connect(self, read_fd: int, write_fd: int, *, on_lost: Callable[[], None]) -> None:
        """Serve a link over these descriptors; `on_lost` is called once, when it is over."""
        self._link = link.Link(read_fd, write_fd, hello=self._hello, on_open=self._on_open, on_lost=on_lost)

    def disconnect(self) -> None:
        """End the link, if there is one."""
        if self._link is not None:
            self._link.close()

    def stop(self) -> None:
        """Have `serve` end."""
        self.stopped.set()

    def _table(self) -> Dict[str, Operation]:
        names = uploads.Names()
        process = processes.Processes(self._settings, self._reaper)
        watching = watch.Watches(self._settings, names)
        file = files.Files(self._settings, names, watching.catch_up)
        code = self._code
        return {
            "sandbox.configure": Operation(self._configure),
            "sandbox.env": Operation(self._env),
            "sandbox.metrics": Operation(metrics.Metrics().metrics),
            "sandbox.shutdown": Operation(self._shutdown),
            "process.start": Operation(process.start),
            "process.connect": Operation(process.connect),
            "process.list": Operation(process.list),
            "process.signal": Operation(process.signal),
            "process.input": Operation(process.input),
            "process.close_stdin": Operation(process.close_stdin),
            "process.resize": Operation(process.resize),
            "fs.stat": Operation(file.stat),
            "fs.list": Operation(file.list),
            "fs.make_dir": Operation(file.make_dir),
            "fs.move": Operation(file.move),
            "fs.remove": Operation(file.remove),
            "fs.read": Operation(file.read),
            "fs.write": Operation(file.write),
            "fs.watch": Operation(watching.watch),
            "fs.watcher_create": Operation(watching.create),
            "fs.watcher_events": Operation(watching.events),
            "fs.watcher_remove": Operation(watching.remove),
            "code.execute": Operation(code.execute, cancels_itself=True),
            "code.create_context": Operation(code.create),
            "code.list_contexts": Operation(code.list),
            "code.remove_context": Operation(code.remove),
            "code.restart_context": Operation(code.restart),
            "code.interrupt": Operation(code.interrupt),
            "net.dial": Operation(ports.Ports().dial),
        }

    def _on_open(self, channel: channels.Channel, message: Dict[str, Any]) -> None:
        name = message.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            channel.end_error("unimplemented", "the guest knows no such operation")
            return
        task = self._loop.create_task(_run(operation, message, channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not operation.cancels_itself:
            channel.on_cancel(task.cancel)

    async def _configure(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        self._settings.configure(params)
        if self._prepare_code:
            self._prepare_code = False
            self._loop.call_later(_AFTER_THE_ANSWER_S, self._code.prepare)
        return {}

    async def _env(self, _params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        return {"env": self._settings.env}

    async def _shutdown(self, _params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        channel.end_ok({})
        if self._link is not None:
            await self._link.drained(FAREWELL_S)
        self.stop()
        return {}


async def _run(operation: Operation, params: parameters.Parameters, channel: channels.Channel) -> None:
    """One operation from OPEN to END: whatever happens in it ends here."""
    try:
        channel.end_ok(await operation.handler(params, channel))
    except refusals.Refused as refused:
        channel.end_error(refused.code, refused.message)
    except asyncio.CancelledError:
        channel.end_error("canceled", "the request was canceled")
    except Exception as error:
        _complain(traceback.format_exc())
        channel.end_error("internal", f"the guest agent failed: {type(error).__name__}: {error}")


def _on_loose_exception(_loop: asyncio.AbstractEventLoop, context: Dict[str, Any]) -> None:
    """What no operation has caught: the agent goes on."""
    error = context.get("exception")
    lines: List[str] = [str(context.get("message"))]
    if isinstance(error, BaseException):
        lines += traceback.format_exception(type(error), error, error.__traceback__)
    _complain("\n".join(lines))


def _complain(text: str) -> None:
    """A few lines on stderr, for whoever looks after the runtime; nobody there must not matter."""
    with contextlib.suppress(OSError, ValueError):
        # A pipe that polls as writable takes PIPE_BUF bytes without blocking (pipe(7)).
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode("utf-8", "backslashreplace")[-MAX_COMPLAINT_BYTES:] + b"\n")
