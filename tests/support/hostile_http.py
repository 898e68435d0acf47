"""Speaking HTTP badly on purpose: bytes written as they are, and what comes back."""

import json
import re
import socket
import struct
import urllib.parse
from collections.abc import Iterable, Mapping

ENVD, CODE = 49983, 49999
_WITHIN_S = 60.0


def raw(url: str, data: bytes | Iterable[bytes], *, half_close: bool = False) -> bytes:
    """What the server answers to these bytes until it closes, or b"" when it only closes."""
    found = urllib.parse.urlsplit(url)
    assert found.hostname is not None
    with socket.create_connection((found.hostname, found.port or 80), timeout=_WITHIN_S) as connection:
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it had heard enough; its answer can be read all the same
        return _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    answer = bytearray()
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return bytes(answer)


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """One request that closes its connection, as bytes."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def statuses(answer: bytes) -> list[int]:
    """The statuses of all answers on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def to_sandbox(sandbox_id: str, token: str | None, port: int = ENVD, **extra: str) -> dict[str, str]:
    """The headers of a request to a sandbox through one URL for all."""
    found = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}
    if token is not None:
        found["X-Access-Token"] = token
    return found | {name.replace("_", "-"): value for name, value in extra.items()}


def envelope(message: bytes | object, flags: int = 0, length: int | None = None) -> bytes:
    """A Connect envelope; `length` is what it says, true or not."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body) if length is None else length) + body
