"""Ports inside a sandbox, as users reach them: WebSockets, server-sent events and many requests at once, after `Sandbox.create`.

The service is started with the SDK; clients are httpx and `websockets`, which know nothing of us.
"""

import asyncio
import json
import pathlib
import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import websockets
from e2b_code_interpreter import Sandbox
from websockets.asyncio import client
from websockets.sync import client as sync_client

from tests.support import port_service, servers

_PORT = 8080
_AT_ONCE = 1000
_MIB = 1024 * 1024
_FLOOD_BYTES = 256 * _MIB
_WITHIN_S = 30


@pytest.fixture(scope="module")
def serving(server: servers.Server, sandbox: Sandbox) -> Sandbox:
    """A sandbox in which the service listens."""
    assert port_service.__file__
    sandbox.files.write("/home/user/service.py", pathlib.Path(port_service.__file__).read_text())
    sandbox.commands.run(f"python3 /home/user/service.py {_PORT}", background=True, timeout=0)
    with httpx.Client(base_url=server.url, headers=by_headers(sandbox), timeout=_WITHIN_S) as found:
        servers.wait_until(lambda: found.get("/state").status_code == 200, _WITHIN_S)
    return sandbox


@pytest.fixture
def http(server: servers.Server, serving: Sandbox) -> Iterator[httpx.Client]:
    """Requests to the port."""
    with httpx.Client(base_url=server.url, headers=by_headers(serving), timeout=_WITHIN_S) as found:
        yield found


def by_headers(sandbox: Sandbox) -> dict[str, str]:
    return {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(_PORT)}


def at(server: servers.Server) -> tuple[str, int]:
    found = httpx.URL(server.url)
    assert found.port is not None
    return found.host, found.port


def by_name(server: servers.Server, sandbox: Sandbox, path: str) -> client.connect:
    """A connection to the name that the SDK gives; the address stands in for DNS."""
    host, port = at(server)
    uri = f"ws://{sandbox.get_host(_PORT)}{path}"
    return client.connect(uri, host=host, port=port, proxy=None, max_size=None)


# WebSockets


async def test_a_websocket_by_host_name(server: servers.Server, serving: Sandbox) -> None:
    async with by_name(server, serving, "/hello?a=%20b") as ws:
        asked = json.loads(await ws.recv())
        assert asked["line"] == "GET /hello?a=%20b HTTP/1.1"
        assert asked["headers"]["host"] == serving.get_host(_PORT)
        for message in ("text é", b"\x00\xff", "x" * (2 * _MIB)):
            await ws.send(message)
            assert await ws.recv() == message
        await asyncio.wait_for(await ws.ping(), _WITHIN_S)


def test_a_websocket_by_routing_headers(server: servers.Server, serving: Sandbox, http: httpx.Client) -> None:
    before = http.get("/state").json()["left"]
    uri = server.url.replace("http", "ws") + "/echo"
    headers = {**by_headers(serving), "X-Access-Token": str(serving._envd_access_token)}
    with sync_client.connect(uri, additional_headers=headers, subprotocols=["chat"], proxy=None) as ws:
        assert ws.subprotocol == "chat"
        ws.send(["in ", "fragments"])
        assert ws.recv() == "in fragments"
        ws.close(4000, "enough")
    state = http.get("/state")
    servers.wait_until(lambda: http.get("/state").json()["left"] == before + 1, _WITHIN_S, lambda: state.text)
    assert http.get("/state").json()["closed_with"] == [4000, "enough"]


async def test_a_close_from_inside(server: servers.Server, serving: Sandbox) -> None:
    async with by_name(server, serving, "/close?code=4001&reason=bye") as ws:
        with pytest.raises(websockets.ConnectionClosedError):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4001, "bye")


