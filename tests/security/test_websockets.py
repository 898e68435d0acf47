"""WebSockets as a way in or out: to a sandbox that is not one's own, past the checks of HTTP, and from inside at the server."""

import contextlib
import json
import pathlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets
from e2b_code_interpreter import Sandbox
from websockets.sync import client

from tests.support import hostile_http, port_service, servers

_PORT = 8080
_WITHIN_S = 30
_ASK = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
_HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def serving(server: servers.Server, sandbox: Sandbox) -> Sandbox:
    """A sandbox in which a service listens."""
    serve(server, sandbox)
    return sandbox


@pytest.fixture
def anybody(server: servers.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=_WITHIN_S) as found:
        yield found


def serve(server: servers.Server, box: Sandbox) -> None:
    box.files.write("/home/user/service.py", pathlib.Path(str(port_service.__file__)).read_text())
    box.commands.run(f"python3 /home/user/service.py {_PORT}", background=True, timeout=0)
    there = hostile_http.to_sandbox(box.sandbox_id, None, _PORT)
    with httpx.Client(base_url=server.url, headers=there, timeout=_WITHIN_S) as found:
        servers.wait_until(lambda: found.get("/state").status_code == 200, _WITHIN_S)


def connect(server: servers.Server, headers: dict[str, str], path: str = "/echo") -> client.ClientConnection:
    uri = server.url.replace("http", "ws") + path
    return client.connect(uri, additional_headers=headers, proxy=None)


def named(sandbox_id: str) -> str:
    return f"{_PORT}-{sandbox_id}.example.com"


