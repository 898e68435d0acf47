"""One started program: its output pumped to whoever is subscribed, its input, and how it ends.

    running ── the leader exits ──▶ what its pipes hold is delivered ── or 0.2 s pass ──▶ ended ── 30 s ──▶ forgotten

A pump reads only when every subscriber has room, so the slowest makes the program wait. With no subscriber it reads
and drops. It goes on (dropping) after the end for as long as a grandchild holds the pipe: that one must not die of SIGPIPE.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
import time
from typing import Any, Callable, Dict, List, Optional, Set

from glovebox_guest import channel as channels
from glovebox_guest import readiness, refusals, spawn, wire

PIPE_CHUNK_BYTES = 32 * 1024
PTY_CHUNK_BYTES = 16 * 1024
GRACE_S = 0.2
DROP_PAUSE_S = 0.001


class Process:
    """A program that was started through the link. `on_end` is called once, when its end has been delivered."""

    def __init__(
        self,
        started: spawn.Started,
        request: spawn.Request,
        tag: Optional[str],
        exit_status: "asyncio.Future[int]",
        on_end: Callable[["Process"], None],
    ) -> None:
        self.pid = started.pid
        self.tag = tag
        self._request = request
        self.has_pty = request.pty is not None
        #: Set when `exit_status` is there and the output has been delivered: what END says.
        self.end: "asyncio.Future[Dict[str, Any]]" = asyncio.get_running_loop().create_future()
        self._exit_status = exit_status
        self._on_end = on_end
        self._stdin = started.stdin
        self._outputs = started.outputs
        self._subscribers: List[channels.Channel] = []
        self._input_turn = asyncio.Lock()
        self._input_waiter = readiness.Waiter()
        self._output_waiters = {output: readiness.Waiter() for output in started.outputs}
        self._owed_bytes = dict.fromkeys(started.outputs, 0)
        self._deadline: Optional[float] = None
        self._undelivered: Set[int] = set(started.outputs)
        self._looked_again: Set[int] = set()
        self._tasks: List["asyncio.Task[None]"] = []

    def run(self) -> None:
        """Begin to pump."""
        streams = [wire.PTY] if self.has_pty else [wire.STDOUT, wire.STDERR]
        loop = asyncio.get_running_loop()
        for output, stream in zip(self._outputs, streams):
            self._tasks.append(loop.create_task(self._pump(output, stream)))
        self._exit_status.add_done_callback(self._on_exit)

    @property
    def is_alive(self) -> bool:
        """Whether the pid is still this process's."""
        return not self._exit_status.done()

    @property
    def is_draining(self) -> bool:
        """Whether somebody else still holds its output."""
        return any(not task.done() for task in self._tasks)

    def describe(self) -> Dict[str, Any]:
        """What `process.list` says of it."""
        request = self._request
        return {
            "pid": self.pid,
            "argv": request.argv,
            "env": request.own_env,
            "cwd": request.given_cwd,
            "tag": self.tag,
        }

    async def follow(self, channel: channels.Channel) -> Dict[str, Any]:
        """Subscribe a channel until the end. The caller has sent it the start."""
        if self.end.done():
            return self.end.result()
        self._subscribers.append(channel)
        try:
            return await asyncio.shield(self.end)
        finally:
            self._subscribers.remove(channel)

    def signal(self, number: int) -> None:
        """Send a signal to the process itself, which must be alive."""
        os.kill(self.pid, number)

    async def write(self, data: bytes) -> None:
        """Write all of `data` to the program's input. Refused when it takes none."""
        async with self._input_turn:
            view = memoryview(data)
            while view:
                if self._stdin is None or not self.is_alive:
                    raise refusals.Refused("failed_precondition", "stdin is not open")
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    await self._input_waiter.writable(self._stdin)
                except OSError as error:
                    raise refusals.Refused("failed_precondition", "stdin is not open") from error

    async def close_stdin(self) -> None:
        """End the program's input, after what is being written."""
        if self.has_pty:
            raise refusals.Refused("failed_precondition", "error closing stdin: the process has a pty; send it 0x04")
        async with self._input_turn:
            self._shut_stdin()

    def resize(self, cols: int, rows: int) -> None:
        """Set the terminal's size."""
        if not self.has_pty:
            raise refusals.Refused("failed_precondition", "the process has no pty")
        if not self._outputs:
            raise refusals.Refused("failed_precondition", "the pty is closed")
        spawn.set_window_size(self._outputs[0], cols, rows)

    def abandon(self) -> None:
        """Stop draining what others write after the end."""
        for task in self._tasks:
            task.cancel()

    # Inside.

    def _shut_stdin(self) -> None:
        # A terminal's one descriptor belongs to its pump.
        if self._stdin is not None and not self.has_pty:
            os.close(self._stdin)
        self._stdin = None

    def _on_exit(self, _status: "asyncio.Future[int]") -> None:
        self._deadline = time.monotonic() + GRACE_S
        for output in self._undelivered:
            self._owed_bytes[output] = _waiting_bytes(output)
            self._output_waiters[output].wake()
        self._input_waiter.wake()
        if not self._input_turn.locked():
            self._shut_stdin()
        self._settle_end()

    async def _pump(self, output: int, stream: int) -> None:
        size = PTY_CHUNK_BYTES if self.has_pty else PIPE_CHUNK_BYTES
        try:
            while True:
                room = await self._wait_room(size)
                if output in self._undelivered and self._is_delivered(output):
                    self._delivered(output)
                try:
                    data = os.read(output, room)
                except BlockingIOError:
                    await self._wait_output(output)
                    continue
                except OSError:
                    break  # EIO: the last one has closed the terminal
                if not data:
                    break
                self._owed_bytes[output] -= len(data)
                await self._pass_on(output, stream, data)
        finally:
            if self.has_pty:
                self._stdin, self._outputs = None, ()
                self._input_waiter.wake()
            os.close(output)
            self._delivered(output)

    async def _pass_on(self, output: int, stream: int, data: bytes) -> None:
        if output not in self._undelivered or not self._subscribers:
            # Dropped. A flood that nobody wants must not have the agent's whole time.
            await asyncio.sleep(DROP_PAUSE_S if len(data) >= PTY_CHUNK_BYTES else 0)
            return
        for subscriber in self._subscribers:
            if subscriber.is_open:
                subscriber.send_now(stream, data)

    async def _wait_room(self, size: int) -> int:
        """How much every subscriber has room for, once that is something."""
        while True:
            waiting = [subscriber for subscriber in self._subscribers if subscriber.is_open]
            room = min([size, *(subscriber.room() for subscriber in waiting)])
            if room:
                return room
            for subscriber in waiting:
                await subscriber.wait_room()

    async def _wait_output(self, output: int) -> None:
        if self._deadline is None or output not in self._undelivered:
            await self._output_waiters[output].readable(output)
            return
        # The pipe is empty: all that was owed has been read.
        self._owed_bytes[output] = 0
        await self._output_waiters[output].readable(output, self._deadline - time.monotonic())

    def _is_delivered(self, output: int) -> bool:
        if self._deadline is None or self._owed_bytes[output] > 0 or time.monotonic() < self._deadline:
            return False
        if output not in self._looked_again:
            # Once more: a terminal's output is on its way for a moment, and the agent may have had no time to look.
            self._looked_again.add(output)
            self._owed_bytes[output] = _waiting_bytes(output)
        return self._owed_bytes[output] <= 0

    def _delivered(self, output: int) -> None:
        self._undelivered.discard(output)
        self._settle_end()

    def _settle_end(self) -> None:
        if self._undelivered or not self._exit_status.done() or self.end.done():
            return
        self.end.set_result(describe_end(self._exit_status.result()))
        self._on_end(self)


def describe_end(status: int) -> Dict[str, Any]:
    """What END says of a raw wait status."""
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        text = f"exit status {code}"
        return {"exit_code": code, "exited": True, "status": text, **({"error": text} if code else {})}
    number = os.WTERMSIG(status)
    name = None
    with contextlib.suppress(ValueError):
        name = signal.strsignal(number)
    text = f"signal: {(name or f'signal {number}').lower()}"
    if os.WCOREDUMP(status):
        text += " (core dumped)"
    return {"exit_code": -1, "exited": False, "status": text, "error": text}


def _waiting_bytes(descriptor: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0])
    except OSError:
        return 0
