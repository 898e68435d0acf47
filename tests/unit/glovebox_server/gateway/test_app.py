import asyncio
import json

import pytest
import structlog

from glovebox_server.gateway import server as http_server
from tests.support import server


async def raw(world, data):
    """What the server answers to these very bytes, until it closes."""
    host, _, port = world.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(2000)),
        b"X: " + b"y" * 200_000,
    ],
)
async def test_long_heads_are_refused(world, head):
    answer = await raw(world, b"GET /health HTTP/1.1\r\nHost: x\r\n" + head)
    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 431


async def test_what_the_http_server_says_is_a_line_of_ours(world):
    with structlog.testing.capture_logs() as lines:
        answer = await raw(world, b"\x1b[31mnonsense\n\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"code": 400, "message": "the request is not HTTP/1.1"}
    (line,) = [one for one in lines if one["event"] == "server library spoke"]
    assert (line["log_level"], line["said"]) == ("warning", "Invalid HTTP request received.")


async def test_slow_heads_are_cut(world, monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_WITHIN_S", 0.2)
    assert await raw(world, b"") == b""
    assert await raw(world, b"GET / HTTP/1.1\r\nHost: x\r\n") == b""


async def test_idle_connections_are_kept(world, monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_WITHIN_S", 0.2)
    await world.client.get("/health")
    (connection,) = world.client._transport._pool.connections
    await asyncio.sleep(0.5)  # nothing is to happen: there is no condition to wait for
    assert (await world.client.get("/health")).status_code == 204
    assert world.client._transport._pool.connections == [connection]


async def test_header_bytes_that_are_no_text(world, box):
    headers = [(name.encode(), value.encode()) for name, value in server.envd(box).items()]
    for path in ("/process.Process/List", "/files?path=%ff", "/nope%ff"):
        answer = await world.client.post(path, content=b"{}", headers=[*headers, (b"X-Bad", b"\xff\xfe")])
        assert answer.status_code < 500


async def test_cors(world, box):
    asked = {
        "Origin": "https://x.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-access-token",
    }
    named = {"Host": f"49983-{box['sandboxID']}.example.com"}
    answer = await world.client.options("/process.Process/List", headers={**asked, **named})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    answer = await world.client.get("/health", headers={"Origin": "https://x.example", **named})
    assert answer.headers["access-control-allow-origin"] == "*"
    api = await world.client.get("/v2/sandboxes", headers={"Origin": "https://x.example", **world.api})
    assert "access-control-allow-origin" not in api.headers


async def test_envds_own_routes(world, box):
    headers = server.envd(box)
    assert (await world.client.get("/health", headers=headers)).status_code == 204
    assert (await world.client.get("/envs", headers=headers)).json() == {"E2B_SANDBOX": "true"}
    assert (await world.client.get("/metrics", headers=headers)).json()["mem_total_mib"] == 1024
    for path in ("/init", "/freeze", "/upgrade"):
        assert (await world.client.post(path, headers=headers)).status_code == 404
    del headers["X-Access-Token"]
    assert (await world.client.get("/envs", headers=headers)).status_code == 401
    assert (await world.client.get("/health", headers=headers)).status_code == 204


async def test_bad_routing_header(world, box):
    headers = server.envd(box, **{"E2b-Sandbox-Port": "x"})
    assert (await world.client.get("/health", headers=headers)).status_code == 400
