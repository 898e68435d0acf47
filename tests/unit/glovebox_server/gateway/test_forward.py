import asyncio
import contextlib

import httpx
import pytest

from glovebox_server.gateway import forward


@contextlib.asynccontextmanager
async def service(answer):
    """A service inside: `answer(reader, writer)` for each connection."""
    served = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with served:
        yield served.sockets[0].getsockname()[1]


def replying(data, seen=None):
    async def reply(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(data)
        writer.close()

    return reply


def port_host(box, port=8080):
    return {"Host": f"{port}-{box['sandboxID']}.example.com"}


async def test_passes_through(world, box):
    seen = []
    data = b"HTTP/1.1 201 Made\r\nX-A: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nhi"
    async with service(replying(data, seen)) as port:
        world.guest(box["sandboxID"]).servers[8080] = port
        answer = await world.client.get(
            "/a%2Fb?q=%20", headers={**port_host(box), "X-Access-Token": box["envdAccessToken"], "X-Mine": "m"}
        )
    assert (answer.status_code, answer.text, answer.headers["x-a"]) == (201, "hi", "1")
    assert "x-hop" not in answer.headers
    head = seen[0].lower()
    assert head.startswith(b"get /a%2fb?q=%20 http/1.1\r\n")
    assert f"host: 8080-{box['sandboxid' if False else 'sandboxID']}.example.com".encode() in head
    assert b"x-mine: m" in head
    assert box["envdAccessToken"].lower().encode() not in head


async def test_bodies_flow_both_ways_at_once(world, box):
    async def echo(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (size := int(await reader.readline(), 16)) > 0:
            data = (await reader.readexactly(size + 2))[:-2]
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        writer.write(b"0\r\n\r\n")
        writer.close()

    more = asyncio.Event()

    async def body():
        yield b"first"
        await more.wait()
        yield b"second"

    # httpx sends its whole body before it reads: so a raw connection.
    async with service(echo) as port:
        world.guest(box["sandboxID"]).servers[8080] = port
        host, _, number = world.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(number))
        writer.write(
            f"POST / HTTP/1.1\r\nHost: {port_host(box)['Host']}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        async for data in body():
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await asyncio.wait_for(reader.readuntil(data), 10)
            more.set()
        writer.write(b"0\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
        writer.close()


async def test_closed_port(world, box):
    answer = await world.client.get("/", headers=port_host(box))
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": box["sandboxID"],
        "message": "The sandbox is running but port is not open",
        "port": 8080,
        "code": 502,
    }


async def test_starting_service_is_waited_for(world, box, monkeypatch):
    guest = world.guest(box["sandboxID"])
    async with service(replying(b"HTTP/1.1 204 OK\r\n\r\n")) as port:
        dial = guest.dial

        async def late(number):
            try:
                return await dial(number)
            finally:
                guest.servers[8080] = port

        monkeypatch.setattr(guest, "dial", late)
        assert (await world.client.get("/", headers=port_host(box))).status_code == 204


@pytest.mark.parametrize("data", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000])
async def test_no_http(world, box, data):
    async with service(replying(data)) as port:
        world.guest(box["sandboxID"]).servers[8080] = port
        answer = await world.client.get("/", headers=port_host(box))
    assert answer.status_code == 502
    assert "did not answer in HTTP" in answer.json()["message"]


async def test_broken_off_answer_is_cut(world, box):
    async with service(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")) as port:
        world.guest(box["sandboxID"]).servers[8080] = port
        with pytest.raises(httpx.RemoteProtocolError):
            await world.client.get("/", headers=port_host(box))


async def test_leaving_closes_the_connection(world, box):
    gone = asyncio.Event()

    async def waiting(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata")
        await reader.read()
        gone.set()
        writer.close()

    async with service(waiting) as port:
        world.guest(box["sandboxID"]).servers[8080] = port
        async with world.client.stream("GET", "/", headers=port_host(box)) as answer:
            assert await anext(answer.aiter_raw()) == b"data"
        await asyncio.wait_for(gone.wait(), 10)


async def test_unknown_sandbox(world):
    for name in ("i" + "0" * 19, "nope"):
        answer = await world.client.get("/", headers={"Host": f"80-{name}.example.com"})
        assert answer.status_code == 502
        assert answer.json() == {"sandboxId": name, "message": "The sandbox was not found", "code": 502}


def test_end_to_end():
    headers = [(b"Connection", b"close, X-A"), (b"x-a", b"1"), (b"TE", b"trailers"), (b"b", b"2")]
    assert forward.end_to_end(headers) == [(b"b", b"2")]
