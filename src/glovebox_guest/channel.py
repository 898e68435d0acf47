"""One channel of the link as an operation's handler sees it: events and data out, data in, one answer at the end.

Everything a handler sends waits for the host's credit and for room in the writer's queue, so a slow host makes the
program wait and never makes the agent grow. Once the host has cancelled, or the link is lost, what is sent is dropped
without a word, and `receive` refuses.
"""

import asyncio
import collections
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple, Union

from glovebox_guest import refusals, wire

#: What a channel may have waiting for the link's writer.
MAX_QUEUED_BYTES = 128 * 1024
#: What a frame that waits costs beside its bytes.
FRAME_OVERHEAD_BYTES = 256
#: Credit is given back in pieces of at least this, to save frames; the sender still has the rest to go on with.
CREDIT_STEP_BYTES = wire.INITIAL_CREDIT // 4
MAX_ERROR_MESSAGE_CHARACTERS = 2000

Buffer = Union[bytes, memoryview]
Piece = Tuple[bytes, Buffer]


class Channel:
    """The guest's end of one channel. Made by the link; used by one handler and the tasks it starts."""

    def __init__(
        self, number: int, on_output: Callable[["Channel", int], None], on_end: Callable[["Channel"], None]
    ) -> None:
        self.number = number
        #: Set when the host has sent CANCEL or the link is lost.
        self.cancelled = asyncio.Event()
        self.ended = False
        self._on_output, self._on_end = on_output, on_end
        self._on_cancel: Optional[Callable[[], object]] = None
        self._turn = asyncio.Lock()
        self._torn = False
        self._credit = wire.Credit()
        self._window = wire.Credit()
        self._unreturned_bytes = 0
        self._inbox: Deque[bytes] = collections.deque()
        self._inbox_ended = False
        self._outbox: Deque[Piece] = collections.deque()
        self.queued_bytes = 0
        self._waiters: List["asyncio.Future[None]"] = []

    # What a handler calls.

    async def event(self, message: Dict[str, Any]) -> None:
        """Send an EVENT, in as many fragments as it needs. Refused `resource_exhausted` when it is too big for any."""
        try:
            body = memoryview(wire.encode_json(message))
        except ValueError as error:
            raise refusals.Refused("resource_exhausted", f"an event cannot be sent: {error}") from error
        async with self._turn:
            try:
                await self._send_fragments(body)
            except BaseException:
                # Interrupted between two fragments, perhaps: then only END may follow.
                self._torn = True
                raise
        self._wake()

    async def data(self, stream: int, data: bytes) -> None:
        """Send DATA on one of the channel's streams, however long it is."""
        async with self._turn:
            view = memoryview(data)
            while view and not self._is_mute():
                room = self._room()
                if not room:
                    await self._change()
                    continue
                piece = view[: min(room, wire.MAX_BODY_BYTES)]
                self._put(wire.DATA, piece, stream)
                view = view[len(piece) :]
        self._wake()

    @property
    def is_open(self) -> bool:
        """Whether what is sent may still reach somebody."""
        return not self._is_mute()

    def room(self) -> int:
        """How much DATA can be sent this moment without waiting."""
        return 0 if self._turn.locked() else self._room()

    async def wait_room(self) -> None:
        """Wait until there is room for some DATA, or nobody wants it any more."""
        while not self.room() and not self._is_mute():
            await self._change()

    def send_now(self, stream: int, data: bytes) -> None:
        """Send DATA within `room`, at once."""
        assert len(data) <= self.room(), "more than there is room for"
        if data and not self._is_mute():
            view = memoryview(data)
            for start in range(0, len(view), wire.MAX_BODY_BYTES):
                self._put(wire.DATA, view[start : start + wire.MAX_BODY_BYTES], stream)

    async def receive(self) -> Optional[bytes]:
        """The next DATA from the host; None at its EOF. Taking it gives the credit back."""
        await self._arrival()
        if not self._inbox:
            return None
        data = self._inbox.popleft()
        self._return_credit(len(data))
        return data

    async def receive_all(self) -> Optional[List[bytes]]:
        """All DATA that is there, waiting for some; None at the host's EOF."""
        await self._arrival()
        if not self._inbox:
            return None
        pieces = list(self._inbox)
        self._inbox.clear()
        self._return_credit(sum(map(len, pieces)))
        return pieces

    def send_eof(self) -> None:
        """Say that no more DATA comes from here."""
        if not self._is_mute():
            self._put(wire.EOF, b"", 0)

    def end_ok(self, answer: Dict[str, Any]) -> None:
        """End the channel with an answer; the first END counts."""
        try:
            self._end(wire.encode_json({"ok": answer}))
        except ValueError as error:
            self.end_error("resource_exhausted", f"the answer cannot be sent: {error}")

    def end_error(self, code: str, message: str) -> None:
        """End the channel with an error; the first END counts."""
        cut = message[:MAX_ERROR_MESSAGE_CHARACTERS]
        self._end(wire.encode_json({"error": {"code": code, "message": cut}}))

    # What the link calls.

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the channel is cancelled, at once if it has been."""
        self._on_cancel = callback
        if self.cancelled.is_set():
            callback()

    def take_frame(self, frame: wire.Frame) -> None:
        """A frame of the host's for this channel. Raises ProtocolError."""
        if frame.kind == wire.DATA:
            self._window.spend(len(frame.body))
            if self._inbox_ended:
                raise wire.ProtocolError("DATA after EOF")
            self._inbox.append(frame.body)
        elif frame.kind == wire.EOF:
            if self._inbox_ended:
                raise wire.ProtocolError("a second EOF")
            self._inbox_ended = True
        elif frame.kind == wire.CREDIT:
            self._credit.give(wire.decode_credit(frame))
        elif frame.kind == wire.CANCEL:
            if self.cancelled.is_set():
                raise wire.ProtocolError("a second CANCEL")
            self.cancel()
        else:
            raise wire.ProtocolError("a frame of this kind is the guest's to send")
        self._wake()

    def cancel(self) -> None:
        """Nobody wants what comes; safe to call twice."""
        if self.cancelled.is_set():
            return
        self.cancelled.set()
        self._inbox.clear()
        self._wake()
        if self._on_cancel is not None:
            self._on_cancel()

    def drop(self) -> None:
        """The link is lost: cancelled, and nothing that waits will be sent."""
        self.ended = True
        self._outbox.clear()
        self.queued_bytes = 0
        self.cancel()

    def take_pieces(self) -> Tuple[List[Buffer], bool]:
        """One frame (and a CREDIT, if one is due) for the writer, and whether there is more after it."""
        pieces: List[Buffer] = []
        if self._unreturned_bytes >= CREDIT_STEP_BYTES and not self.ended:
            self._window.give(self._unreturned_bytes)
            pieces.append(wire.encode_credit(self.number, self._unreturned_bytes))
            self._unreturned_bytes = 0
        if self._outbox:
            header, body = self._outbox.popleft()
            self.queued_bytes -= len(header) + len(body) + FRAME_OVERHEAD_BYTES
            pieces.append(header)
            if body:
                pieces.append(body)
            self._wake()
        return pieces, bool(self._outbox)

    # Inside.

    def _is_mute(self) -> bool:
        return self.ended or self._torn or self.cancelled.is_set()

    async def _send_fragments(self, body: memoryview) -> None:
        while body and not self._is_mute():
            room = self._room()
            # Not in crumbs: wait until a fragment is worth its header.
            if room < min(len(body), CREDIT_STEP_BYTES):
                await self._change()
                continue
            size = min(len(body), room, wire.MAX_BODY_BYTES)
            self._put(wire.EVENT, body[:size], wire.MORE if size < len(body) else 0)
            body = body[size:]

    def _room(self) -> int:
        return max(0, min(self._credit.left, MAX_QUEUED_BYTES - self.queued_bytes))

    def _put(self, kind: int, body: Buffer, flags: int) -> None:
        if kind in (wire.DATA, wire.EVENT):
            self._credit.spend(len(body))
        header = wire.HEADER.pack(len(body), self.number, kind, flags)
        self._outbox.append((header, body))
        cost = len(header) + len(body) + FRAME_OVERHEAD_BYTES
        self.queued_bytes += cost
        self._on_output(self, cost)

    def _end(self, body: bytes) -> None:
        if self.ended:
            return
        self._inbox.clear()
        view = memoryview(body)
        for start in range(0, len(view), wire.MAX_BODY_BYTES):
            more = start + wire.MAX_BODY_BYTES < len(view)
            self._put(wire.END, view[start : start + wire.MAX_BODY_BYTES], wire.MORE if more else 0)
        self.ended = True
        self._on_end(self)
        self._wake()

    def _return_credit(self, amount: int) -> None:
        self._unreturned_bytes += amount
        if self._unreturned_bytes >= CREDIT_STEP_BYTES:
            self._on_output(self, 0)

    async def _arrival(self) -> None:
        """Wait until there is DATA or EOF."""
        while self.cancelled.is_set() or not (self._inbox or self._inbox_ended):
            if self.cancelled.is_set() or self.ended:
                raise refusals.Refused("canceled", "the request was canceled")
            await self._change()

    async def _change(self) -> None:
        waiter: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
