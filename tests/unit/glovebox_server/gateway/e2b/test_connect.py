"""The Connect protocol on the wire, through the whole gateway."""

import asyncio
import json
import struct
import threading

import httpx
import pytest

from glovebox import errors
from glovebox_server.gateway.e2b import connect, filesystem
from glovebox_server.gateway.e2b.proto import filesystem_pb2, process_pb2
from tests.support import server

START = "/process.Process/Start"


def envelope(message, flags=0):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


def frames(data):
    found = []
    while data:
        flags, length = struct.unpack_from(">BI", data)
        found.append((flags, json.loads(data[5 : 5 + length])))
        data = data[5 + length :]
    return found


def command(text, **more):
    return envelope({"process": {"cmd": "/bin/bash", "args": ["-l", "-c", text], **more}, "stdin": False})


def streaming(box, **extra):
    return server.envd(box, **{"Content-Type": "application/connect+json", **extra})


def unary(box):
    return server.envd(box, **{"Content-Type": "application/json"})


async def call(world, path, content, headers):
    answer = await world.client.post(path, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    return frames(answer.content)


@pytest.mark.parametrize(
    "content",
    [
        "text",
        [],
        {"process": "text", "input": {}},
        {"process": {"pid": 1}, "input": "x" * 1000},
        {"process": {"pid": 1}, "input": [{}]},
        {"input": {"stdin": ""}, "process": ["pid"]},
    ],
)
def test_what_is_no_object_is_refused_before_it_is_taken_apart(content, monkeypatch):
    monkeypatch.setattr(connect.json_format, "ParseDict", lambda *_, **__: pytest.fail("taken apart"))
    with pytest.raises(errors.InvalidRequestError, match="must be an object"):
        connect.CODECS["json"].decode(json.dumps(content).encode(), process_pb2.SendInputRequest)


def test_objects_lists_and_times_pass():
    asked = {"processes": [{"pid": 1, "config": {"cmd": "a", "envs": {"b": "c"}}}, {"config": None}]}
    found = connect.CODECS["json"].decode(json.dumps(asked).encode(), process_pb2.ListResponse)
    assert [one.pid for one in found.processes] == [1, 0]
    entry = {"entry": {"name": "a", "modifiedTime": "2026-01-01T00:00:00Z"}}
    made = connect.CODECS["json"].decode(json.dumps(entry).encode(), filesystem_pb2.StatResponse)
    assert made.entry.modified_time.seconds > 0


async def test_start(world, box):
    headers = streaming(box, **{"connect-content-encoding": "identity", "connect-protocol-version": "1"})
    found = await call(world, START, command("echo hi"), headers)
    assert found == [
        (0, {"event": {"start": {"pid": 101}}}),
        (0, {"event": {"data": {"stdout": "aGkK"}}}),
        (0, {"event": {"end": {"exited": True, "status": "exit status 0"}}}),
        (2, {}),
    ]


async def test_environment_and_exit_code(world, box):
    found = await call(world, START, command("echo $X", envs={"X": "y"}), streaming(box))
    assert found[1][1]["event"]["data"] == {"stdout": "eQo="}
    found = await call(world, START, command("fail 3"), streaming(box))
    assert found[2][1]["event"]["end"] == {"exitCode": 3, "exited": True, "status": "exit status 3"}


@pytest.mark.parametrize(
    ("content", "extra", "code", "message"),
    [
        (command("x", cwd="/nope"), {}, "invalid_argument", "cwd '/nope' does not exist"),
        (command("x"), {"Authorization": "Basic bm9ib2R5Og=="}, "unauthenticated", "invalid username: 'nobody'"),
        (command("x\0"), {}, "invalid_argument", "NUL"),
        (command("x" * 3_000_000), {}, "invalid_argument", "exceed"),
        (envelope({"process": {"cmd": "x", "args": [""] * 300_000}}), {}, "invalid_argument", "exceed"),
        (command("x" * 5_000_000), {}, "resource_exhausted", "longer"),
        (envelope({}), {}, "invalid_argument", "process.cmd is missing"),
        (b"", {}, "invalid_argument", "no message"),
        (command("x") * 2, {}, "invalid_argument", "more than one"),
        (command("x")[:-1], {}, "invalid_argument", "incomplete"),
        (envelope(b"{"), {}, "invalid_argument", "not a process.StartRequest"),
        (envelope(b"[" * 100_000), {}, "invalid_argument", "not a process.StartRequest"),
        (envelope(b"\xff\xfe"), {}, "invalid_argument", "not a process.StartRequest"),
        (envelope({"process": {"cmd": 5}}), {}, "invalid_argument", "not a process.StartRequest"),
        (struct.pack(">BI", 0, 2**31), {}, "resource_exhausted", "longer"),
        (envelope({}, flags=1), {}, "unimplemented", "compressed"),
        (command("x"), {"connect-content-encoding": "gzip"}, "unimplemented", "gzip"),
        (command("x"), {"connect-timeout-ms": "soon"}, "invalid_argument", "connect-timeout-ms"),
    ],
)
async def test_stream_errors(world, box, content, extra, code, message):
    ((flags, end),) = await call(world, START, content, streaming(box, **extra))
    assert flags == 2
    assert end["error"]["code"] == code
    assert message in end["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/filesystem.Filesystem/Stat", {"path": "/nope"}, 404, "not_found"),
        ("/filesystem.Filesystem/Stat", {"path": "a\0"}, 400, "invalid_argument"),
        ("/filesystem.Filesystem/Stat", {"path": 1}, 400, "invalid_argument"),
        ("/filesystem.Filesystem/MakeDir", {"path": "/home/user"}, 409, "already_exists"),
        ("/filesystem.Filesystem/GetWatcherEvents", {"watcherId": "x"}, 404, "not_found"),
        ("/process.Process/SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"}, 404, "not_found"),
        ("/process.Process/SendSignal", {"process": {"pid": 1}, "signal": 4}, 400, "invalid_argument"),
        ("/process.Process/SendSignal", {"signal": 9}, 400, "invalid_argument"),
        ("/process.Process/SendInput", {"process": {"pid": 1}}, 400, "invalid_argument"),
        (
            "/process.Process/Update",
            {"process": {"pid": 1}, "pty": {"size": {"cols": 0, "rows": 1}}},
            400,
            "invalid_argument",
        ),
        ("/process.Process/Update", {"process": {"pid": 1}}, 400, "invalid_argument"),
    ],
)
async def test_unary_errors(world, box, path, body, status, code):
    answer = await world.client.post(path, json=body, headers=server.envd(box))
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_other_methods_and_types(world, box):
    path = "/filesystem.Filesystem/Stat"
    assert (await world.client.get(path, headers=server.envd(box))).status_code == 405
    wrong = await world.client.post(path, content=b"{}", headers=server.envd(box, **{"Content-Type": "text/plain"}))
    assert wrong.status_code == 415
    assert (await world.client.post("/process.Process/Nope", headers=server.envd(box))).status_code == 404


