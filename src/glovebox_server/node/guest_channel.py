"""One channel of a guest link, at the host's end: what has arrived and is not taken yet, and the credit both ways.

Frames come in through `feed`, which never waits and keeps only what the credit and the link's memory budget allow.
The application takes them out with `receive`; only then are messages put together and read as JSON, and only then is
their credit given back. So a caller that is slow, or gone, holds at most its own window, and the time to read a
message is spent in the task that asked for it.

    open ──END──▶ over                    receive() gives what is queued, then the answer
      └─cancel()─▶ cancelled ──END──▶ over    what arrives is checked, counted against the window, and dropped
"""

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.node import guest_replies

#: What a queued frame costs beside its body, roughly: so that many tiny ones are not free.
ITEM_BYTES = 256
#: DATA up to this size is put together with what is already queued, up to a frame's size.
_SMALL_BYTES = 4096
_CREDIT_BATCH = wire.INITIAL_CREDIT // 4

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Bytes of one of the channel's streams."""

    stream: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A message of the guest: a JSON object, of which nothing is known yet."""

    message: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Eof:
    """The guest sends no more data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The operation has succeeded, and the channel is over."""

    ok: Mapping[str, Any]


Item = Data | Event | Eof | Answer


class Budget:
    """How much memory a whole link may hold in what nobody has taken yet, beside the credit windows."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self, amount: int) -> None:
        """Count `amount` bytes; ProtocolError when that is too much."""
        self.held_bytes += amount
        if self.held_bytes > self._limit_bytes:
            raise wire.ProtocolError("more was sent than may be held unread")

    def free(self, amount: int) -> None:
        """Count `amount` bytes no longer."""
        self.held_bytes -= amount


class Outlet(Protocol):
    """What a channel needs of its link."""

    def write(self, data: bytes) -> None:
        """Send, or keep for sending; never waits. Nothing happens on a link that is closed."""

    async def drain(self) -> None:
        """Wait until the peer takes what is sent. Raises SandboxGoneError."""

    def violated(self, reason: str) -> None:
        """The guest broke the protocol: close the link and have the sandbox ended."""

    def forgotten(self) -> None:
        """The channel has been cancelled and waits for its END."""


@dataclasses.dataclass(slots=True)
class _Chunk:
    """DATA that waits to be taken."""

    stream: int
    data: bytes | bytearray


