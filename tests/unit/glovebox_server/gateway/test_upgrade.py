import asyncio

import pytest
from starlette import requests

from glovebox_server.gateway import upgrade


@pytest.mark.parametrize(
    ("connection", "offered", "found"),
    [
        (b"Upgrade", b"WebSocket", "WebSocket"),
        (b"close, upgrade", b"h2c, tls/1.0", "tls/1.0"),
        (b"Upgrade, HTTP2-Settings", b"h2c", None),
        (b"close", b"websocket", None),
        (b"Upgrade", b"", None),
        (b"Upgrade", b"\x1b[31m", "\\x1b[31m"),
    ],
)
def test_what_is_asked_for(connection, offered, found):
    assert upgrade.asked([(b"connection", connection), (b"upgrade", offered)]) == found


_ASKS = ((b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"WebSocket"))


@pytest.mark.parametrize(
    ("method", "version", "more", "may"),
    [
        ("GET", "1.1", (), True),
        ("GET", "1.1", ((b"content-length", b"0"),), True),
        ("GET", "1.0", (), False),
        ("POST", "1.1", (), False),
        ("GET", "1.1", ((b"content-length", b"5"),), False),
        ("GET", "1.1", ((b"transfer-encoding", b"chunked"),), False),
        ("GET", "1.1", ((b"content-length", b"0"), (b"content-length", b"5")), False),
    ],
)
def test_only_a_bare_get_may_become_a_websocket(method, version, more, may):
    assert upgrade.asks_for_websocket(method, version, [*_ASKS, *more]) is may
    assert not upgrade.asks_for_websocket(method, version, [(b"upgrade", b"websocket"), *more])


class Transport:
    """A transport that notes what it is told."""

    def __init__(self):
        self.said = []
        self.closing = False

    def is_closing(self):
        return self.closing

    def write(self, data):
        self.said.append(data)

    def __getattr__(self, name):
        return lambda: self.said.append(name)


@pytest.fixture
def transport():
    return Transport()


async def test_a_client_that_is_not_read_has_to_wait(transport):
    stream = upgrade.Stream(transport, set(), writable=True)
    stream.data_received(b"x" * 65_535)
    assert transport.said == []
    stream.data_received(b"x")
    stream.data_received(b"x")
    assert transport.said == ["pause_reading"]
    assert len(await stream.read()) == 65_537
    assert transport.said == ["pause_reading", "resume_reading"]


async def test_a_client_that_does_not_read_is_waited_for(transport):
    stream = upgrade.Stream(transport, set(), writable=False)
    writing = asyncio.create_task(stream.write(b"first"))
    await asyncio.sleep(0)
    assert transport.said == [b"first"]
    assert not writing.done()
    stream.resume_writing()
    await writing
    stream.pause_writing()
    writing = asyncio.create_task(stream.write(b"second"))
    await asyncio.sleep(0)
    transport.closing = True
    stream.connection_lost(None)
    with pytest.raises(requests.ClientDisconnect):
        await writing
    with pytest.raises(requests.ClientDisconnect):
        await stream.write(b"third")
    assert transport.said == [b"first", b"second"]


async def test_what_came_before_the_end_is_read_first(transport):
    connections = set()
    stream = upgrade.Stream(transport, connections, writable=True)
    assert connections == {stream}
    stream.data_received(b"x" * 70_000)
    transport.closing = True
    stream.connection_lost(None)
    assert len(await stream.read()) == 70_000
    assert await stream.read() == b""
    assert connections == set()
    assert "resume_reading" not in transport.said
