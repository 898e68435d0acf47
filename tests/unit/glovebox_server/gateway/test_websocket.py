"""WebSockets through the gateway: a real client outside, a service of a few lines inside."""

import asyncio
import contextlib
import json
import pathlib
import struct

import hypothesis
import hypothesis.strategies as st
import pytest
import websockets
from websockets.asyncio import client
from wsproto import frame_protocol, utilities

from glovebox import errors
from glovebox_server.gateway import websocket
from tests.support import port_service, server

_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
_ACCEPT = utilities.generate_accept_token(_KEY)
_PIECE = 64 * 1024


@contextlib.asynccontextmanager
async def inside(world, box, answer=None):
    """A service on the sandbox's port 8080."""
    service = port_service.Service()
    served = await asyncio.start_server(answer or service.serve, "127.0.0.1", 0)
    world.guest(box["sandboxID"]).servers[8080] = served.sockets[0].getsockname()[1]
    async with served:
        yield service


def address(world):
    host, _, port = world.url.removeprefix("http://").partition(":")
    return {"host": host, "port": int(port)}


def connect(world, box, path="/echo", **options):
    """A client that finds its sandbox by name."""
    uri = f"ws://8080-{box['sandboxID']}.example.com{path}"
    return client.connect(uri, **address(world), proxy=None, max_size=None, **options)


def by_headers(box, port=8080):
    return {"E2b-Sandbox-Id": box["sandboxID"], "E2b-Sandbox-Port": str(port)}


