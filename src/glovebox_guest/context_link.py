"""What the agent and the process of a code context say to each other: JSON messages with a length before each.

     0        4
     +--------+----------------+
     | length | JSON object    |      length: u32, big-endian, of the object alone
     +--------+----------------+

    agent                                              context
      ── {"code", "env", "reset", "count"?} ────────────▶       run this
      ◀─ {"event": "started", "execution_count"} ────────       from now on SIGINT interrupts
      ◀─ {"event": "result", "is_main_result", "data"} ──       any number of them
      ◀─ {"event": "error", "name", "value", "traceback"}       at most one
      ◀─ {"event": "end"} ───────────────────────────────       from now on SIGINT is ignored

What the code prints does not come this way but through two pipes. The context runs the user's code, which can write
anything here: the agent takes nothing on trust, and kills a context that breaks these rules.
"""

import socket
import struct
from typing import Any, Dict, List, Optional

from glovebox_guest import wire

HEADER = struct.Struct("!I")
#: Below the guest link's own limit, so that whatever fits here fits there with the agent's words around it.
MAX_MESSAGE_BYTES = wire.MAX_MESSAGE_BYTES - 64 * 1024
READ_BYTES = 64 * 1024


def encode(message: Dict[str, Any]) -> bytes:
    """A message as it goes over the socket. Raises ValueError when it is too big or cannot be JSON."""
    try:
        body = wire.encode_json(message)
    except (TypeError, RecursionError) as error:
        raise ValueError("the message cannot be JSON") from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message is at most {MAX_MESSAGE_BYTES} bytes, not {len(body)}")
    return HEADER.pack(len(body)) + body


class Decoder:
    """Bytes in, messages out; holds no more than one unfinished message and what was fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Dict[str, Any]]:
        """All messages that are complete now. Raises wire.ProtocolError."""
        self._buffer += data
        messages: List[Dict[str, Any]] = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, at)
            if length > MAX_MESSAGE_BYTES:
                raise wire.ProtocolError("a context's message is too long")
            end = at + HEADER.size + length
            if end > len(self._buffer):
                break
            messages.append(wire.decode_message(bytes(self._buffer[at + HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return messages


def receive(connection: socket.socket) -> Optional[Dict[str, Any]]:
    """The context's end: wait for the next message; None when the agent is gone."""
    header = _read(connection, HEADER.size)
    if header is None:
        return None
    body = _read(connection, HEADER.unpack(header)[0])
    return None if body is None else wire.decode_message(body)


def _read(connection: socket.socket, size: int) -> Optional[bytes]:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), READ_BYTES * 16))
        if not piece:
            return None
        data += piece
    return bytes(data)
