"""One process of a code context as the agent holds it: forked warm, read without end, and ended when it must be.

The process is the user's: what comes from it is checked, what it does not send is not waited for without a bound, and
its output is read at the pace of whoever listens. While nobody does, it is read and dropped, so that what the code has
left in the background never blocks.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import termios
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Protocol

from glovebox_guest import child, context_link, kernel, refusals, wire

READ_BYTES = 64 * 1024
#: How long the beginning of a line may wait for its end: print() writes each part by itself, and a busy machine may put
#: the program aside between them. Nobody sees the delay; messages and the end of an execution do not wait for it.
LINE_PATIENCE_S = 0.02
INTERRUPT_PATIENCE_S = 5.0
LAST_TURNS = 8
DEATH_PATIENCE_S = 1.0
_STOPPED_LATE = "killed: it did not stop within 5 s of being interrupted"


class Channel(Protocol):
    """Who listens to an execution: what is used of `channel.Channel`."""

    cancelled: asyncio.Event

    async def event(self, message: Dict[str, Any]) -> None: ...

    async def data(self, stream: int, data: bytes) -> None: ...


class Execution:
    """One execution: who listens to it, and what is known of it so far."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.count = 0
        self.is_started = False
        self.has_error = False
        self.is_interrupted = False
        self.ended: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """It is over; twice is fine."""
        if not self.ended.done():
            self.ended.set_result(None)


class _Output:
    """One of the two pipes, and the beginning of a line that waits for its end."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.is_open = True
        self.held = b""
        self.held_since = 0.0

    def read(self) -> None:
        """Take what is there, up to READ_BYTES."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return
        self.is_open = bool(data)
        if not self.held:
            self.held_since = asyncio.get_running_loop().time()
        self.held += data

    def is_due(self) -> bool:
        """Whether what is held need not wait for more."""
        is_whole = self.held.endswith(b"\n") or len(self.held) >= READ_BYTES // 2
        return is_whole or asyncio.get_running_loop().time() >= self.held_since + LINE_PATIENCE_S

    def waiting_bytes(self) -> int:
        """How much is in the pipe this moment."""
        size = array.array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, size)
        return size[0]

    def take(self) -> bytes:
        held, self.held = self.held, b""
        return held


