import hashlib

import pytest

from glovebox import errors
from glovebox_server.contract import guest
from tests.support import manager_fakes as fakes

START = {"env": {}, "cwd": None, "user": "u", "stdin": False, "pty": None, "tag": None}
EXECUTE = {"context_id": None, "language": "python", "env": {}}


@pytest.fixture
async def box(world, server):
    return await server.create(fakes.REQUEST, fakes.KEY)


@pytest.fixture
def inner(world, box):
    return world.node.guests.setdefault(box.sandbox_id, fakes.FakeGuest())


@pytest.fixture
def face(server, box, inner):
    return server.guest(box.sandbox_id)


@pytest.fixture
def records(world, face):
    world.audit.records.clear()
    return world.audit.records


def messages(server, box):
    return [entry.message for entry in server.journal(box.sandbox_id) if not entry.message.startswith("sandbox")]


async def test_process_is_recorded_from_start_to_end(world, server, box, inner, face, records):
    inner.events = [guest.Started(7), guest.Output("stdout", b"hi\n"), guest.Exited(3, True, "exit status 3")]
    seen = []
    async for event in face.start_process(["/bin/sh", "-c", "echo $SECRET"], **START):
        if isinstance(event, guest.Started):
            assert [record.action for record in records] == ["process.start"]
            world.clock.elapsed += 2
        seen.append(event)
    assert seen == inner.events
    start, end = records
    assert start.code_hash == end.code_hash == hashlib.sha256(b"/bin/sh\0-c\0echo $SECRET").hexdigest()
    assert (start.sandbox_id, start.user_id) == (box.sandbox_id, fakes.KEY.key_id)
    assert "SECRET" not in repr(records)
    assert (end.action, end.exit_code, end.duration_ms) == ("process.end", 3, 2000)
    assert messages(server, box) == ["command started", "hi", "command ended"]
    assert b'sandbox_execution_time_seconds_count{kind="process"} 1.0' in world.telemetry.render()


async def test_end_seen_by_another_subscriber_is_recorded_once(inner, face, records):
    inner.events = [guest.Started(7)]
    inner.hold.clear()
    first = face.start_process(["x"], **START)
    await anext(first)
    await first.aclose()
    assert [record.action for record in records] == ["process.start"]
    inner.hold.set()
    inner.events = [guest.Started(7), guest.Exited(0, True, "exit status 0")]
    for _ in range(2):
        assert len([event async for event in face.connect_process(7)]) == 2
    assert [record.action for record in records] == ["process.start", "process.end"]


async def test_closing_reaches_the_guest_at_once(server, box, inner, face, records):
    inner.events = [guest.ExecutionStarted(1)]
    inner.hold.clear()
    events = face.execute("while True: pass", **EXECUTE)
    await anext(events)
    assert inner.closed == 0
    await events.aclose()
    assert inner.closed == 1
    assert [(record.action, record.detail.get("error")) for record in records] == [
        ("code.execute", None),
        ("code.end", "interrupted"),
    ]
    inner.events = [guest.Started(9)]
    for stream in (
        face.read_file("/f", user=None),
        face.watch("/", recursive=True, include_entry=False, user=None),
        face.connect_process(1),
        face.start_process(["x"], **START),
    ):
        before = inner.closed
        await anext(stream)
        await stream.aclose()
        assert inner.closed == before + 1


async def test_code_is_recorded_with_its_error(world, inner, face, records):
    inner.events = [
        guest.ExecutionStarted(1),
        guest.ExecutionError("NameError", "x", "..."),
        guest.ExecutionEnded(1),
    ]
    assert [event async for event in face.execute("x", **EXECUTE)] == inner.events
    assert records[1].code_hash == hashlib.sha256(b"x").hexdigest()
    assert records[1].detail == {"error": "NameError"}
    inner.events = [guest.ExecutionStarted(2), guest.ExecutionEnded(2)]
    assert len([event async for event in face.execute("\ud800", **EXECUTE)]) == 2
    assert records[3].detail == {}


async def test_files_are_recorded(inner, face, records):
    async def content():
        yield b"abc"

    await face.write_file("/a", content(), user=None, metadata={})
    await face.move("/a", "/b", user=None)
    await face.remove("/b", user=None)
    assert [(record.action, record.detail["path"]) for record in records] == [
        ("file.write", "/a"),
        ("file.move", "/a"),
        ("file.remove", "/b"),
    ]
    assert records[0].detail["size"] == "3"
    assert records[1].detail["destination"] == "/b"


async def test_refusals_are_counted_and_the_telling_ones_audited(world, server, box, inner, face, records):
    inner.error = errors.GuestError("not_found", "path '/x' does not exist")
    with pytest.raises(errors.GuestError):
        await face.stat("/x", user=None)
    assert records == []
    inner.error = errors.GuestError("permission_denied", "no")
    with pytest.raises(errors.GuestError):
        await face.remove("/x", user=None)
    [record] = records
    assert (record.action, record.security_events) == ("guest.refused", ("permission_denied",))
    assert b'sandbox_refusals_total{code="not_found"} 1.0' in world.telemetry.render()
    assert messages(server, box) == ["request refused"] * 2


async def test_broken_protocol_is_an_escape_attempt_once(world, inner, face, records):
    inner.error = errors.GuestProtocolError("frame too long")
    for _ in range(3):
        with pytest.raises(errors.GuestProtocolError):
            await face.stat("/x", user=None)
    assert [record.security_events for record in records] == [("protocol",)]
    assert b'sandbox_escape_attempts_total{kind="protocol"} 1.0' in world.telemetry.render()


async def test_work_that_cannot_be_audited_is_not_begun(world, inner, face, monkeypatch):
    def full(record):
        raise errors.CapacityError("the audit log cannot be written")

    monkeypatch.setattr(world.audit, "record", full)
    for stream in (face.execute("x", **EXECUTE), face.start_process(["x"], **START)):
        with pytest.raises(errors.CapacityError):
            await anext(stream)
    assert inner.closed == 0
    monkeypatch.undo()


async def test_one_face_per_sandbox(server, box, face):
    assert server.guest(box.sandbox_id) is face