async def test_token_is_asked_for(world, box):
    for token in (None, "x", "é"):
        headers = server.envd(box) | {"X-Access-Token": token} if token else server.envd(box)
        if token is None:
            del headers["X-Access-Token"]
        headers = {name: value.encode() for name, value in headers.items()}
        answer = await world.client.post("/process.Process/List", json={}, headers=headers)
        assert answer.status_code == 401
        assert answer.json() == {
            "code": 401,
            "message": "unauthorized access, please provide a valid access token or method signing if supported",
        }


async def test_protobuf(world, box):
    headers = server.envd(box, **{"Content-Type": "application/proto"})
    answer = await world.client.post("/process.Process/List", content=b"", headers=headers)
    assert process_pb2.ListResponse.FromString(answer.content) == process_pb2.ListResponse()
    bad = await world.client.post("/filesystem.Filesystem/Stat", content=b"\xff", headers=headers)
    assert bad.json()["code"] == "invalid_argument"
    request = filesystem_pb2.StatRequest(path="/home/user").SerializeToString()
    answer = await world.client.post("/filesystem.Filesystem/Stat", content=request, headers=headers)
    assert filesystem_pb2.StatResponse.FromString(answer.content).entry.type == filesystem_pb2.FILE_TYPE_DIRECTORY


