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
MAX_MESSAGE_BYTES of strict UTF-8, and at most MAX_MESSAGE_VALUES values once it is long: a few bytes of JSON can be a
hundred bytes of objects. END may come before the last fragment of an EVENT, which then never was: the sender may be
cancelled while it waits for credit. DATA without a body means nothing and is dropped. A peer that breaks any rule is a
ProtocolError, after which the link is of no use.
"""

import json
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

VERSION = 1

HEADER = struct.Struct("!IIBB")
MAX_BODY_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
MAX_MESSAGE_VALUES = 500_000
MAX_PING_BYTES = 64
MAX_CHANNELS = 4096
INITIAL_CREDIT = 256 * 1024

HELLO, OPEN, EVENT, DATA, EOF, CREDIT, END, CANCEL, PING, PONG = range(1, 11)
_LINK_KINDS = frozenset((HELLO, PING, PONG))
_JSON_KINDS = frozenset((HELLO, OPEN, EVENT, END))
_EMPTY_KINDS = frozenset((EOF, CANCEL))
_PING_KINDS = frozenset((PING, PONG))

#: Shorter messages are not counted: all their values together are small.
_COUNTED_FROM_BYTES = 1024 * 1024

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


def encode_json(message: Dict[str, Any], *, lossy: bool = True) -> bytes:
    """A JSON message's whole body.

    Half characters (lone surrogates: odd file names, odd strings of programs) become `?`, or, where `lossy` is false, are
    a ValueError. So is a message over MAX_MESSAGE_BYTES or MAX_MESSAGE_VALUES, or one that cannot be JSON.
    """
    text = json.dumps(message, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    body = text.encode("utf-8", "replace" if lossy else "strict")
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message is at most {MAX_MESSAGE_BYTES} bytes, not {len(body)}")
    if _holds_too_many_values(body):
        raise ValueError(f"a message holds at most {MAX_MESSAGE_VALUES} values")
    return body


def encode_message(channel: int, kind: int, message: Dict[str, Any]) -> Iterator[bytes]:
    """A JSON message as one or more frames. Raises ValueError as `encode_json` does, which is not `lossy` here."""
    body = encode_json(message, lossy=False)
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
    if _holds_too_many_values(body):
        raise ProtocolError("a message holds too many values")
    try:
        # Decoded here: given bytes, json would also take UTF-16, UTF-32 and bytes that are no text at all.
        message = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _holds_too_many_values(body: bytes) -> bool:
    """Whether a long message would become far more objects than its length says; linear, and without a parser."""
    if len(body) < _COUNTED_FROM_BYTES or _separators(body) <= MAX_MESSAGE_VALUES:
        return False
    # Most of them may stand inside strings. Without its escapes, every other quote of the text ends a string.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * MAX_MESSAGE_VALUES:
        return True
    return _separators(b"".join(plain.split(b'"')[::2])) > MAX_MESSAGE_VALUES


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


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

    def feed(self, data: Union[bytes, bytearray, memoryview]) -> List[Frame]:
        """All frames that are complete now. Raises ProtocolError."""
        if self._broken is not None:
            raise self._broken
        try:
            if not self._buffer:
                with memoryview(data) as view:
                    frames, at = _take(view)
                    self._buffer += view[at:]
                return frames
            self._buffer += data
            # The view must be gone before the buffer can shrink.
            with memoryview(self._buffer) as view:
                frames, at = _take(view)
            del self._buffer[:at]
            return frames
        except ProtocolError as error:
            # Without the traceback: its frames would keep what was fed alive.
            self._broken = error.with_traceback(None)
            self._buffer.clear()
            raise


def _take(view: memoryview) -> Tuple[List[Frame], int]:
    """The complete frames in `view`, and where they end."""
    frames: List[Frame] = []
    at, size = 0, len(view)
    while size - at >= HEADER.size:
        length, channel, kind, flags = HEADER.unpack_from(view, at)
        _check(length, channel, kind, flags)
        start = at + HEADER.size
        end = start + length
        if end > size:
            break
        if length or kind != DATA:
            frames.append(Frame(channel, kind, flags, bytes(view[start:end])))
        at = end
    return frames, at


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
    if kind in _PING_KINDS and length > MAX_PING_BYTES:
        raise ProtocolError("a PING is too long")
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
            if frame.kind != END:
                raise ProtocolError("a message's fragments are mixed with another's")
            self._parts.clear()
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