def asking(host: str, path: str = "/echo", **more: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in (_ASK | more).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def state(anybody: httpx.Client, box: Sandbox) -> dict[str, Any]:
    found = anybody.get("/state", headers=hostile_http.to_sandbox(box.sandbox_id, None, _PORT))
    assert found.status_code == 200
    return dict(found.json())


def test_a_sandbox_that_ended_or_never_was(server: servers.Server, serving: Sandbox) -> None:
    there = hostile_http.to_sandbox(serving.sandbox_id, None, _PORT)
    with connect(server, there) as ws:
        ws.send("x")
        assert ws.recv() == "x"
    assert serving.kill()
    for sandbox_id in (serving.sandbox_id, "i" + "0" * 19, "x", "../x"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            connect(server, {**there, "E2b-Sandbox-Id": sandbox_id})
        assert refused.value.response.status_code == 502
        assert b"was not found" in (refused.value.response.body or b"")


def test_a_routing_header_cannot_move_a_named_websocket(
    server: servers.Server, serving: Sandbox, neighbour: Sandbox
) -> None:
    # Only in the sandbox of the header something listens; the host names the other one.
    there = hostile_http.to_sandbox(serving.sandbox_id, None, _PORT)
    answer = hostile_http.raw(server.url, asking(named(neighbour.sandbox_id), **there))
    assert hostile_http.statuses(answer) == [502]
    assert b"port is not open" in answer
    # And a stranger's host names none: the control plane has no such route, and asks who is there.
    assert hostile_http.statuses(hostile_http.raw(server.url, asking("attacker.example", **there)))[0] in (401, 404)


def test_the_fronts_behind_tokens_cannot_be_reached_around_them(server: servers.Server, serving: Sandbox) -> None:
    for port in (hostile_http.ENVD, hostile_http.CODE):
        for path in ("/", "/files?path=/etc/passwd", "/process.Process/List", "/execute"):
            with pytest.raises(websockets.InvalidStatus) as refused:
                connect(server, hostile_http.to_sandbox(serving.sandbox_id, None, port), path)
            assert refused.value.response.status_code in (401, 404, 405)


def test_no_request_hides_behind_an_upgrade(server: servers.Server, serving: Sandbox) -> None:
    host = named(serving.sandbox_id)
    refused = asking(host, "/refuse?status=404")
    for head in (asking(host), refused, asking("localhost", "/health")):
        answer = hostile_http.raw(server.url, head + _HIDDEN)
        assert hostile_http.statuses(answer) == [400]
    for head in (refused, asking("localhost", "/health")):
        answer = hostile_http.raw(server.url, [head, _HIDDEN])
        # The second packet is too late or too early: never a request.
        assert hostile_http.statuses(answer) in ([400], [404], [204])
    with accepted(server, serving) as raw:
        raw.sendall(b"\x88\x80\0\0\0\0" + _HIDDEN)
        assert rest(raw) == b"\x88\x00"


@pytest.mark.parametrize(
    "more",
    [
        {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"},
        {"Upgrade": "websocket, h2c", "Transfer-Encoding": "chunked"},
    ],
)
def test_an_upgrade_has_no_body(server: servers.Server, serving: Sandbox, more: dict[str, str]) -> None:
    head = asking(named(serving.sandbox_id), **more)
    answer = hostile_http.raw(server.url, head + b"0\r\n\r\n" + _HIDDEN, half_close=True)
    assert 101 not in hostile_http.statuses(answer)


def test_a_long_head_is_refused_all_the_same(server: servers.Server, serving: Sandbox) -> None:
    head = asking(named(serving.sandbox_id), **{"X-Long": "x" * 1_000_000})
    assert hostile_http.statuses(hostile_http.raw(server.url, head)) == [431]


def test_the_access_token_stays_outside(server: servers.Server, serving: Sandbox) -> None:
    token = str(serving._envd_access_token)
    there = hostile_http.to_sandbox(serving.sandbox_id, token, _PORT, E2b_Traffic_Access_Token="t")
    with connect(server, {**there, "X-Mine": "m"}, "/hello") as ws:
        seen = json.loads(ws.recv())["headers"]
    assert seen["x-mine"] == "m"
    assert token not in json.dumps(seen)
    assert not [name for name in seen if name.startswith("e2b-")]


def test_wrong_frames_from_inside_end_their_connection_only(
    server: servers.Server, anybody: httpx.Client, serving: Sandbox
) -> None:
    there = hostile_http.to_sandbox(serving.sandbox_id, None, _PORT)
    with connect(server, there) as other:
        wrong = ("8182000000005a", "c10161", "830161", "800161", "897e0100", "82ff" + "ff" * 8, "880103", "8101ff")
        for number, data in enumerate(wrong):
            with connect(server, there, f"/raw?hex={data}") as ws:
                with pytest.raises(websockets.ConnectionClosedError):
                    ws.recv(_WITHIN_S)
                assert ws.protocol.close_code == 1011
            servers.wait_until(lambda ended=number + 1: state(anybody, serving)["left"] >= ended, _WITHIN_S)
        other.send("still there")
        assert other.recv(_WITHIN_S) == "still there"
    assert serving.is_running()


def test_wrong_frames_from_outside_reach_nobody(
    server: servers.Server, anybody: httpx.Client, serving: Sandbox
) -> None:
    for number, wrong in enumerate((b"\x81\x01a", b"\xc1\x81\0\0\0\0a", b"\x83\x80\0\0\0\0", _HIDDEN)):
        with accepted(server, serving) as raw:
            raw.sendall(wrong)
            (code,) = struct.unpack("!H", rest(raw)[2:4])
        assert code == 1002
        servers.wait_until(lambda ended=number + 1: state(anybody, serving)["left"] >= ended, _WITHIN_S)
    assert state(anybody, serving)["closed_with"] is None


@contextlib.contextmanager
def accepted(server: servers.Server, box: Sandbox) -> Iterator[socket.socket]:
    """A connection right after its 101."""
    found = httpx.URL(server.url)
    assert found.port is not None
    with socket.create_connection((found.host, found.port), timeout=_WITHIN_S) as raw:
        raw.sendall(asking(named(box.sandbox_id)))
        head = b""
        while b"\r\n\r\n" not in head:
            assert (letter := raw.recv(1))
            head += letter
        assert hostile_http.statuses(head) == [101]
        yield raw


def rest(raw: socket.socket) -> bytes:
    said = b""
    while data := raw.recv(65536):
        said += data
    return said