@pytest.mark.parametrize("status", ["404 Not Found", "426 Upgrade Required", "500 Internal Server Error"])
async def test_a_refusal_from_inside(server: servers.Server, serving: Sandbox, status: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await by_name(server, serving, f"/refuse?status={status.replace(' ', '%20')}")
    assert (refused.value.response.status_code, refused.value.response.body) == (int(status[:3]), b"not here")


async def test_nothing_listens(server: servers.Server, serving: Sandbox) -> None:
    host, port = at(server)
    with pytest.raises(websockets.InvalidStatus) as refused:
        await client.connect(f"ws://{serving.get_host(8081)}/", host=host, port=port, proxy=None)
    assert refused.value.response.status_code == 502
    assert b"port is not open" in (refused.value.response.body or b"")


async def test_two_hundred_websockets_at_once(server: servers.Server, serving: Sandbox) -> None:
    async def one(number: int) -> None:
        async with by_name(server, serving, "/echo") as ws:
            for turn in range(3):
                await ws.send(f"{number} {turn}")
                assert await ws.recv() == f"{number} {turn}"

    async with asyncio.timeout(_WITHIN_S):
        await asyncio.gather(*(one(number) for number in range(200)))


async def test_a_flood_that_nobody_reads_grows_nothing(
    server: servers.Server, serving: Sandbox, http: httpx.Client
) -> None:
    async with by_name(server, serving, f"/flood?bytes={_FLOOD_BYTES}") as ws:
        ws.transport.pause_reading()
        before = _peak_bytes(server.pid, reset=True)
        # Until it is stuck: as long as it is not, two looks at it differ.
        async with asyncio.timeout(_WITHIN_S):
            while not await asyncio.to_thread(_is_stuck, http):
                pass
        ws.transport.resume_reading()
        got = len(await asyncio.wait_for(ws.recv(), 2 * _WITHIN_S))
        while got < _FLOOD_BYTES:
            got += len(await asyncio.wait_for(ws.recv(), _WITHIN_S))
    assert got == _FLOOD_BYTES
    assert _peak_bytes(server.pid) - before < 16 * _MIB


def _is_stuck(http: httpx.Client) -> bool:
    seen = [http.get("/state").json()["flooded"] for _ in range(20)]
    assert max(seen) < _FLOOD_BYTES // 4, "it was all taken, though nobody reads"
    return 0 < seen[0] == seen[-1]


def _peak_bytes(pid: int, *, reset: bool = False) -> int:
    """The most memory a process has held; with `reset`, what it holds now, and the count begins anew (proc(5))."""
    if reset:
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


async def test_a_killed_sandbox_cuts_its_websockets(server: servers.Server) -> None:
    box = await asyncio.to_thread(Sandbox.create, timeout=60)
    try:
        text = pathlib.Path(str(port_service.__file__)).read_text()
        await asyncio.to_thread(box.files.write, "/home/user/service.py", text)
        command = f"python3 /home/user/service.py {_PORT}"
        await asyncio.to_thread(box.commands.run, command, background=True, timeout=0)
        async with httpx.AsyncClient(base_url=server.url, headers=by_headers(box), timeout=_WITHIN_S) as found:
            async with asyncio.timeout(_WITHIN_S):
                while (await found.get("/state")).status_code != 200:
                    pass
        async with by_name(server, box, "/echo") as ws:
            await ws.send("x")
            assert await ws.recv() == "x"
            assert await asyncio.to_thread(box.kill)
            with pytest.raises(websockets.ConnectionClosedError) as ended:
                await asyncio.wait_for(ws.recv(), _WITHIN_S)
            assert ended.value.rcvd is None  # a cut, and no Close, which would look like an end as it should be
    finally:
        await asyncio.to_thread(box.kill)


# Server-sent events


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line:
            yield line


async def test_events_come_one_by_one_and_end_with_the_client(server: servers.Server, serving: Sandbox) -> None:
    async with (
        httpx.AsyncClient(base_url=server.url, headers=by_headers(serving), timeout=_WITHIN_S) as http,
        asyncio.timeout(_WITHIN_S),
    ):
        before = (await http.get("/state")).json()["left"]
        async with http.stream("GET", "/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            events = _events(answer)
            for number in range(10):
                # The next one is not even made before this one has come.
                assert await anext(events) == f"data: {number}"
                await http.post("/next")
            assert (await http.get("/state")).json()["left"] == before
        while (await http.get("/state")).json()["left"] == before:
            pass


# Many at once


async def test_a_thousand_requests_at_once(server: servers.Server, serving: Sandbox) -> None:
    """The service answers nobody before all thousand are there."""

    async def some(number: int) -> list[httpx.Response]:
        # One httpx client of a thousand connections takes half a minute for its own bookkeeping.
        limits = httpx.Limits(max_connections=number)
        options = {"base_url": server.url, "headers": by_headers(serving), "timeout": _WITHIN_S}
        async with httpx.AsyncClient(limits=limits, **options) as http:
            asking = (http.get("/barrier", params={"of": _AT_ONCE}) for _ in range(number))
            return await asyncio.gather(*asking)

    async with asyncio.timeout(_WITHIN_S):
        parts = await asyncio.gather(*(some(_AT_ONCE // 20) for _ in range(20)))
    found = [answer for part in parts for answer in part]
    assert {answer.status_code for answer in found} == {200}
    assert sorted(int(answer.text) for answer in found) == list(range(1, _AT_ONCE + 1))