async def accepted(reader, writer):
    """Accept whatever WebSocket is asked for."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    port_service.Service().accept(writer, {"headers": {"sec-websocket-key": key}})


# Both ways, whole


async def test_text_binary_and_fragments(world, box):
    async with inside(world, box), connect(world, box) as ws:
        for message in ("text é€😀", b"\x00\xff", "", b"", "x" * 125, b"y" * 126, b"z" * 70_000):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send(["a", "b€", "c"])
        assert [piece async for piece in ws.recv_streaming()] == ["a", "b€", "c", ""]


async def test_a_message_of_many_mebibytes(world, box):
    async with inside(world, box), connect(world, box) as ws:
        for message in (bytes(range(256)) * 32_768, "é€😀x" * 500_000):
            sending = asyncio.create_task(ws.send(message))
            assert await ws.recv() == message
            await sending


async def test_both_ways_of_naming_a_sandbox(world, box):
    async with inside(world, box), connect(world, box) as named:
        uri = world.url.replace("http", "ws") + "/echo"
        async with client.connect(uri, additional_headers=by_headers(box), proxy=None) as shared:
            for ws in (named, shared):
                await ws.send("hello")
                assert await ws.recv() == "hello"


async def test_what_the_service_is_asked_with(world, box):
    headers = {**by_headers(box), "X-Access-Token": box["envdAccessToken"], "X-Mine": "m", "Cookie": "c=1"}
    headers |= {"E2B-Traffic-Access-Token": "t"}
    options = {"additional_headers": headers, "subprotocols": ["one", "two"], "origin": "https://example.com"}
    async with inside(world, box), connect(world, box, "/hello?q=%20&r=1", **options) as ws:
        seen = json.loads(await ws.recv())
        assert ws.subprotocol == "two"
        assert ws.protocol.extensions == []
        assert ws.response.headers["X-Request-Id"]
    assert seen["line"] == "GET /hello?q=%20&r=1 HTTP/1.1"
    got = seen["headers"]
    assert got["host"] == f"8080-{box['sandboxID']}.example.com"
    assert (got["x-mine"], got["cookie"], got["origin"]) == ("m", "c=1", "https://example.com")
    assert (got["connection"].lower(), got["upgrade"]) == ("upgrade", "websocket")
    assert got["x-forwarded-for"] == "127.0.0.1"
    assert not {
        name for name in got if name.startswith("e2b") or name in ("x-access-token", "sec-websocket-extensions")
    }


async def test_pings_are_answered_by_the_other_end(world, box):
    heard = []

    async def service(reader, writer):
        await accepted(reader, writer)
        writer.write(port_service.frame(port_service.PING, b"from inside"))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                _, opcode, payload = await port_service.read_frame(reader)
                heard.append((opcode, payload))
                if opcode == port_service.PING:
                    writer.write(port_service.frame(port_service.PONG, payload))
        writer.close()

    async with inside(world, box, service), connect(world, box, ping_interval=None, close_timeout=0.1) as ws:
        await asyncio.wait_for(await ws.ping(b"from outside"), 10)
        await server.until(lambda: len(heard) == 2)
    assert set(heard[:2]) == {(port_service.PING, b"from outside"), (port_service.PONG, b"from inside")}


async def test_close_codes_from_outside(world, box):
    async with inside(world, box) as service:
        async with connect(world, box) as ws:
            await ws.close(4321, "I am done: é")
            assert (ws.close_code, ws.close_reason) == (4321, "I am done: é")
        await server.until(lambda: service.closed_with == [4321, "I am done: é"])
        await server.until(lambda: service.left == 1)


async def test_close_codes_from_inside(world, box):
    async with inside(world, box), connect(world, box, "/close?code=4001&reason=enough") as ws:
        with pytest.raises(websockets.ConnectionClosedError):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4001, "enough")
        assert ws.protocol.close_rcvd_then_sent


# Refusals


@pytest.mark.parametrize("status", ["404 Not Found", "426 Upgrade Required", "500 Oops", "200 OK"])
async def test_the_service_refuses(world, box, status):
    async with inside(world, box):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(world, box, f"/refuse?status={status.replace(' ', '%20')}")
    answer = refused.value.response
    assert (answer.status_code, answer.body) == (int(status[:3]), b"not here")
    assert answer.headers["X-From"] == "inside"


async def test_nothing_listens(world, box):
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(world, box)
    assert refused.value.response.status_code == 502
    assert json.loads(refused.value.response.body)["message"] == "The sandbox is running but port is not open"


async def test_too_many_connections(world, box, monkeypatch):
    async def full(port):
        raise errors.GuestError("resource_exhausted", "at most so many")

    monkeypatch.setattr(world.guest(box["sandboxID"]), "dial", full)
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(world, box)
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body)["message"] == "The sandbox has too many connections open"


async def test_unknown_sandbox(world):
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(world, {"sandboxID": "i" + "0" * 19})
    assert json.loads(refused.value.response.body)["message"] == "The sandbox was not found"


@pytest.mark.parametrize("port", [49983, 49999])
async def test_the_fronts_of_the_protocol_have_none(world, box, port):
    uri = world.url.replace("http", "ws") + "/nothing"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await client.connect(uri, additional_headers=by_headers(box, port), proxy=None)
    assert refused.value.response.status_code in (401, 404)


async def test_the_control_plane_has_none(world):
    with pytest.raises(websockets.InvalidStatus) as refused:
        await client.connect(world.url.replace("http", "ws") + "/v2/sandboxes", proxy=None)
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "its key was not accepted"),
        ([("Sec-WebSocket-Accept", "wrong"), ("Upgrade", "websocket")], "its key was not accepted"),
        ([("Sec-WebSocket-Accept", "{}"), ("Upgrade", "h2c")], "it changed to another protocol"),
        (
            [
                ("Sec-WebSocket-Accept", "{}"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Extensions", "permessage-deflate"),
            ],
            "an extension that was not offered",
        ),
        (
            [("Sec-WebSocket-Accept", "{}"), ("Upgrade", "websocket"), ("Sec-WebSocket-Protocol", "c")],
            "a subprotocol that was not offered",
        ),
    ],
)
async def test_a_wrong_101_is_none(world, box, wrong, said):
    async def service(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        lines = ["HTTP/1.1 101 X", "Connection: Upgrade", *(f"{name}: {value}" for name, value in wrong)]
        writer.write("\r\n".join([*lines, "", ""]).replace("{}", _ACCEPT.decode()).encode())
        await reader.read()
        writer.close()

    headers = {"Host": f"8080-{box['sandboxID']}.example.com", "Connection": "Upgrade", "Upgrade": "websocket"}
    headers |= {"Sec-WebSocket-Key": _KEY.decode(), "Sec-WebSocket-Version": "13", "Sec-WebSocket-Protocol": "a, b"}
    async with inside(world, box, service):
        answer = await world.client.get("/", headers=headers)
    assert answer.status_code == 502
    assert said in answer.json()["message"]


async def test_a_101_nobody_asked_for(world, box):
    async def service(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read()
        writer.close()

    async with inside(world, box, service):
        answer = await world.client.get("/", headers={"Host": f"8080-{box['sandboxID']}.example.com"})
    assert answer.status_code == 502


async def test_other_upgrades_are_refused_and_say_so(world, box):
    headers = {"Host": f"8080-{box['sandboxID']}.example.com", "Connection": "keep-alive, Upgrade"}
    for method, protocol in (("GET", "irc/6.9"), ("POST", "websocket")):
        answer = await world.client.request(method, "/", headers={**headers, "Upgrade": protocol})
        assert answer.status_code == 501
        assert f"upgrading a connection to {protocol} is not served" in answer.json()["message"]


# Ends


async def test_a_client_that_leaves_is_told_inside(world, box):
    async with inside(world, box) as service:
        ws = await connect(world, box)
        await ws.send("x")
        await ws.recv()
        ws.transport.abort()
        await server.until(lambda: service.left == 1)


async def test_the_kernel_looks_after_a_silent_client(world, box):
    def of(port):
        lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()
        # Of a connection that is watched, the timer is the keep-alive's: 02 (proc_net_tcp in the kernel's documentation).
        return [line.split()[5] for line in lines if line.split()[2].endswith(f":{port:04X}")]

    async with inside(world, box), connect(world, box) as ws:
        await ws.send("x")
        assert await ws.recv() == "x"
        _, port = ws.local_address
        await server.until(lambda: [timer[:2] for timer in of(port)] == ["02"])


async def test_a_client_that_leaves_before_the_answer_is_told_inside(world, box):
    gone = asyncio.Event()
    asked = asyncio.Event()

    async def silent(reader, writer):
        asked.set()
        await reader.read()
        gone.set()
        writer.close()

    async with inside(world, box, silent):
        connecting = asyncio.create_task(connect(world, box, open_timeout=None).__aenter__())
        await asyncio.wait_for(asked.wait(), 10)
        connecting.cancel()
        await asyncio.wait([connecting])
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_service_that_leaves_is_a_cut(world, box):
    async def leaving(reader, writer):
        await accepted(reader, writer)
        writer.write(port_service.frame(port_service.TEXT, b"last"))
        writer.close()

    async with inside(world, box, leaving), connect(world, box) as ws:
        assert await ws.recv() == "last"
        with pytest.raises(websockets.ConnectionClosedError) as ended:
            await ws.recv()
        assert ended.value.rcvd is None


async def test_a_killed_sandbox_cuts(world, box):
    async with inside(world, box) as service, connect(world, box) as ws:
        await ws.send("x")
        assert await ws.recv() == "x"
        assert (await world.client.delete(f"/sandboxes/{box['sandboxID']}", headers=world.api)).status_code == 204
        with pytest.raises(websockets.ConnectionClosedError) as ended:
            await asyncio.wait_for(ws.recv(), 10)
        assert ended.value.rcvd is None
        await server.until(lambda: service.left == 1)


async def test_a_server_that_stops_says_so(tmp_path):
    async with contextlib.AsyncExitStack() as outer:
        async with server.world(tmp_path) as world:
            box = await world.create()
            await outer.enter_async_context(inside(world, box))
            ws = await outer.enter_async_context(connect(world, box))
            await ws.send("x")
            assert await ws.recv() == "x"
        with pytest.raises(websockets.ConnectionClosedOK):
            await asyncio.wait_for(ws.recv(), 10)
        assert (ws.close_code, ws.close_reason) == (1001, "the server is stopping")


async def test_an_open_connection_is_activity_and_is_counted(world, box):
    life = world.sandboxes._lives.get(box["sandboxID"])
    async with inside(world, box):
        async with connect(world, box) as ws:
            await ws.send("x")
            await ws.recv()
            assert life.activity.calls == 1
        await server.until(lambda: life.activity.calls == 0)
    text = (await world.client.get("/metrics")).text
    assert 'http_request_duration_seconds_count{method="GET",route="port",status="101"} 1.0' in text


# Wrong frames

_BAD_FROM_INSIDE = {
    "masked": "8182000000005a",
    "reserved bit": "c10161",
    "reserved opcode": "830161",
    "continuation of nothing": "800161",
    "control frame that is too long": "897e0100" + "00" * 256,
    "fragmented control frame": "090161",
    "text that is not UTF-8": "8101ff",
    "length with its highest bit": "82ff" + "ff" * 8,
    "close with one byte": "880103",
    "close code that is reserved": "880203ee",
}


@pytest.mark.parametrize("data", _BAD_FROM_INSIDE.values(), ids=_BAD_FROM_INSIDE.keys())
async def test_a_wrong_frame_from_inside_ends_its_connection_only(world, box, data):
    good = port_service.frame(port_service.TEXT, b"good").hex()
    async with inside(world, box) as service, connect(world, box) as other:
        async with connect(world, box, f"/raw?hex={good}{data}") as ws:
            assert await ws.recv() == "good"
            with pytest.raises(websockets.ConnectionClosedError):
                await ws.recv()
            assert (ws.close_code, ws.close_reason) == (1011, "the service sent an invalid frame")
        await server.until(lambda: service.left == 1)
        await other.send("still there")
        assert await other.recv() == "still there"


@pytest.mark.parametrize(
    ("data", "code"), [(b"\x81\x01a", 1002), (b"\xc1\x81\0\0\0\0a", 1002), (b"\x81\x81\0\0\0\0\xff", 1007)]
)
async def test_a_wrong_frame_from_outside_ends_its_connection(world, box, data, code):
    async with inside(world, box) as service, connect(world, box) as ws:
        ws.transport.write(data)
        with pytest.raises(websockets.ConnectionClosedError):
            await ws.recv()
        assert ws.close_code == code
        await server.until(lambda: service.left == 1)
        assert service.closed_with is None


# What comes too early

_ASK = (
    "GET /echo HTTP/1.1\r\nHost: 8080-{}.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_HIDDEN = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def exchange(world, *pieces):
    """What the server answers to these bytes, each piece sent when the one before has been answered to."""
    reader, writer = await asyncio.open_connection(**address(world))
    try:
        heard = b""
        for piece in pieces[:-1]:
            writer.write(piece.encode())
            heard += await asyncio.wait_for(reader.read(65536), 10)
        writer.write(pieces[-1].encode())
        return heard + await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_nothing_may_follow_the_request(world, box):
    async with inside(world, box):
        said = await exchange(world, _ASK.format(box["sandboxID"]) + _HIDDEN)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"follows a request for a WebSocket" in said
    assert said.count(b"HTTP/1.1 ") == 1


async def test_nothing_may_follow_in_a_second_packet(world, box):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    async with inside(world, box, silent):
        reader, writer = await asyncio.open_connection(**address(world))
        writer.write(_ASK.format(box["sandboxID"]).encode())
        await server.until(lambda: world.app._traffic._cuts._tasks.get(world.sandboxes.ended(box["sandboxID"])))
        writer.write(_HIDDEN.encode())
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1


async def test_a_refused_request_is_the_last_one(world, box):
    async with inside(world, box):
        ask = _ASK.format(box["sandboxID"]).replace("/echo", "/refuse?status=404")
        said = await exchange(world, ask)
        assert said.startswith(b"HTTP/1.1 404 ")
        assert b"connection: close" in said.lower()


async def test_what_follows_the_101_is_no_http(world, box):
    async with inside(world, box):
        said = await exchange(world, _ASK.format(box["sandboxID"]), _HIDDEN)
    assert said.count(b"HTTP/1.1 ") == 1
    assert said.startswith(b"HTTP/1.1 101 ")
    assert b"\x88\x14\x03\xea" in said  # a Close with 1002


async def test_a_websocket_after_other_requests(world, box):
    """Keep-alive before, and the request in pieces."""
    async with inside(world, box):
        ask = _ASK.format(box["sandboxID"])
        close = "\x88\x80\0\0\0\0"
        reader, writer = await asyncio.open_connection(**address(world))
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + ask[:40].encode())
        assert b"204" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(ask[40:].encode())
        assert b"101" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(close.encode("latin-1"))
        assert await asyncio.wait_for(reader.read(), 10) == b"\x88\x00"
        writer.close()


# The passage by itself


def passage(to_client=True):
    source = frame_protocol.FrameProtocol(client=to_client, extensions=[])
    return websocket.Passage(source, frame_protocol.FrameProtocol(client=not to_client, extensions=[]))


def passed(one, data):
    return b"".join(one.translate(data))


def frames(data):
    """Frames of a server as (fin, opcode, payload)."""
    found = []
    while data:
        size, start = data[1], 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        found.append((bool(data[0] & 128), data[0] & 15, data[start : start + size]))
        data = data[start + size :]
    return found


def test_a_frame_that_comes_in_pieces_stays_whole():
    one, frame = passage(), port_service.frame(2, b"x" * 60_000)
    said = b"".join(passed(one, frame[start : start + 1000]) for start in range(0, len(frame), 1000))
    assert frames(said) == [(True, 2, b"x" * 60_000)]


def test_a_long_frame_goes_on_in_fragments():
    one, payload = passage(), b"x" * 300_000
    frame = port_service.frame(2, payload)
    said = [passed(one, frame[start : start + _PIECE]) for start in range(0, len(frame), _PIECE)]
    assert sum(bool(piece) for piece in said[:-1]) >= 3  # long before its end
    found = frames(b"".join(said))
    assert [fin for fin, _, _ in found] == [False] * (len(found) - 1) + [True]
    assert [opcode for _, opcode, _ in found] == [2] + [0] * (len(found) - 1)
    assert b"".join(data for _, _, data in found) == payload


def test_a_frame_that_dribbles_is_not_held_for_long():
    one = passage()
    passed(one, struct.pack("!BBQ", 0x82, 127, 2**40))
    for _ in range(1000):
        passed(one, b"x")
        assert len(one._held) <= 128


def test_a_flood_of_tiny_frames_comes_in_small_portions():
    pieces = list(passage().translate(port_service.frame(9) * 10_000))
    assert len(pieces) > 70
    assert b"".join(pieces) == port_service.frame(9) * 10_000


def test_nothing_comes_after_a_close():
    one = passage()
    close = port_service.frame(8, b"\x03\xe8bye")
    assert passed(one, close + port_service.frame(1, b"more")) == close
    assert one.closed
    assert passed(one, port_service.frame(1, b"more")) == b""


def test_what_is_written_inwards_is_masked():
    one = passage(to_client=False)
    masked = b"\x81\x81\x01\x02\x03\x04" + bytes([ord("a") ^ 1])
    first, second = passed(one, masked), passed(one, masked)
    assert len(first) == len(masked)
    assert first[:2] == b"\x81\x81"
    assert first[2:6] != second[2:6]  # by a key of our own, each time another


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from((1, 2)), st.text(max_size=300), st.integers(1, 50)), max_size=5),
    st.integers(1, 40),
)
def test_messages_survive_any_cutting(messages, step):
    data = b""
    for opcode, text, cut in messages:
        raw = text.encode()
        parts = [raw[start : start + cut] for start in range(0, len(raw), cut)] or [b""]
        for number, part in enumerate(parts):
            data += port_service.frame(opcode if number == 0 else 0, part, fin=number == len(parts) - 1)
            data += port_service.frame(9, b"p")
    one = passage()
    said = b"".join(passed(one, data[start : start + step]) for start in range(0, len(data), step))
    whole, found = [], []
    for fin, opcode, payload in frames(said):
        if opcode == 9:
            continue
        if opcode:
            whole = [opcode, b""]
        whole[1] += payload
        if fin:
            found.append(tuple(whole))
    assert found == [(opcode, text.encode()) for opcode, text, _ in messages]


@hypothesis.given(st.binary(max_size=2000))
def test_any_bytes_are_frames_or_refused(data):
    for to_client in (True, False):
        with contextlib.suppress(frame_protocol.ParseFailed):
            passed(passage(to_client), data)


# Nobody's memory


class _Stuck:
    """A client stream or a service whose `take` is never done."""

    def __init__(self, data):
        self.data, self.given, self.taken = data, 0, 0
        self.stopping, self.lost = asyncio.Event(), asyncio.Event()
        self.ended = False

    async def give(self):
        self.given += 1
        return self.data

    async def take(self, data):
        self.taken += 1
        await asyncio.Event().wait()

    read = receive = give
    write = send = take

    async def send_eof(self):
        raise errors.GuestError("unavailable", "gone")

    async def close(self, last=b""):
        self.ended = True

    def abort(self):
        self.ended = True


async def test_neither_end_is_read_further_than_the_other_takes():
    inner = _Stuck(port_service.frame(2, b"x" * 1000))
    outer = _Stuck(b"\x82\x81\0\0\0\0x")
    relaying = asyncio.create_task(websocket.relay(inner, b"", outer))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert (inner.given, outer.taken) == (1, 1)
    assert (outer.given, inner.taken) == (1, 1)
    outer.stopping.set()
    await asyncio.wait_for(relaying, 10)
    assert outer.ended


async def test_two_closes_that_come_at_once_are_an_end():
    ends = [_Closing(b"\x88\x80\0\0\0\0"), _Closing(b"\x88\x00")]
    await asyncio.wait_for(websocket.relay(ends[1], b"", ends[0]), websocket._CLOSE_WITHIN_S / 2)
    assert [end.said[:1] for end in ends] == [b"\x88", b"\x88"]
    assert ends[0].ended


class _Closing(_Stuck):
    """It closes at once."""

    def __init__(self, data):
        super().__init__(data)
        self.said = b""

    async def give(self):
        data, self.data = self.data, b""
        return data

    async def take(self, data):
        self.said += data

    read = receive = give
    write = send = take


async def test_a_client_that_closes_and_does_not_wait_is_told_inside(world, box):
    gone = asyncio.Event()

    async def deaf(reader, writer):
        await accepted(reader, writer)
        await reader.read()
        gone.set()
        writer.close()

    async with inside(world, box, deaf):
        ws = await connect(world, box, close_timeout=0.05)
        await ws.close()
        await asyncio.wait_for(gone.wait(), websocket._CLOSE_WITHIN_S / 2)


async def test_a_close_that_is_never_answered_ends_in_time(world, box, monkeypatch):
    monkeypatch.setattr(websocket, "_CLOSE_WITHIN_S", 0.05)

    async def deaf(reader, writer):
        await accepted(reader, writer)
        await writer.drain()
        await reader.read()
        writer.close()

    async with inside(world, box, deaf), connect(world, box, close_timeout=30) as ws:
        await asyncio.wait_for(ws.close(), 10)
        assert ws.close_code == 1006