class Channel:
    """One operation under way."""

    def __init__(self, number: int, outlet: Outlet, budget: Budget, max_message_bytes: int) -> None:
        self.number = number
        self.cancelled = False
        self._outlet = outlet
        self._budget = budget
        self._held_bytes = self._partial_bytes = 0
        self._inbox: collections.deque[_Chunk | wire.Frame] = collections.deque()
        self._assembler = wire.Assembler(max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._incoming = wire.Credit()
        self._outgoing = wire.Credit()
        self._taken_bytes = 0
        self._end_bytes = 0
        self._saw_eof = self._ending = self._over = False
        self._error: errors.SandboxGoneError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []

    # --- the link's side: never waits, raises ProtocolError ---

    def feed(self, frame: wire.Frame) -> bool:
        """Take a frame of this channel; True when it was the last one. Raises ProtocolError."""
        if frame.kind == wire.DATA:
            self._on_data(frame)
        elif frame.kind == wire.EVENT:
            self._on_event(frame)
        elif frame.kind == wire.CREDIT:
            self._outgoing.give(wire.decode_credit(frame))
            _wake(self._writers)
        elif frame.kind == wire.EOF:
            self._on_eof(frame)
        elif frame.kind == wire.END:
            return self._on_end(frame)
        else:
            raise wire.ProtocolError("the guest may not send frames of this kind")
        return False

    def fail(self, error: errors.SandboxGoneError) -> None:
        """The link is no more. What came before a mere loss can still be taken; nothing of a guest that lied."""
        self._error = error
        if isinstance(error, errors.GuestProtocolError):
            self._drop()
        self._wake_all()

    def _on_data(self, frame: wire.Frame) -> None:
        if self._saw_eof or self._ending:
            raise wire.ProtocolError("data was sent after its end")
        self._incoming.spend(len(frame.body))
        if not self.cancelled and not self._merge(frame):
            self._queue(_Chunk(frame.stream, frame.body), ITEM_BYTES)

    def _merge(self, frame: wire.Frame) -> bool:
        """Append small data to what is queued already, so that a million little writes stay little."""
        last = self._inbox[-1] if self._inbox else None
        if not isinstance(last, _Chunk) or last.stream != frame.stream or len(frame.body) > _SMALL_BYTES:
            return False
        if len(last.data) + len(frame.body) > wire.MAX_BODY_BYTES:
            return False
        if isinstance(last.data, bytes):
            last.data = bytearray(last.data)
        last.data += frame.body
        return True

    def _on_event(self, frame: wire.Frame) -> None:
        if self._ending:
            raise wire.ProtocolError("an event was sent after the end")
        if not frame.body:
            raise wire.ProtocolError("a message is empty")
        self._incoming.spend(len(frame.body))
        if not self.cancelled:
            self._queue(frame, ITEM_BYTES)

    def _on_eof(self, frame: wire.Frame) -> None:
        if self._saw_eof or self._ending:
            raise wire.ProtocolError("the end of data was sent twice")
        self._saw_eof = True
        if not self.cancelled:
            self._queue(frame, ITEM_BYTES)

    def _on_end(self, frame: wire.Frame) -> bool:
        self._ending = True
        self._end_bytes += len(frame.body)
        if not frame.body or self._end_bytes > self._max_message_bytes:
            raise wire.ProtocolError("an answer is empty or too long")
        if not self.cancelled:
            self._queue(frame, ITEM_BYTES + len(frame.body))
        self._over = not frame.flags & wire.MORE
        if self._over:
            _wake(self._writers)
        return self._over

    def _queue(self, item: _Chunk | wire.Frame, cost: int) -> None:
        self._hold(cost)
        self._inbox.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- the application's side ---

    async def receive(self) -> Item:
        """The next item; the last one is the Answer. One task at a time.

        Raises GuestError when the guest refused, SandboxGoneError when the link is lost.
        """
        while True:
            while self._inbox:
                item = self._take(self._inbox.popleft())
                if item is not None:
                    return item
            if self._error is not None:
                raise type(self._error)(str(self._error))
            if self.cancelled or self._over:
                raise errors.GuestError("canceled", "the operation is over")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    async def answer(self) -> Mapping[str, Any]:
        """What END says, where nothing else may come before it (data and events are a broken protocol)."""
        item = await self.receive()
        if not isinstance(item, Answer):
            raise self.violation("something else came than the answer")
        return item.ok

    async def send(self, data: bytes, stream: int = wire.ONLY) -> bool:
        """Send bytes, as fast as the guest takes them; False when the guest has ended the channel meanwhile."""
        view = memoryview(data)
        while view and not self._over:
            self._check_usable()
            if not self._outgoing.left:
                await self._wait_for_credit()
                continue
            await self._outlet.drain()
            # Others may have been served while this one waited: look again at what is left.
            size = min(len(view), self._outgoing.left, wire.MAX_BODY_BYTES)
            if size and not self._over:
                self._outgoing.left -= size
                self._outlet.write(wire.encode(self.number, wire.DATA, bytes(view[:size]), stream))
                view = view[size:]
        return not self._over

    def send_eof(self) -> None:
        """Say that no more data will come from here."""
        if not self._over and not self.cancelled:
            self._outlet.write(wire.encode(self.number, wire.EOF))

    def cancel(self) -> None:
        """Want no more: what is queued and what still comes is dropped. Safe at any time, and twice."""
        if self.cancelled:
            return
        self.cancelled = True
        self._drop()
        if not self._over and self._error is None:
            self._outlet.write(wire.encode(self.number, wire.CANCEL))
            self._outlet.forgotten()
        self._wake_all()

    def check(self, parse: Callable[[Any], T], message: Any) -> T:
        """`parse(message)`, where a ProtocolError ends the link and comes out as GuestProtocolError."""
        try:
            return parse(message)
        except wire.ProtocolError as error:
            raise self.violation(str(error)) from error

    def violation(self, reason: str) -> errors.GuestProtocolError:
        """End the link because of what this channel brought; the error is for the caller to raise."""
        self._outlet.violated(reason)
        return errors.GuestProtocolError(reason)

    def _take(self, item: _Chunk | wire.Frame) -> Item | None:
        if isinstance(item, _Chunk):
            self._free(ITEM_BYTES)
            self._give_back(len(item.data))
            return Data(item.stream, bytes(item.data))
        if item.kind == wire.EOF:
            self._free(ITEM_BYTES)
            return Eof()
        message = self.check(self._assemble, item)
        if item.kind == wire.EVENT:
            self._give_back(len(item.body))
        if message is None:
            return None
        if item.kind == wire.EVENT:
            return Event(message)
        return Answer(self.check(guest_replies.ok_or_raise, message))

    def _assemble(self, frame: wire.Frame) -> dict[str, Any] | None:
        message = self._assembler.add(frame)
        # A fragment is held on, in the assembler now; an event's body has left its window by that.
        self._partial_bytes += ITEM_BYTES + len(frame.body)
        if frame.kind == wire.EVENT:
            self._hold(len(frame.body))
        if message is not None:
            self._free(self._partial_bytes)
            self._partial_bytes = 0
        return message

    def _give_back(self, size: int) -> None:
        """Count what the application has taken, and tell the guest of it now and then."""
        self._taken_bytes += size
        if self._taken_bytes >= _CREDIT_BATCH and not self._ending and self._error is None:
            self._incoming.give(self._taken_bytes)
            self._outlet.write(wire.encode_credit(self.number, self._taken_bytes))
            self._taken_bytes = 0

    def _check_usable(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error))
        if self.cancelled:
            raise errors.GuestError("canceled", "the operation is over")

    async def _wait_for_credit(self) -> None:
        writer = asyncio.get_running_loop().create_future()
        self._writers.append(writer)
        try:
            await writer
        finally:
            if writer in self._writers:
                self._writers.remove(writer)

    def _hold(self, amount: int) -> None:
        self._held_bytes += amount
        self._budget.hold(amount)

    def _free(self, amount: int) -> None:
        self._held_bytes -= amount
        self._budget.free(amount)

    def _drop(self) -> None:
        self._inbox.clear()
        self._assembler = wire.Assembler(self._max_message_bytes)
        self._partial_bytes = 0
        self._free(self._held_bytes)

    def _wake_all(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        _wake(self._writers)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
