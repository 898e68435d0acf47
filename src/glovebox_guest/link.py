"""The guest's end of the link: frames in to channels, frames out from them in turn.

The writer takes one frame of each channel that has some, round and round, and hands the kernel little at a time: what
one channel floods delays another's frame by one round. Nothing here waits: reading stops while more than
MAX_UNSENT_BYTES are unsent (a host that asks and does not read), and channels hold back what the writer has no room for.
"""

import asyncio
import collections
import mmap
import os
from typing import Any, Callable, Deque, Dict, List, Optional

from glovebox_guest import channel as channels
from glovebox_guest import wire

READ_BYTES = 256 * 1024
#: What the writer takes from the channels for one write.
BATCH_BYTES = 128 * 1024
BATCH_PIECES = 64
BATCHES_AT_ONCE = 4
#: Unsent frames, after which the link is not read until half of them are gone.
MAX_UNSENT_BYTES = 4 * 1024 * 1024

OnOpen = Callable[[channels.Channel, Dict[str, Any]], None]


class Link:
    """One link to a host, over a stream that is read and written through descriptors of the caller's.

    `on_open` is called with each new channel and its OPEN message; `on_lost` once, when the link is over.
    """

    def __init__(
        self, read_fd: int, write_fd: int, *, hello: Dict[str, Any], on_open: OnOpen, on_lost: Callable[[], None]
    ) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._on_open, self._on_lost = on_open, on_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.Decoder()
        # Anonymous memory comes page by page as it is used; a bytearray would be written full of zeros at once.
        self._input = mmap.mmap(-1, READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._greeted = False
        self._lost = False
        self._channels: Dict[int, channels.Channel] = {}
        self._opening: Dict[int, wire.Assembler] = {}
        self._own: Deque[bytes] = collections.deque(wire.encode_message(0, wire.HELLO, hello))
        self._unsent_bytes = sum(map(_own_cost, self._own))
        self._turns: "collections.OrderedDict[channels.Channel, None]" = collections.OrderedDict()
        self._batch: List[memoryview] = []
        self._drained: Optional["asyncio.Future[None]"] = None
        self._is_reading = False
        self._is_writing = False
        self._is_flush_due = False
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._read_on()
        self._flush_soon()

    def close(self) -> None:
        """End the link: all channels are dropped. The descriptors stay the caller's to close. Safe to call twice."""
        if self._lost:
            return
        self._lost = True
        self._stop_reading()
        self._stop_writing()
        for channel in list(self._channels.values()) + list(self._turns):
            channel.drop()
        self._channels.clear()
        self._opening.clear()
        self._turns.clear()
        self._batch.clear()
        self._settle_drained()
        self._on_lost()

    async def drained(self, timeout_s: float) -> None:
        """Wait until all that was sent is with the kernel, or the time is up, or the link is lost."""
        if self._lost or not (self._turns or self._own or self._batch):
            return
        self._drained = self._drained or self._loop.create_future()
        await asyncio.wait([self._drained], timeout=timeout_s)

    # Reading.

    def _on_readable(self) -> None:
        try:
            size = os.readv(self._read_fd, [self._input])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:
            self.close()
            return
        try:
            with memoryview(self._input) as view:
                for frame in self._decoder.feed(view[:size]):
                    self._take(frame)
                    if self._lost:
                        return
        except wire.ProtocolError:
            self.close()

    def _take(self, frame: wire.Frame) -> None:
        if not self._greeted:
            self._take_hello(frame)
        elif frame.channel == 0:
            if frame.kind != wire.PING:
                raise wire.ProtocolError("the link has been greeted, and the guest has not pinged")
            self._own.append(wire.encode(0, wire.PONG, frame.body))
            self._sent_more(_own_cost(self._own[-1]))
        elif frame.kind == wire.OPEN:
            self._take_open(frame)
        else:
            channel = self._channels.get(frame.channel)
            # What crossed the END of its channel on the way means nothing now.
            if channel is not None:
                channel.take_frame(frame)

    def _take_hello(self, frame: wire.Frame) -> None:
        if frame.kind != wire.HELLO or frame.flags:
            raise wire.ProtocolError("a link begins with HELLO")
        if wire.decode_message(frame.body).get("version") != wire.VERSION:
            raise wire.ProtocolError("the host speaks another version")
        self._greeted = True

    def _take_open(self, frame: wire.Frame) -> None:
        number = frame.channel
        if number in self._channels:
            raise wire.ProtocolError("a channel is opened twice")
        if number not in self._opening and len(self._channels) + len(self._opening) >= wire.MAX_CHANNELS:
            raise wire.ProtocolError("too many channels are open")
        message = self._opening.setdefault(number, wire.Assembler()).add(frame)
        if message is None:
            return
        del self._opening[number]
        channel = channels.Channel(number, self._on_output, self._on_end)
        self._channels[number] = channel
        self._on_open(channel, message)

    def _read_on(self) -> None:
        if not self._is_reading and not self._lost:
            self._is_reading = True
            self._loop.add_reader(self._read_fd, self._on_readable)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._read_fd)

    # Writing.

    def _on_end(self, channel: channels.Channel) -> None:
        self._channels.pop(channel.number, None)

    def _on_output(self, channel: channels.Channel, size: int) -> None:
        if self._lost:
            return
        self._turns.setdefault(channel)
        self._sent_more(size)

    def _sent_more(self, size: int) -> None:
        self._unsent_bytes += size
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._stop_reading()
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Write what this turn of the loop sends in one go."""
        if not self._is_writing and not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._lost:
            return
        for _ in range(BATCHES_AT_ONCE):
            if not self._batch:
                self._fill_batch()
            if not self._batch:
                self._stop_writing()
                self._settle_drained()
                return
            try:
                self._written(os.writev(self._write_fd, self._batch))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.close()
                return
        # More to write: when the kernel has room, and the others have had their turn.
        if not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._write_fd, self._flush)

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._write_fd)

    def _settle_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _fill_batch(self) -> None:
        size = 0
        while self._own and len(self._batch) < BATCH_PIECES:
            piece = self._own.popleft()
            self._unsent_bytes -= _own_cost(piece)
            self._batch.append(memoryview(piece))
            size += len(piece)
        while self._turns and size < BATCH_BYTES and len(self._batch) < BATCH_PIECES:
            channel, _ = self._turns.popitem(last=False)
            queued_bytes = channel.queued_bytes
            pieces, has_more = channel.take_pieces()
            self._unsent_bytes -= queued_bytes - channel.queued_bytes
            self._batch += map(memoryview, pieces)
            size += sum(map(len, pieces))
            if has_more:
                self._turns[channel] = None
        if self._unsent_bytes <= MAX_UNSENT_BYTES // 2:
            self._read_on()

    def _written(self, count: int) -> None:
        while count:
            first = self._batch[0]
            if count < len(first):
                self._batch[0] = first[count:]
                return
            count -= len(first)
            # Few pieces: taking the first off the list is cheap.
            del self._batch[0]


def _own_cost(piece: bytes) -> int:
    return len(piece) + channels.FRAME_OVERHEAD_BYTES
