"""The guest's face over a link: replies of every wrong form, early closing, and a link that is lost and opened again."""

import asyncio
import socket

import pytest

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.contract import guest as contract
from glovebox_server.node import guest
from tests.support import link_peer

ENTRY = {
    "name": "a",
    "type": "file",
    "path": "/a",
    "size": 3,
    "mode": 0o644,
    "permissions": "-rw-r--r--",
    "owner": "root",
    "group": "root",
    "mtime_ns": 1,
    "is_symlink": False,
    "metadata": {},
}
CONTEXT = {"id": "c", "language": "python", "cwd": "/"}
METRICS = dict.fromkeys(
    ("ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"), 1
)
PROCESS = {"pid": 5, "argv": ["sh"], "env": {}, "cwd": None, "tag": None}


class Inside:
    """The far side of a LinkedGuest: a new peer for each link it opens."""

    def __init__(self):
        self.peers = []
        self.broken = []
        self.guest = guest.LinkedGuest(self.open_socket, self.broken.append)

    async def open_socket(self):
        host, inside = socket.socketpair()
        host.setblocking(False)
        inside.setblocking(False)
        self.peers.append(link_peer.Peer(inside))
        await self.peers[-1].hello()
        return host

    @property
    def peer(self):
        return self.peers[-1]

    async def linked(self, count=1):
        """Wait until so many links have been opened."""
        async with asyncio.timeout(10):
            while True:
                if len(self.peers) >= count:
                    return
                await asyncio.sleep(0)

    async def reply(self, call, *messages):
        """Start `call`, answer its operation with these (kind, body or message), and give its result."""
        task = asyncio.ensure_future(call)
        await self.linked()
        opened = await self.peer.expect(wire.OPEN)
        for kind, content in messages:
            if isinstance(content, bytes):
                await self.peer.send(wire.encode(opened.channel, kind, content))
            else:
                await self.peer.say(opened.channel, kind, content)
        return await asyncio.wait_for(task, 10)


@pytest.fixture
async def inside():
    inside = Inside()
    yield inside
    inside.guest.close()
    for peer in inside.peers:
        peer.sock.close()


async def collect(events):
    return [event async for event in events]


def start(face):
    return collect(face.start_process(["x"], env={}, cwd=None, user=None, stdin=False, pty=None, tag=None))


def execute(face):
    return collect(face.execute("1", context_id=None, language=None, env={}))


def read(face):
    return collect(face.read_file("/a", user=None, length=4))


def watch(face):
    return collect(face.watch("/a", recursive=False, include_entry=False, user=None))


STARTED = (wire.EVENT, {"event": "start", "pid": 7})
EXITED = {"exit_code": 0, "exited": True, "status": "exit status 0"}
GOOD_RESULT = {"event": "result", "is_main_result": True, "data": {"text/plain": "1"}}


def end(**ok):
    return (wire.END, {"ok": ok})


