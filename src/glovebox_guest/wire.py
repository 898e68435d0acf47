"""The guest link's protocol: many channels, each with flow control, over one duplex byte stream.

Pure: bytes in, frames out. Both ends use this module, and both take what arrives as hostile.

A frame on the stream, all integers big-endian:

     0        4          8      9       10
     +--------+----------+------+-------+----------------+
     | length | channel  | kind | flags | body           |
     |  u32   |  u32     |  u8  |  u8   | `length` bytes |
     +--------+----------+------+-------+----------------+

Channel 0 is the link itself (HELLO, PING, PONG). The host opens every other channel, with a number it has never
used on this link; the guest opens none. The life of a channel:

    host                                     guest
      ── OPEN  {"op": ..., parameters} ──────▶         JSON
      ◀─ EVENT {"event": ...} ────────────────         JSON, any number of them
      ◀─ DATA (stream 1 stdout, 2 stderr, 3 pty, 0 the only one) ──▶   raw bytes, either way
      ── EOF ─────────────────────────────────▶        no more DATA from this end; the other may go on (also ◀─)
      ── CREDIT u32 ──────────────────────────▶        "I have used up so many bytes" (also ◀─)
      ◀─ END   {"ok": {...}} or {"error": {"code", "message"}}        the answer; the channel is over
      ── CANCEL ──────────────────────────────▶        the host wants no more; the guest still answers with END

Flow control: each direction of each channel starts with INITIAL_CREDIT bytes. The bodies of DATA and EVENT frames
use it up, CREDIT gives it back once the receiver's *application* has taken them. A peer that sends past its credit
has broken the protocol. OPEN, END, EOF, CREDIT, CANCEL are not counted: there is at most one OPEN, END, EOF and
CANCEL per channel and direction, and CREDIT answers what was received.

A JSON message longer than one frame is split: every fragment but the last has the flag MORE. A message is at most
MAX_MESSAGE_BYTES. A peer that breaks any rule is a ProtocolError, after which the link is of no use.
"""

import json
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

VERSION = 1

HEADER = struct.Struct("!IIBB")
MAX_BODY_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
MAX_CHANNELS = 4096
INITIAL_CREDIT = 256 * 1024

HELLO, OPEN, EVENT, DATA, EOF, CREDIT, END, CANCEL, PING, PONG = range(1, 11)
_LINK_KINDS = frozenset((HELLO, PING, PONG))
_JSON_KINDS = frozenset((HELLO, OPEN, EVENT, END))
_EMPTY_KINDS = frozenset((EOF, CANCEL))

MORE = 0x80
STREAM_MASK = 0x03
ONLY, STDOUT, STDERR, PTY = range(4)

#: What END's error may say in `code`; anything else is read as "internal".
ERROR_CODES = frozenset(
    (
        "invalid_argument",
        "unauthenticated",  # no such user
        "permission_denied",
        "not_found",
        "already_exists",
        "failed_precondition",
        "resource_exhausted",
        "no_space",
        "deadline_exceeded",
        "canceled",
        "unavailable",  # nothing listens there
        "unimplemented",
        "internal",
    )
)


class ProtocolError(Exception):
    """The peer broke the protocol."""


class Frame(NamedTuple):
    """One frame as it stands on the stream."""

    channel: int
    kind: int
    flags: int
    body: bytes

    @property
    def stream(self) -> int:
        """Which of the channel's streams a DATA frame belongs to."""
        return self.flags & STREAM_MASK