async def test_stat(world, box):
    world.guest(box["sandboxID"]).files["/home/user/a"] = b"abc"
    answer = await world.client.post("/filesystem.Filesystem/Stat", json={"path": "a"}, headers=server.envd(box))
    assert answer.json() == {
        "entry": {
            "name": "a",
            "type": "FILE_TYPE_FILE",
            "path": "/home/user/a",
            "size": "3",
            "mode": 0o644,
            "permissions": "-rw-r--r--",
            "owner": "user",
            "group": "user",
            "modifiedTime": "2023-11-14T22:13:20.500Z",
        }
    }


class Open:
    """A stream in progress: its frames, as they come."""

    def __init__(self, answer):
        self._chunks = answer.aiter_raw()
        self._data = b""

    async def next(self):
        async with asyncio.timeout(10):
            while len(self._data) < 5 or len(self._data) < 5 + struct.unpack_from(">I", self._data, 1)[0]:
                self._data += await anext(self._chunks)
        end = 5 + struct.unpack_from(">I", self._data, 1)[0]
        (found,), self._data = frames(self._data[:end]), self._data[end:]
        return found


async def test_deadline_kills(world, box):
    found = await call(world, START, command("sleep 99"), streaming(box, **{"connect-timeout-ms": "100"}))
    assert found[-1][0] == 2
    assert found[-1][1]["error"]["code"] == "deadline_exceeded"
    assert world.guest(box["sandboxID"]).signals == [(101, 9)]


async def test_deadline_kills_when_the_client_has_left(world, box):
    headers = streaming(box, **{"connect-timeout-ms": "500"})
    async with world.client.stream("POST", START, content=command("sleep 99"), headers=headers) as answer:
        await Open(answer).next()
    await server.until(lambda: world.guest(box["sandboxID"]).signals == [(101, 9)])


async def test_limits_of_messages(world, box):
    long = b'{"process":{"pid":1},"input":{"stdin":"' + b"A" * (2 * 1024 * 1024) + b'"}}'
    answer = await world.client.post("/process.Process/SendInput", content=long, headers=unary(box))
    assert answer.status_code == 404  # it was read: there is no such process
    answer = await world.client.post("/process.Process/SendSignal", content=long, headers=unary(box))
    assert answer.status_code == 400
    assert "longer than 1048576 bytes" in answer.text


async def test_long_messages_are_read_and_written_in_threads(world, box, monkeypatch):
    monkeypatch.setattr(connect, "_THREAD_BYTES", 0)
    monkeypatch.setattr(filesystem, "_MANY_ENTRIES", 0)
    threads = set()
    fill, encode = connect.CODECS["json"].fill, connect.CODECS["json"].encode

    def noted(call):
        def noting(*args):
            threads.add(threading.current_thread())
            return call(*args)

        return noting

    codec = connect.Codec("json", noted(encode), noted(fill))
    monkeypatch.setitem(connect.CODECS, "json", codec)
    world.guest(box["sandboxID"]).files["/home/user/a"] = b""
    answer = await world.client.post("/filesystem.Filesystem/ListDir", json={"path": "/home/user"}, headers=unary(box))
    assert [entry["name"] for entry in answer.json()["entries"]] == ["a"]
    assert (await world.client.post("/filesystem.Filesystem/Stat", content=b"[", headers=unary(box))).status_code == 400
    assert threads
    assert threading.main_thread() not in threads


async def test_connects_deadline_does_not(world, box):
    async with world.client.stream("POST", START, content=command("sleep 9"), headers=streaming(box)) as answer:
        await Open(answer).next()
        headers = streaming(box, **{"connect-timeout-ms": "50"})
        found = await call(world, "/process.Process/Connect", envelope({"process": {"pid": 101}}), headers)
        assert found[-1][1]["error"]["code"] == "deadline_exceeded"
        assert world.guest(box["sandboxID"]).signals == []