WRONG = {
    "a start under another name": (start, [(wire.EVENT, {"event": "begin", "pid": 7}), end(**EXITED)]),
    "an entry under another name": (read, [(wire.EVENT, {"event": "file", "entry": ENTRY}), end()]),
    "a second entry in a download": (
        read,
        [(wire.EVENT, {"event": "entry", "entry": ENTRY}), (wire.EVENT, {"event": "entry", "entry": ENTRY}), end()],
    ),
    "entries under another name": (
        lambda face: face.list_dir("/", depth=1, user=None),
        [(wire.EVENT, {"event": "files", "entries": []}), end()],
    ),
    "a change under another name": (
        watch,
        [(wire.EVENT, {"event": "start"}), (wire.EVENT, {"event": "alter", "name": "a", "type": "write"}), end()],
    ),
    "an answer that says something": (lambda face: face.configure({}), [end(a=1)]),
    "an event before an answer": (lambda face: face.env(), [(wire.EVENT, {"event": "x"}), end(env={})]),
    "data before an answer": (lambda face: face.env(), [(wire.DATA, b"x"), end(env={})]),
    "no environment": (lambda face: face.env(), [end()]),
    "an environment of numbers": (lambda face: face.env(), [end(env={"A": 1})]),
    "half a character": (lambda face: face.env(), [(wire.END, b'{"ok":{"env":{"A":"\\ud800"}}}')]),
    "half a character in a name": (lambda face: face.env(), [(wire.END, b'{"ok":{"env":{"\\udfff":"a"}}}')]),
    "a missing metric": (lambda face: face.metrics(), [end(ts=1)]),
    "a metric of true": (lambda face: face.metrics(), [end(**{**METRICS, "ts": True})]),
    "an enormous metric": (lambda face: face.metrics(), [end(**{**METRICS, "ts": 10**400})]),
    "an infinite metric": (lambda face: face.metrics(), [(wire.END, b'{"ok":{"ts":1e999}}')]),
    "processes that are no list": (lambda face: face.list_processes(), [end(processes={})]),
    "a process without pid": (lambda face: face.list_processes(), [end(processes=[{**PROCESS, "pid": None}])]),
    "a process with pid 0": (lambda face: face.list_processes(), [end(processes=[{**PROCESS, "pid": 0}])]),
    "a process whose argv is text": (lambda face: face.list_processes(), [end(processes=[{**PROCESS, "argv": "sh"}])]),
    "a process that ends before it starts": (start, [end(**EXITED)]),
    "output before the start": (start, [(wire.DATA, b"x"), STARTED, end(**EXITED)]),
    "output of no stream": (start, [STARTED, (wire.DATA, b"x"), end(**EXITED)]),
    "a second start": (start, [STARTED, STARTED, end(**EXITED)]),
    "an unknown event": (start, [(wire.EVENT, {"event": "boo"})]),
    "a pid of 1.5": (start, [(wire.EVENT, {"event": "start", "pid": 1.5})]),
    "an enormous exit code": (start, [STARTED, end(**{**EXITED, "exit_code": 2**80})]),
    "an exit code of text": (start, [STARTED, end(**{**EXITED, "exit_code": "0"})]),
    "exited is a number": (start, [STARTED, end(**{**EXITED, "exited": 1})]),
    "an entry that is a list": (lambda face: face.stat("/a", user=None), [end(entry=[])]),
    "an entry of unknown type": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "type": "door"})]),
    "an entry of an unhashable type": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "type": []})]),
    "a negative size": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "size": -1})]),
    "an enormous size": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "size": 2**64})]),
    "a mode beyond bits": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "mode": 0o10000})]),
    "metadata of lists": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "metadata": {"a": []}})]),
    "an owner too long": (lambda face: face.stat("/a", user=None), [end(entry={**ENTRY, "owner": "o" * 513})]),
    "a listing of words": (
        lambda face: face.list_dir("/", depth=1, user=None),
        [(wire.EVENT, {"event": "entries", "entries": ["a"]}), end()],
    ),
    "data in a listing": (lambda face: face.list_dir("/", depth=1, user=None), [(wire.DATA, b"x"), end()]),
    "a download without entry": (read, [(wire.DATA, b"abc"), end()]),
    "a download answered at once": (read, [end()]),
    "more of a file than was asked for": (
        read,
        [(wire.EVENT, {"event": "entry", "entry": ENTRY}), (wire.DATA, b"12345"), end()],
    ),
    "a watch that starts with a change": (watch, [(wire.EVENT, {"event": "change", "name": "a", "type": "write"})]),
    "a watch that starts twice": (watch, [(wire.EVENT, {"event": "start"})] * 2),
    "a change of unknown type": (
        watch,
        [(wire.EVENT, {"event": "start"}), (wire.EVENT, {"event": "change", "name": "a", "type": "melt"})],
    ),
    "changes that are text": (lambda face: face.watcher_events("w"), [end(events="x")]),
    "a watcher id that is a number": (
        lambda face: face.create_watcher("/", recursive=False, include_entry=False, user=None),
        [end(watcher_id=1)],
    ),
    "an unknown event of an execution": (execute, [(wire.EVENT, {"event": "boo"})]),
    "a result without data": (execute, [(wire.EVENT, {**GOOD_RESULT, "data": None})]),
    "a result with a loose flag": (execute, [(wire.EVENT, {**GOOD_RESULT, "is_main_result": "yes"})]),
    "a deep result": (
        execute,
        [(wire.EVENT, b'{"event":"result","is_main_result":true,"data":{"a":' + b"[" * 90 + b"]" * 90 + b"}}")],
    ),
    "an infinite number in a result": (
        execute,
        [(wire.EVENT, b'{"event":"result","is_main_result":true,"data":{"a":[1e999]}}')],
    ),
    "half a character in a result": (
        execute,
        [(wire.EVENT, b'{"event":"result","is_main_result":true,"data":{"a":["\\ud800"]}}')],
    ),
    "an error that is no text": (
        execute,
        [(wire.EVENT, {"event": "error", "name": 1, "value": "", "traceback": ""})],
    ),
    "a terminal's output of an execution": (execute, [(wire.DATA, b"x")]),
    "an execution that ends in words": (execute, [end(execution_count="one")]),
    "contexts without ids": (lambda face: face.list_contexts(), [end(contexts=[{**CONTEXT, "id": None}])]),
    "a connection answered with data": (lambda face: face.dial(80), [(wire.DATA, b"x")]),
    "a connection with a wrong event": (lambda face: face.dial(80), [(wire.EVENT, {"event": "entries"})]),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_reply_of_a_wrong_form_ends_the_sandbox(inside, name):
    call, messages = WRONG[name]
    with pytest.raises(errors.GuestProtocolError):
        await inside.reply(call(inside.guest), *messages)
    assert len(inside.broken) == 1
    # It is ended for good: no new link is opened to it.
    with pytest.raises(errors.GuestProtocolError):
        await inside.guest.env()
    assert len(inside.peers) == 1