def encode(channel: int, kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """One frame as bytes. A body over MAX_BODY_BYTES is a ValueError: split it first."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a frame's body is at most {MAX_BODY_BYTES} bytes, not {len(body)}")
    return HEADER.pack(len(body), channel, kind, flags) + body


def encode_message(channel: int, kind: int, message: Dict[str, Any]) -> Iterator[bytes]:
    """A JSON message as one or more frames.

    Raises ValueError when it is over MAX_MESSAGE_BYTES or cannot be JSON.
    """
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message is at most {MAX_MESSAGE_BYTES} bytes, not {len(body)}")
    for start in range(0, max(len(body), 1), MAX_BODY_BYTES):
        last = start + MAX_BODY_BYTES >= len(body)
        yield encode(channel, kind, body[start : start + MAX_BODY_BYTES], 0 if last else MORE)


def encode_credit(channel: int, amount: int) -> bytes:
    """A CREDIT frame that gives back `amount` bytes."""
    return encode(channel, CREDIT, struct.pack("!I", amount))


def decode_credit(frame: Frame) -> int:
    """The bytes that a CREDIT frame gives back (the decoder has checked the frame's form)."""
    return int(struct.unpack("!I", frame.body)[0])


def decode_message(body: bytes) -> Dict[str, Any]:
    """A JSON message's whole body as a dictionary; ProtocolError when it is not one."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


class Decoder:
    """Bytes in, frames out; never holds more than one frame and what was fed.

    After a ProtocolError the decoder stays broken: every further call raises it again.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken: Optional[ProtocolError] = None

    @property
    def buffered_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> List[Frame]:
        """All frames that are complete now. Raises ProtocolError."""
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        try:
            return self._take()
        except ProtocolError as error:
            self._broken = error
            self._buffer.clear()
            raise

    def _take(self) -> List[Frame]:
        frames: List[Frame] = []
        buffer, at = self._buffer, 0
        while len(buffer) - at >= HEADER.size:
            length, channel, kind, flags = HEADER.unpack_from(buffer, at)
            _check(length, channel, kind, flags)
            end = at + HEADER.size + length
            if end > len(buffer):
                break
            frames.append(Frame(channel, kind, flags, bytes(buffer[at + HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames


def _check(length: int, channel: int, kind: int, flags: int) -> None:
    """Refuse a frame by its header alone, before its body is waited for."""
    if length > MAX_BODY_BYTES:
        raise ProtocolError("a frame's body is too long")
    if not HELLO <= kind <= PONG:
        raise ProtocolError("a frame's kind is unknown")
    if (channel == 0) != (kind in _LINK_KINDS):
        raise ProtocolError("a frame's kind does not belong on its channel")
    allowed = STREAM_MASK if kind == DATA else MORE if kind in _JSON_KINDS else 0
    if flags & ~allowed:
        raise ProtocolError("a frame's flags do not belong to its kind")
    if kind == CREDIT and length != 4:
        raise ProtocolError("a CREDIT frame's body is four bytes")
    if kind in _EMPTY_KINDS and length:
        raise ProtocolError("a frame of this kind has no body")


class Assembler:
    """Puts the fragments of one channel's JSON messages together again, within MAX_MESSAGE_BYTES."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts = bytearray()
        self._kind = 0

    def add(self, frame: Frame) -> Optional[Dict[str, Any]]:
        """The message, when this frame ends it; None while fragments are missing. Raises ProtocolError."""
        if self._parts and frame.kind != self._kind:
            raise ProtocolError("a message's fragments are mixed with another's")
        if len(self._parts) + len(frame.body) > self._max_bytes:
            raise ProtocolError("a message is too long")
        if frame.flags & MORE:
            if not frame.body:
                raise ProtocolError("a fragment is empty")
            self._parts += frame.body
            self._kind = frame.kind
            return None
        body = bytes(self._parts) + frame.body if self._parts else frame.body
        self._parts.clear()
        return decode_message(body)


class Credit:
    """One direction's window, at either end: how much may still be sent, or still arrive."""

    def __init__(self, initial: int = INITIAL_CREDIT) -> None:
        self._initial = initial
        self.left = initial

    def spend(self, amount: int) -> None:
        """Use up `amount` bytes; ProtocolError when there are not so many (the receiver calls this)."""
        if amount > self.left:
            raise ProtocolError("more was sent than there was credit for")
        self.left -= amount

    def give(self, amount: int) -> None:
        """Give back `amount` bytes; ProtocolError when that is more than was ever used."""
        if amount == 0 or self.left + amount > self._initial:
            raise ProtocolError("more credit was given than was used")
        self.left += amount