async def test_leaving_does_not_kill(world, box):
    guest = world.guest(box["sandboxID"])
    async with world.client.stream("POST", START, content=command("sleep 99"), headers=streaming(box)) as answer:
        assert (await Open(answer).next())[1]["event"]["start"] == {"pid": 101}
    await server.until(lambda: guest.unsubscribed == 1)
    assert guest.signals == []
    listed = await world.client.post("/process.Process/List", json={}, headers=server.envd(box))
    assert [one["pid"] for one in listed.json()["processes"]] == [101]


async def test_keepalive(world, box):
    headers = streaming(box, **{"Keepalive-Ping-Interval": "1"})
    async with world.client.stream("POST", START, content=command("sleep 9"), headers=headers) as answer:
        stream = Open(answer)
        await stream.next()
        assert await stream.next() == (0, {"event": {"keepalive": {}}})
        await world.client.post(
            "/process.Process/SendSignal",
            json={"process": {"pid": 101}, "signal": "SIGNAL_SIGTERM"},
            headers=server.envd(box),
        )
        assert (await stream.next())[1]["event"]["end"] == {"exitCode": -1, "status": "signal: killed"}
        assert await stream.next() == (2, {})


async def test_input(world, box):
    headers = server.envd(box)
    async with world.client.stream("POST", START, content=command("cat"), headers=streaming(box)) as answer:
        stream = Open(answer)
        await stream.next()
        one = {"process": {"pid": 101}}
        await world.client.post("/process.Process/SendInput", json={**one, "input": {"stdin": "YQ=="}}, headers=headers)
        assert (await stream.next())[1]["event"]["data"] == {"stdout": "YQ=="}
        content = (
            envelope({"start": one}) + envelope({"keepalive": {}}) + envelope({"data": {"input": {"stdin": "Yg=="}}})
        )
        assert await call(world, "/process.Process/StreamInput", content, streaming(box)) == [(0, {}), (2, {})]
        assert (await stream.next())[1]["event"]["data"] == {"stdout": "Yg=="}
        assert (await world.client.post("/process.Process/CloseStdin", json=one, headers=headers)).json() == {}
        assert "end" in (await stream.next())[1]["event"]


async def test_stream_input_must_start(world, box):
    content = envelope({"data": {"input": {"stdin": "Yg=="}}})
    ((_, end),) = await call(world, "/process.Process/StreamInput", content, streaming(box))
    assert end["error"]["code"] == "invalid_argument"


async def test_terminals_stdin_is_not_closed(world, box):
    content = envelope({"process": {"cmd": "sleep"}, "tag": "pty"})
    async with world.client.stream("POST", START, content=content, headers=streaming(box)) as answer:
        await Open(answer).next()
        closed = await world.client.post(
            "/process.Process/CloseStdin", json={"process": {"tag": "pty"}}, headers=server.envd(box)
        )
        assert closed.json() == {"code": "unknown", "message": "error closing stdin: it is a terminal"}


async def test_watch(world, box):
    content = envelope({"path": "/home/user"})
    path = "/filesystem.Filesystem/WatchDir"
    async with world.client.stream("POST", path, content=content, headers=streaming(box)) as answer:
        stream = Open(answer)
        assert await stream.next() == (0, {"start": {}})
        await world.client.post("/files", params={"path": "w"}, files={"file": b"x"}, headers=server.envd(box))
        assert [(await stream.next())[1]["filesystem"]["type"] for _ in range(3)] == [
            "EVENT_TYPE_CREATE",
            "EVENT_TYPE_CHMOD",
            "EVENT_TYPE_WRITE",
        ]


async def test_flood_is_not_kept(world, box):
    async with world.client.stream("POST", START, content=command("flood 2000"), headers=streaming(box)) as answer:
        size = 0
        async for chunk in answer.aiter_raw():
            size += len(chunk)
    assert size > 2000 * 32768