async def test_replies_of_the_right_form(inside):
    face = inside.guest
    assert await inside.reply(face.configure({"A": "b"}), end()) is None
    assert await inside.reply(face.env(), end(env={"A": "ü"})) == {"A": "ü"}
    assert (await inside.reply(face.metrics(), end(**METRICS)))["mem_used"] == 1.0
    assert await inside.reply(face.list_processes(), end(processes=[PROCESS])) == [
        contract.ProcessInfo(5, ("sh",), {}, None, None)
    ]
    assert (await inside.reply(face.stat("/a", user=None), end(entry=ENTRY))).mode == 0o644
    listing = [
        (wire.EVENT, {"event": "entries", "entries": [ENTRY]}),
        (wire.EVENT, {"event": "entries", "entries": []}),
    ]
    assert len(await inside.reply(face.list_dir("/", depth=1, user=None), *listing, end())) == 1
    assert await inside.reply(start(face), STARTED, end(**EXITED)) == [
        contract.Started(7),
        contract.Exited(0, True, "exit status 0"),
    ]
    shown = [(wire.EVENT, {"event": "started", "execution_count": 1}), (wire.EVENT, GOOD_RESULT)]
    assert await inside.reply(execute(face), *shown, end(execution_count=1)) == [
        contract.ExecutionStarted(1),
        contract.Result({"text/plain": "1"}, True),
        contract.ExecutionEnded(1),
    ]
    assert inside.broken == []


async def test_an_early_closed_stream_cancels_its_channel(inside):
    stream = inside.guest.connect_process(7)
    first = asyncio.ensure_future(anext(stream))
    await inside.linked()
    opened = await inside.peer.expect(wire.OPEN)
    await inside.peer.say(opened.channel, *STARTED)
    assert await asyncio.wait_for(first, 10) == contract.Started(7)
    await stream.aclose()
    assert (await inside.peer.expect(wire.CANCEL)).channel == opened.channel