class ContextProcess:
    """A context's process, from fork to death."""

    def __init__(self, cwd: str, environment: Mapping[str, str], watch: Any) -> None:
        self._outputs = (_Output(wire.STDOUT), _Output(wire.STDERR))
        self._control, theirs = socket.socketpair()
        self._decoder = context_link.Decoder()
        self.is_fresh = True  # nothing has been executed yet
        self._is_connected = True
        self._unsent = memoryview(b"")
        self._execution: Optional[Execution] = None
        self._why: Optional[str] = None
        self._control.setblocking(False)
        stdout, stderr = self._outputs
        self.pid = self._fork(kernel.Start(theirs, stdout.theirs, stderr.theirs, cwd, environment))
        self._dead: "asyncio.Future[int]" = watch(self.pid)
        self._woken = asyncio.Event()
        self._pump = asyncio.get_running_loop().create_task(self._run())

    def _fork(self, start: kernel.Start) -> int:
        try:
            pid = child.fork()
            if pid == 0:
                _become(start)
        except OSError as error:
            self._close()
            raise refusals.Refused("resource_exhausted", f"a context cannot be started: {error.strerror}") from error
        finally:
            start.control.close()
            os.close(start.stdout_fd)
            os.close(start.stderr_fd)
        return pid

    @property
    def is_alive(self) -> bool:
        """Whether it can take another execution."""
        return not self._pump.done() and not self._dead.done() and self._why is None

    async def execute(self, execution: Execution, request: Dict[str, Any]) -> None:
        """Run one piece of code to its end, or to the process's."""
        self._execution, self.is_fresh = execution, False
        watcher = asyncio.get_running_loop().create_task(self._interrupt_when_cancelled(execution))
        try:
            self._unsent = memoryview(context_link.encode(request))
            self._send()
            self._woken.set()  # the pump sends what is left
            await asyncio.wait((execution.ended, self._pump), return_when=asyncio.FIRST_COMPLETED)
            if not execution.ended.done():
                await self._report_death(execution)
        finally:
            watcher.cancel()
            self._execution = None
            if not execution.ended.done():
                self.kill("the execution was abandoned")

    def interrupt(self) -> None:
        """Interrupt what runs, if something does; kill the process if that does not end in time."""
        execution = self._execution
        if execution is None or execution.ended.done():
            return
        if not execution.is_interrupted:
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(INTERRUPT_PATIENCE_S, self.kill, _STOPPED_LATE)
            execution.ended.add_done_callback(lambda _: deadline.cancel())
            self._pump.add_done_callback(lambda _: deadline.cancel())
        execution.is_interrupted = True
        # Before it has started, a signal would be lost: it is sent when it has.
        if execution.is_started:
            self._signal(signal.SIGINT)

    def kill(self, why: str) -> None:
        """End it and the programs it has started; `why` is told to whoever listens. Safe to call twice."""
        if self._why is None:
            self._why = why
        self._signal(signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has been killed and its last output was read."""
        await asyncio.wait((self._pump,))

    def _signal(self, number: int) -> None:
        # Safety: while `_dead` is not done the pid has not been reaped, so its number is nobody else's.
        if self._dead.done():
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # It has only just been forked and is not its group's leader yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _interrupt_when_cancelled(self, execution: Execution) -> None:
        await execution.channel.cancelled.wait()
        self.interrupt()

    async def _report_death(self, execution: Execution) -> None:
        how = self._why or (_how(self._dead.result()) if self._dead.done() else "it broke off the connection")
        if not execution.has_error:
            execution.has_error = True
            await execution.channel.event(
                {"event": "error", "name": "ContextDied", "value": how, "traceback": f"ContextDied: {how}"}
            )
        execution.end()

    # The pump.

    async def _run(self) -> None:
        try:
            while not self._dead.done():
                await self._wait()
                await self._turn()
            # What it sent before it died: no more than a socket's buffer holds.
            for _ in range(LAST_TURNS):
                await self._turn()
        except (wire.ProtocolError, refusals.Refused) as error:
            self.kill(f"killed: it sent what no context sends ({error})")
        except Exception as error:
            # Whatever a hostile context brings about ends that context, and never the agent's care for it.
            self.kill(f"killed: what came from it could not be handled ({type(error).__name__})")
        finally:
            self._signal(signal.SIGKILL)
            self._close()

    async def _wait(self) -> None:
        """Wait until there is something to read, a line has waited long enough, or the process is dead."""
        loop = asyncio.get_running_loop()
        self._woken.clear()
        control = self._control.fileno()
        descriptors = [output.fd for output in self._outputs if output.is_open]
        if self._is_connected:
            descriptors.append(control)
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._woken.set)
        self._dead.add_done_callback(self._wake)
        if self._unsent:
            loop.add_writer(control, self._woken.set)
        held = [output.held_since for output in self._outputs if output.held]
        patience = loop.call_at(min(held) + LINE_PATIENCE_S, self._woken.set) if held else None
        try:
            await self._woken.wait()
        finally:
            if patience is not None:
                patience.cancel()
            self._dead.remove_done_callback(self._wake)
            loop.remove_writer(control)
            for descriptor in descriptors:
                loop.remove_reader(descriptor)

    def _wake(self, _: object) -> None:
        self._woken.set()

    async def _turn(self) -> None:
        """Take what has come, once; what was printed before a message goes before it."""
        self._send()
        messages = self._receive()
        is_last = bool(messages) or self._dead.done()
        for output in self._outputs:
            if is_last:
                await self._drain(output)
            elif output.is_open:
                output.read()
            if output.held and (is_last or output.is_due()):
                await self._forward(output)
        for message in messages:
            await self._take(message)

    def _send(self) -> None:
        """Send what the socket takes of the request."""
        if not self._unsent:
            return
        try:
            self._unsent = self._unsent[self._control.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            # A process that is dying will not read it; its death is told soon.
            self._unsent = memoryview(b"")

    def _receive(self) -> List[Dict[str, Any]]:
        if not self._is_connected:
            return []
        try:
            data = self._control.recv(context_link.READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            # Mostly it has just ended, and its death is told in a moment.
            self._is_connected = False
            asyncio.get_running_loop().call_later(DEATH_PATIENCE_S, self.kill, "killed: it closed its connection")
        return self._decoder.feed(data)

    async def _drain(self, output: _Output) -> None:
        """Forward what is in the pipe now, and not what comes meanwhile: something in the background may never stop."""
        left = output.waiting_bytes()
        while left > 0 and output.is_open:
            before = len(output.held)
            output.read()
            left -= len(output.held) - before
            await self._forward(output)

    async def _forward(self, output: _Output) -> None:
        data = output.take()
        if data and self._execution is not None:
            await self._execution.channel.data(output.stream, data)

    async def _take(self, message: Dict[str, Any]) -> None:
        """One message of the context's, checked. What comes while nothing runs is dropped."""
        event = message.get("event")
        if event == "result":
            await self._on_result(message)
        elif event == "error":
            await self._on_error(message)
        elif event == "started":
            await self._on_started(message)
        elif event != "end":
            raise wire.ProtocolError("a message of no known kind")
        elif self._execution is not None:
            self._execution.end()
            # From here on nobody listens.
            self._execution = None

    async def _on_started(self, message: Dict[str, Any]) -> None:
        count = message.get("execution_count")
        if type(count) is not int or not 0 <= count < 2**53:
            raise wire.ProtocolError("an execution count that is none")
        execution = self._execution
        if execution is None or execution.is_started:
            return
        execution.count, execution.is_started = count, True
        if execution.is_interrupted:
            self._signal(signal.SIGINT)
        await execution.channel.event({"event": "started", "execution_count": count})

    async def _on_result(self, message: Dict[str, Any]) -> None:
        data, is_main_result = message.get("data"), message.get("is_main_result")
        if not isinstance(data, dict) or not isinstance(is_main_result, bool):
            raise wire.ProtocolError("a result that is none")
        if self._execution is not None:
            await self._execution.channel.event({"event": "result", "is_main_result": is_main_result, "data": data})

    async def _on_error(self, message: Dict[str, Any]) -> None:
        words = {name: message.get(name) for name in ("name", "value", "traceback")}
        if not all(isinstance(word, str) for word in words.values()):
            raise wire.ProtocolError("an error that is none")
        execution = self._execution
        if execution is not None and not execution.has_error:
            execution.has_error = True
            await execution.channel.event({"event": "error", **words})

    def _close(self) -> None:
        self._control.close()
        for output in self._outputs:
            with contextlib.suppress(OSError):
                os.close(output.fd)


def _become(start: kernel.Start) -> NoReturn:
    """The child's side of the fork."""
    try:
        kernel.run(start)
    finally:
        os._exit(70)


_SIGNALS = {
    signal.SIGKILL: "out of memory?",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "arithmetic error",
    signal.SIGILL: "illegal instruction",
    signal.SIGSYS: "forbidden system call",
}


def _how(status: int) -> str:
    """How a process ended, by its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        meaning = {int(known): words for known, words in _SIGNALS.items()}.get(number)
        return f"killed by signal {number}" + (f" ({meaning})" if meaning else "")
    return f"exited with status {os.WEXITSTATUS(status)}"