@pytest.mark.parametrize("how", ["kill", "die"])
async def test_end_of_sandbox_cuts(world, box, how):
    sandbox_id = box["sandboxID"]
    async with world.client.stream("POST", START, content=command("sleep 9"), headers=streaming(box)) as answer:
        stream = Open(answer)
        await stream.next()
        if how == "kill":
            await world.client.delete(f"/sandboxes/{sandbox_id}", headers=world.api)
        else:
            await world.node.die(sandbox_id)
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await stream.next()
    health = await world.client.get("/health", headers=server.envd(box))
    assert health.status_code == 502
    assert health.json() == {"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}


async def test_a_pause_cuts_and_a_resume_serves_again(world, box):
    one = f"/sandboxes/{box['sandboxID']}"
    for _ in range(2):
        async with world.client.stream("POST", START, content=command("sleep 9"), headers=streaming(box)) as answer:
            stream = Open(answer)
            await stream.next()
            assert (await world.client.post(f"{one}/pause", headers=world.api)).status_code == 204
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                await stream.next()
        health = await world.client.get("/health", headers=server.envd(box))
        assert health.status_code == 502
        assert health.json()["message"] == "The sandbox was not found"
        connected = await world.client.post(f"{one}/connect", json={"timeout": 60}, headers=world.api)
        assert connected.status_code == 201
        assert (await world.client.get("/health", headers=server.envd(box))).status_code == 204
        assert (await world.client.get("/envs", headers=server.envd(box))).status_code == 200


async def test_traffic_wakes_who_wants_it(world):
    box = await world.create(autoPause=True, autoResume={"enabled": True})
    one = f"/sandboxes/{box['sandboxID']}"
    await world.client.post(f"{one}/pause", headers=world.api)
    # Who asks whether it runs, or for what is not served, does not wake it.
    assert (await world.client.get("/health", headers=server.envd(box))).status_code == 502
    assert (await world.client.post("/init", headers=server.envd(box))).status_code == 502
    assert (await world.client.get(one, headers=world.api)).json()["state"] == "paused"
    answers = await asyncio.gather(*(world.client.get("/envs", headers=server.envd(box)) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert (await world.client.get(one, headers=world.api)).json()["state"] == "running"
    assert (await world.client.get("/health", headers=server.envd(box))).status_code == 204


async def test_traffic_wakes_nobody_else(world, box):
    await world.client.post(f"/sandboxes/{box['sandboxID']}/pause", headers=world.api)
    for headers in (server.envd(box), server.code(box), {**server.envd(box), "E2b-Sandbox-Port": "8000"}):
        answer = await world.client.get("/envs", headers=headers)
        assert answer.status_code == 502
        assert answer.json()["message"] == "The sandbox was not found"


async def test_half_a_request_when_the_sandbox_ends(world, box):
    """Nothing has been answered yet: then it is told in words."""
    begun, told = asyncio.Event(), asyncio.Event()

    async def body():
        begun.set()
        yield b"x"
        await told.wait()  # httpx reads no answer before it has sent everything

    headers = server.envd(box, **{"Content-Type": "application/octet-stream"})
    uploading = asyncio.create_task(world.client.post("/files?path=a", content=body(), headers=headers))
    await begun.wait()
    await server.until(lambda: world.app._traffic._cuts._tasks)
    await world.client.delete(f"/sandboxes/{box['sandboxID']}", headers=world.api)
    told.set()
    assert (await uploading).status_code == 502


def test_codecs_agree():
    message = process_pb2.SendInputRequest(input=process_pb2.ProcessInput(stdin=b"\0\xff"))
    for codec in connect.CODECS.values():
        assert codec.decode(codec.encode(message), process_pb2.SendInputRequest) == message
    snake = connect.CODECS["json"].decode(b'{"watcher_id": "x", "new": 1}', filesystem_pb2.GetWatcherEventsRequest)
    assert snake.watcher_id == "x"