STREAMS = {
    "list": lambda face: face.list_dir("/", depth=1, user=None),
    "read": read,
    "watch": watch,
    "execute": execute,
    "dial": lambda face: face.dial(80),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_cancelled_stream_cancels_its_channel(inside, name):
    call = asyncio.ensure_future(STREAMS[name](inside.guest))
    await inside.linked()
    opened = await inside.peer.expect(wire.OPEN)
    call.cancel()
    assert (await inside.peer.expect(wire.CANCEL)).channel == opened.channel


async def test_a_cancelled_call_cancels_its_channel(inside):
    call = asyncio.ensure_future(inside.guest.env())
    await inside.linked()
    opened = await inside.peer.expect(wire.OPEN)
    call.cancel()
    assert (await inside.peer.expect(wire.CANCEL)).channel == opened.channel


async def test_content_that_fails_cancels_the_write(inside):
    async def content():
        yield b"some"
        raise RuntimeError("the client went away")

    call = asyncio.ensure_future(inside.guest.write_file("/a", content(), user=None, metadata={}))
    with pytest.raises(RuntimeError, match="went away"):
        await call
    kinds = [(await inside.peer.frame()).kind for _ in range(4)]
    assert kinds == [wire.HELLO, wire.OPEN, wire.DATA, wire.CANCEL]


async def test_an_upload_answered_too_early_ends_the_sandbox(inside):
    async def content():
        while True:
            yield b"x" * 65536

    with pytest.raises(errors.GuestProtocolError):
        await inside.reply(inside.guest.write_file("/a", content(), user=None, metadata={}), end(entry=ENTRY))
    assert len(inside.broken) == 1


async def test_an_answer_that_never_comes_is_given_up(inside, monkeypatch):
    monkeypatch.setattr(guest, "ANSWER_TIMEOUT_S", 0.05)
    with pytest.raises(errors.GuestError) as caught:
        await asyncio.wait_for(inside.guest.env(), 10)
    assert caught.value.code == "deadline_exceeded"
    await inside.peer.expect(wire.CANCEL)


async def test_a_listing_without_end_is_refused(inside, monkeypatch):
    monkeypatch.setattr(guest, "MAX_LISTING_BYTES", 10_000)
    with pytest.raises(errors.GuestError) as caught:
        await inside.reply(
            inside.guest.list_dir("/", depth=9, user=None), (wire.EVENT, {"event": "entries", "entries": [ENTRY] * 20})
        )
    assert caught.value.code == "resource_exhausted"
    assert inside.broken == []


async def test_a_lost_link_is_opened_again_on_the_next_call(inside):
    await inside.reply(inside.guest.env(), end(env={}))
    in_flight = asyncio.ensure_future(inside.guest.env())
    await inside.peer.expect(wire.OPEN)
    inside.peer.sock.close()
    with pytest.raises(errors.SandboxGoneError):
        await asyncio.wait_for(in_flight, 10)
    both = asyncio.gather(inside.guest.env(), inside.guest.env())
    await inside.linked(2)
    for _ in range(2):
        await inside.peer.ok((await inside.peer.expect(wire.OPEN)).channel, env={"A": "b"})
    assert await asyncio.wait_for(both, 10) == [{"A": "b"}, {"A": "b"}]
    assert len(inside.peers) == 2
    assert inside.broken == []


async def test_a_closed_guest_stays_closed(inside):
    await inside.reply(inside.guest.env(), end(env={}))
    inside.guest.close()
    inside.guest.close()
    with pytest.raises(errors.SandboxGoneError):
        await inside.guest.env()
    assert len(inside.peers) == 1


async def test_a_connection_both_ways(inside):
    connection = await inside.reply(inside.guest.dial(80), (wire.EVENT, {"event": "connected"}))
    await connection.send(b"ping")
    data = await inside.peer.expect(wire.DATA)
    await connection.send_eof()
    await inside.peer.expect(wire.EOF)
    await inside.peer.send(wire.encode(data.channel, wire.DATA, b"pong"), wire.encode(data.channel, wire.EOF))
    assert await asyncio.wait_for(connection.receive(), 10) == b"pong"
    assert await asyncio.wait_for(connection.receive(), 10) == b""
    assert await connection.receive() == b""
    await connection.close()
