"""What every runtime must do, seen through the node and the guest: one suite, run on each of them."""

import asyncio
import os
import pathlib
import signal
import time

import pytest

from glovebox import errors
from glovebox_server.contract import guest as contract
from glovebox_server.model import ids
from glovebox_server.runtimes import fake

WAIT_S = 30
MIB = 1024 * 1024


@pytest.fixture
def face(world, made):
    return world.node.guest(made.sandbox_id)


def start(face, *argv, **options):
    options = {"env": {}, "cwd": None, "user": None, "stdin": False, "pty": None, "tag": None, **options}
    return face.start_process(argv, **options)


async def run(face, *argv, **options):
    """Run to the end: (stdout, stderr, how it ended)."""
    return await finish(start(face, *argv, **options))


async def finish(events):
    out = {"stdout": b"", "stderr": b"", "pty": b""}
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            if isinstance(event, contract.Output):
                out[event.stream] += event.data
    assert isinstance(event, contract.Exited)
    return out["stdout"] + out["pty"], out["stderr"], event


async def begin(events):
    """The pid of a process that has just been started."""
    event = await asyncio.wait_for(anext(events), WAIT_S)
    assert isinstance(event, contract.Started)
    return event.pid


async def output_until(events, wanted):
    """Read output until `wanted` has been seen in it."""
    seen = b""
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            if isinstance(event, contract.Output):
                seen += event.data
                if wanted in seen:
                    return seen
    raise AssertionError(f"{wanted!r} was never printed, only {seen!r}")


async def chunks(*parts):
    for part in parts:
        yield part


async def eventually(condition):
    async with asyncio.timeout(WAIT_S):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.01)


# --- what a runtime says of itself ---


async def test_probe(world):
    (probe,) = await world.node.probe()
    assert probe.runtime == world.runtime_name
    assert probe.available, probe.missing
    assert probe.boundary
    if not world.case.isolates:
        assert "none" in probe.boundary


async def test_made_says_what_stands_between(world, made):
    assert made.boundary
    assert made.record


def test_the_fake_runtime_cannot_be_made_by_accident(tmp_path):
    with pytest.raises(TypeError):
        fake.FakeRuntime(tmp_path)
    with pytest.raises(errors.UnsupportedError):
        fake.FakeRuntime(tmp_path, acknowledge=True)


# --- processes ---


async def test_output_error_and_exit_code(face):
    out, err, exited = await run(face, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (out, err) == (b"out\n", b"err\n")
    assert (exited.exit_code, exited.exited, exited.status) == (3, True, "exit status 3")


async def test_ended_by_a_signal(face):
    _, _, exited = await run(face, "sh", "-c", "kill -9 $$")
    assert (exited.exit_code, exited.exited, exited.status) == (-1, False, "signal: killed")


async def test_a_program_that_is_not_there(face):
    _, err, exited = await run(face, "/no/such/program")
    assert exited.exit_code == 127
    assert err


async def test_environment_and_directory(world, made, face):
    workdir = world.case.workdir
    out, _, _ = await run(
        face, "sh", "-c", "echo $GREETING $OWN $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID; pwd",
        env={"OWN": "mine"}, cwd=workdir,
    )  # fmt: skip
    assert out.decode() == f"hello mine true {made.sandbox_id} base\n{workdir}\n"
    assert (await face.env())["GREETING"] == "hello"


async def test_a_directory_that_is_not_there(face):
    with pytest.raises(errors.GuestError) as caught:
        await run(face, "true", cwd="/no/such/place")
    assert caught.value.code == "invalid_argument"


async def test_a_user_that_is_not_there(face):
    with pytest.raises(errors.GuestError) as caught:
        await run(face, "true", user="nobody-knows-me")
    assert caught.value.code == "unauthenticated"


async def test_each_user_can_be_had(world, face):
    for user in sorted(world.case.users):
        out, _, _ = await run(face, "id", "-un", user=user)
        assert out.decode().strip() == user


async def test_standard_input(face):
    # It outlives its input, so that the second close still finds it.
    events = start(face, "sh", "-c", "cat; echo closed; exec sleep 600", stdin=True)
    pid = await begin(events)
    await face.send_input(pid, chunks(b"one ", b"two"))
    assert await output_until(events, b"one two")
    await face.close_stdin(pid)
    await face.close_stdin(pid)
    await output_until(events, b"closed")
    await face.signal_process(pid, signal.SIGKILL)
    assert (await finish(events))[2].status == "signal: killed"


async def test_without_standard_input_there_is_none(face):
    out, _, _ = await run(face, "sh", "-c", "cat; echo end")
    assert out == b"end\n"


async def test_a_terminal_and_its_size(face):
    events = start(face, "sh", "-c", "stty size; read line; stty size; exit 4", pty=(80, 24))
    pid = await begin(events)
    await output_until(events, b"24 80")
    await face.resize(pid, 100, 30)
    await face.send_input(pid, chunks(b"go\n"))
    out, _, exited = await finish(events)
    assert b"30 100" in out
    assert exited.exit_code == 4


async def test_in_the_background_listed_connected_and_killed(face):
    events = start(face, "sh", "-c", "trap 'echo caught' USR1; while true; do echo up; sleep 0.05; done", tag="loop")
    pid = await begin(events)
    await events.aclose()  # only the subscriber goes
    (process,) = [process for process in await face.list_processes() if process.pid == pid]
    assert process.tag == "loop"
    assert process.argv[0] == "sh"
    again = face.connect_process("loop")
    assert await begin(again) == pid
    await output_until(again, b"up")  # the trap is set
    await face.signal_process(pid, signal.SIGUSR1)
    await output_until(again, b"caught")
    await face.signal_process("loop", signal.SIGKILL)
    _, _, exited = await finish(again)
    assert exited.status == "signal: killed"
    assert pid not in [process.pid for process in await face.list_processes()]


async def test_unknown_processes(face):
    for call in (
        face.signal_process(4_000_000, 9),
        face.send_input("nobody", chunks(b"x")),
        face.close_stdin("nobody"),
    ):
        with pytest.raises(errors.GuestError) as caught:
            await call
        assert caught.value.code == "not_found"


async def test_much_output_comes_whole_while_another_process_answers(face):
    events = start(face, "sh", "-c", f"head -c {64 * MIB} /dev/zero")
    await begin(events)
    out, _, _ = await run(face, "echo", "meanwhile")  # nobody reads the flood yet
    assert out == b"meanwhile\n"
    size = 0
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            size += len(event.data) if isinstance(event, contract.Output) else 0
    assert size == 64 * MIB


async def test_metrics_and_usage(world, made, face):
    metrics = await face.metrics()
    assert metrics["mem_total"] > 0
    assert metrics["cpu_count"] > 0
    usage = await world.node.usage(made.sandbox_id)
    assert usage.memory_bytes > 0
    assert usage.pids >= 1


# --- files ---


async def read(face, path, **options):
    content = face.read_file(path, user=None, **options)
    entry = await asyncio.wait_for(anext(content), WAIT_S)
    assert isinstance(entry, contract.Entry)
    return entry, b"".join([chunk async for chunk in content])


async def write(face, path, *parts, **metadata):
    return await asyncio.wait_for(face.write_file(path, chunks(*parts), user=None, metadata=metadata), WAIT_S)


async def test_a_file_there_and_back(world, face):
    path = f"{world.case.workdir}/new/file"
    entry = await write(face, path, b"some ", b"content", purpose="test")
    assert (entry.name, entry.type, entry.size, entry.mode) == ("file", "file", 12, 0o644)
    assert entry.metadata == {"purpose": "test"}
    assert (await read(face, path))[1] == b"some content"
    assert (await read(face, path, offset=5))[1] == b"content"
    assert (await read(face, path, offset=1, length=3))[1] == b"ome"
    assert await face.stat(path, user=None) == entry


async def test_a_big_file_is_streamed_both_ways(world, face):
    block = os.urandom(MIB)
    path = f"{world.case.workdir}/big"
    entry = await write(face, path, *[block] * 100)
    assert entry.size == 100 * MIB
    at = 0
    async with asyncio.timeout(WAIT_S):
        async for chunk in face.read_file(path, user=None):
            if isinstance(chunk, bytes):
                assert chunk == (block + block)[at % MIB : at % MIB + len(chunk)]
                at += len(chunk)
    assert at == 100 * MIB


async def test_an_empty_file(world, face):
    path = f"{world.case.workdir}/empty"
    assert (await write(face, path)).size == 0
    assert (await read(face, path))[1] == b""


async def test_a_write_that_fails_leaves_the_file_as_it_was(world, face):
    path = f"{world.case.workdir}/kept"
    await write(face, path, b"before")

    async def broken():
        yield b"half"
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        await face.write_file(path, broken(), user=None, metadata={})
    assert (await read(face, path))[1] == b"before"

    async def names():
        return [entry.name for entry in await face.list_dir(world.case.workdir, depth=1, user=None)] == ["kept"]

    await eventually(names)


async def test_directories(world, face):
    top = f"{world.case.workdir}/tree"
    assert (await face.make_dir(f"{top}/a/b", user=None)).type == "directory"
    await write(face, f"{top}/a/file", b"x")
    names = [entry.path.removeprefix(top) for entry in await face.list_dir(top, depth=5, user=None)]
    assert names == ["/a", "/a/b", "/a/file"]
    assert [entry.name for entry in await face.list_dir(top, depth=1, user=None)] == ["a"]
    with pytest.raises(errors.GuestError) as caught:
        await face.make_dir(top, user=None)
    assert caught.value.code == "already_exists"
    moved = await face.move(f"{top}/a", f"{top}/else/where", user=None)
    assert moved.path == f"{top}/else/where"
    await face.remove(top, user=None)
    await face.remove(top, user=None)
    with pytest.raises(errors.GuestError) as caught:
        await face.stat(top, user=None)
    assert caught.value.code == "not_found"


async def test_many_entries(world, face):
    await run(face, "sh", "-c", "mkdir many; cd many; seq 5000 | xargs touch", cwd=world.case.workdir)
    assert len(await face.list_dir(f"{world.case.workdir}/many", depth=1, user=None)) == 5000


async def test_a_name_that_is_no_text_harms_nobody(world, face):
    """Any program may make one; it must not cost it the sandbox."""
    await run(face, "sh", "-c", "touch $(printf 'bad\\377name')", cwd=world.case.workdir)
    (entry,) = await face.list_dir(world.case.workdir, depth=1, user=None)
    assert entry.name.startswith("bad")
    entry.name.encode()


async def test_a_symlink(world, face):
    path = f"{world.case.workdir}/link"
    await run(face, "ln", "-s", "/etc", path)
    entry = await face.stat(path, user=None)
    assert (entry.type, entry.is_symlink, entry.symlink_target) == ("directory", True, "/etc")


async def test_watching(world, face):
    changes = face.watch(world.case.workdir, recursive=True, include_entry=False, user=None)
    assert await asyncio.wait_for(anext(changes), WAIT_S) is None
    await write(face, f"{world.case.workdir}/seen", b"x")
    async with asyncio.timeout(WAIT_S):
        seen = [(await anext(changes)) for _ in range(3)]
    assert [(change.name, change.type) for change in seen] == [("seen", "create"), ("seen", "chmod"), ("seen", "write")]
    await changes.aclose()


async def test_a_watcher_that_is_asked(world, face):
    watcher = await face.create_watcher(world.case.workdir, recursive=False, include_entry=True, user=None)
    await face.make_dir(f"{world.case.workdir}/seen", user=None)

    async def events():
        return await face.watcher_events(watcher)

    change = (await eventually(events))[0]
    assert (change.name, change.type) == ("seen", "create")
    assert change.entry is not None
    assert change.entry.type == "directory"
    await face.remove_watcher(watcher)
    with pytest.raises(errors.GuestError) as caught:
        await face.watcher_events(watcher)
    assert caught.value.code == "not_found"


# --- code ---


@pytest.fixture
async def context(world, face):
    return (await face.create_context(language="python", cwd=world.case.workdir)).context_id


async def execute(face, context, code, **options):
    events = []
    async with asyncio.timeout(WAIT_S):
        async for event in face.execute(code, context_id=context, language=None, env={}, **options):
            events.append(event)
    # What the code prints may overtake the word that it has started.
    assert len(of(events, contract.ExecutionStarted)) == 1
    assert isinstance(events[-1], contract.ExecutionEnded)
    return events


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


async def test_code_keeps_its_state_and_shows_its_value(world, face, context):
    await execute(face, context, "x = 20")
    events = await execute(face, context, "import os; print('cwd', os.getcwd()); x + 1")
    (result,) = of(events, contract.Result)
    assert result.data["text/plain"] == "21"
    assert result.is_main_result
    output = b"".join(event.data for event in of(events, contract.Output))
    assert output.decode() == f"cwd {world.case.workdir}\n"


async def test_a_rich_result(face, context):
    code = "class Rich:\n    def _repr_html_(self): return '<b>ü</b>'\nRich()"
    (result,) = of(await execute(face, context, code), contract.Result)
    assert result.data["text/html"] == "<b>ü</b>"


async def test_code_that_raises(face, context):
    (error,) = of(await execute(face, context, "1 / 0"), contract.ExecutionError)
    assert error.name == "ZeroDivisionError"
    assert "1 / 0" in error.traceback


async def test_an_error_in_half_characters_harms_nobody(face, context):
    (error,) = of(await execute(face, context, "raise ValueError(chr(0xd800))"), contract.ExecutionError)
    assert error.name == "ValueError"


async def test_interrupting(face, context):
    running = asyncio.ensure_future(execute(face, context, "import time\nprint('in', flush=True)\ntime.sleep(600)"))

    async def interrupted():
        await face.interrupt_context(context)
        await asyncio.wait([running], timeout=0.2)
        return running.done()

    await eventually(interrupted)
    (error,) = of(await running, contract.ExecutionError)
    assert error.name == "KeyboardInterrupt"
    assert of(await execute(face, context, "1 + 1"), contract.Result)


async def test_closing_an_execution_interrupts_it(face, context):
    events = face.execute(
        "import time\nprint('in', flush=True)\ntime.sleep(600)", context_id=context, language=None, env={}
    )
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            if isinstance(event, contract.Output):
                break
    await events.aclose()
    assert of(await execute(face, context, "1 + 1"), contract.Result)


async def test_contexts_come_and_go(face, context):
    assert context in [context.context_id for context in await face.list_contexts()]
    await execute(face, context, "x = 1")
    await face.restart_context(context)
    (error,) = of(await execute(face, context, "x"), contract.ExecutionError)
    assert error.name == "NameError"
    await face.remove_context(context)
    with pytest.raises(errors.GuestError) as caught:
        await execute(face, context, "1")
    assert caught.value.code == "not_found"


# --- ports ---

SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
data = b""
while chunk := connection.recv(65536):
    data += chunk
connection.sendall(b"got %d" % len(data))
connection.close()
"""


async def test_dialling_a_server_inside(world, face):
    events = start(face, world.case.template.python, "-c", SERVER)
    await begin(events)
    port = int(await output_until(events, b"\n"))
    connection = await face.dial(port)
    for _ in range(64):
        await connection.send(b"x" * 65536)
    await connection.send_eof()
    received = b""
    async with asyncio.timeout(WAIT_S):
        while chunk := await connection.receive():
            received += chunk
    assert received == b"got %d" % (64 * 65536)
    await connection.close()
    assert (await finish(events))[2].exit_code == 0


async def test_dialling_where_nobody_listens(face):
    with pytest.raises(errors.GuestError) as caught:
        await face.dial(1)
    assert caught.value.code == "unavailable"


# --- the end, and what is left of it ---


def marked(sandbox_id):
    """The host's processes that carry this sandbox's id in their environment."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if sandbox_id.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


STUBBORN = "trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM; sleep 600' &) ; echo up; sleep 600"


async def test_destroy_leaves_no_process(world, made, face):
    events = start(face, "sh", "-c", STUBBORN)
    await output_until(events, b"up")
    assert len(marked(made.sandbox_id)) >= 2
    await world.node.destroy(made.sandbox_id)
    assert marked(made.sandbox_id) == []
    with pytest.raises(errors.SandboxGoneError):
        await finish(events)
    with pytest.raises(errors.SandboxGoneError):
        world.node.guest(made.sandbox_id)
    with pytest.raises(errors.SandboxGoneError):
        await face.env()
    assert world.ended == {}


async def test_destroy_leaves_no_file_and_no_descriptor(world, folder):
    await world.node.destroy((await world.create()).sandbox_id)  # what is made once for all is made now
    seen: list[object] = []

    def settled():
        """Nothing has changed for a while: what a runtime makes ahead of need has been made."""
        seen.append((sorted(folder.rglob("*")), len(os.listdir("/proc/self/fd"))))
        return len(seen) > 20 and all(one == seen[-1] for one in seen[-20:])

    await eventually(settled)
    before = seen[-1]
    made = await world.create()
    await world.node.guest(made.sandbox_id).env()
    await world.node.destroy(made.sandbox_id)
    seen.clear()
    await eventually(settled)
    assert seen[-1] == before


async def test_destroy_twice_and_at_once(world, made):
    await asyncio.gather(world.node.destroy(made.sandbox_id), world.node.destroy(made.sandbox_id))
    await world.node.destroy(made.sandbox_id)
    assert marked(made.sandbox_id) == []


async def test_destroy_during_create(world):
    for delay in (0, 1, 3, 10, 30, 100):
        spec = world.spec()
        creating = asyncio.create_task(world.node.create(spec, world.runtime_name))
        for _ in range(delay):
            await asyncio.sleep(0)
        await world.node.destroy(spec.sandbox_id)
        await asyncio.wait([creating])
        if creating.exception() is not None:
            assert isinstance(creating.exception(), errors.SandboxGoneError)
        await world.node.destroy(spec.sandbox_id)
        assert marked(spec.sandbox_id) == []


async def test_create_that_is_cancelled_leaves_nothing(world):
    spec = world.spec()
    creating = asyncio.create_task(world.node.create(spec, world.runtime_name))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    creating.cancel()
    await asyncio.wait([creating])
    assert marked(spec.sandbox_id) == []
    assert await world.runtime.sweep([]) == []


async def test_a_sandbox_that_dies_is_told_and_cleared_up(world, made, face):
    events = start(face, "sh", "-c", STUBBORN)
    await output_until(events, b"up")
    os.kill(made.record["pid"], signal.SIGKILL)
    assert await world.until_ended(made.sandbox_id)
    assert marked(made.sandbox_id) == []
    with pytest.raises(errors.SandboxGoneError):
        world.node.guest(made.sandbox_id)


async def test_two_sandboxes_do_not_end_together(world, made):
    other = await world.create()
    await world.node.destroy(made.sandbox_id)
    out, _, _ = await run(world.node.guest(other.sandbox_id), "echo", "alive")
    assert out == b"alive\n"


# --- pausing (every runtime here has the capability; a host without a freezer would fail these, and is to) ---

COUNT = "i=0; while true; do i=$((i+1)); echo $i > {}; done"


async def counting(world, face):
    """A program that writes ever larger numbers; its pid, and how far it is."""
    path = f"{world.case.workdir}/count-{ids.new_sandbox_id()}"
    pid = await begin(start(face, "sh", "-c", COUNT.format(path), tag="counter"))

    async def count():
        out, _, _ = await run(face, "cat", path)
        return int(out or 0)

    await eventually(lambda: larger(count, 0))
    return pid, count


async def larger(count, than):
    return await count() > than


async def used(world, sandbox_id):
    return (await world.node.usage(sandbox_id)).cpu_seconds


@pytest.fixture
async def other(world):
    """A sandbox that is always busy: what it does is how time is told."""
    made = await world.create()
    await begin(start(world.node.guest(made.sandbox_id), "sh", "-c", "while true; do :; done"))
    return made


async def stands_still(world, made, other):
    """Whether it takes no processor time while the other takes a good deal of it."""
    before, other_before = await used(world, made.sandbox_id), await used(world, other.sandbox_id)

    async def other_went_on():
        return await used(world, other.sandbox_id) > other_before + 0.2

    await eventually(other_went_on)
    return await used(world, made.sandbox_id) == before


async def test_pause_is_a_capability(world):
    (probe,) = await world.node.probe()
    assert "pause" in probe.capabilities
    assert world.node.capabilities(world.runtime_name) == probe.capabilities


async def test_a_paused_sandbox_stands_still_and_goes_on(world, made, other, face):
    pid, count = await counting(world, face)
    context = (await face.create_context(language="python", cwd=world.case.workdir)).context_id
    await execute(face, context, "x = 42")
    assert not await stands_still(world, made, other)  # so that the next line could fail
    for _ in range(3):
        await world.node.pause(made.sandbox_id)
        await world.node.pause(made.sandbox_id)
        assert await stands_still(world, made, other)
        assert (await world.node.usage(made.sandbox_id)).memory_bytes > 0
        await world.node.resume(made.sandbox_id)
        await world.node.resume(made.sandbox_id)
        seen = await count()
        await eventually(lambda seen=seen: larger(count, seen))
    assert [(process.pid, process.tag) for process in await face.list_processes()] == [(pid, "counter")]
    assert (await face.env())["GREETING"] == "hello"
    (result,) = of(await execute(face, context, "x"), contract.Result)
    assert result.data["text/plain"] == "42"
    assert world.ended == {}


async def test_calls_to_a_paused_sandbox_end_at_once(world, made, face):
    events = start(face, "sleep", "600")
    await begin(events)
    await world.node.pause(made.sandbox_id)
    with pytest.raises(errors.SandboxGoneError):
        await finish(events)
    with pytest.raises(errors.SandboxGoneError, match="paused"):
        await face.env()
    await world.node.resume(made.sandbox_id)
    assert (await face.env())["GREETING"] == "hello"


async def test_a_fork_storm_is_paused_too(world, made, other, face):
    await begin(start(face, "sh", "-c", "while true; do (true; true) & wait; done"))
    await world.node.pause(made.sandbox_id)
    assert await stands_still(world, made, other)
    await world.node.resume(made.sandbox_id)


async def test_a_paused_sandbox_is_destroyed_and_leaves_nothing(world, made, face):
    await begin(start(face, "sh", "-c", STUBBORN))
    await counting(world, face)
    await world.node.pause(made.sandbox_id)
    await asyncio.wait_for(world.node.destroy(made.sandbox_id), WAIT_S)
    assert marked(made.sandbox_id) == []
    await world.node.destroy(made.sandbox_id)
    with pytest.raises(errors.SandboxGoneError):
        await world.node.resume(made.sandbox_id)


async def test_destroyed_while_it_is_being_paused(world, made, face):
    await begin(start(face, "sh", "-c", STUBBORN))
    pausing = asyncio.create_task(world.node.pause(made.sandbox_id))
    await asyncio.sleep(0)
    await asyncio.wait_for(world.node.destroy(made.sandbox_id), WAIT_S)
    await asyncio.wait([pausing])
    assert marked(made.sandbox_id) == []


async def test_a_paused_sandbox_outlives_a_crash(world, made, other, face):
    await counting(world, face)
    await world.node.pause(made.sandbox_id)
    await world.crash()
    assert await world.node.adopt(other.sandbox_id, world.runtime_name, other.record) is not None
    again = await world.node.adopt(made.sandbox_id, world.runtime_name, made.record, paused=True)
    assert again is not None
    assert await stands_still(world, made, other)
    await world.node.resume(made.sandbox_id)
    face = world.node.guest(made.sandbox_id)
    assert (await face.env())["GREETING"] == "hello"
    assert [process.tag for process in await face.list_processes()] == ["counter"]


async def test_one_found_paused_that_is_to_run_runs(world, made):
    await world.node.pause(made.sandbox_id)
    await world.crash()
    assert await world.node.adopt(made.sandbox_id, world.runtime_name, made.record) is not None
    assert (await world.node.guest(made.sandbox_id).env())["GREETING"] == "hello"


async def test_a_paused_sandbox_is_swept_after_a_crash(world, made, face):
    await begin(start(face, "sh", "-c", STUBBORN))
    await world.node.pause(made.sandbox_id)
    await world.crash()
    assert await asyncio.wait_for(world.node.sweep([]), WAIT_S) == [made.sandbox_id]
    assert marked(made.sandbox_id) == []


# --- after a crash of the server ---


async def test_adoption_after_a_crash(world, made, face):
    events = start(face, "sleep", "600", tag="before")
    pid = await begin(events)
    context = (await face.create_context(language="python", cwd=world.case.workdir)).context_id
    await execute(face, context, "x = 42")
    await world.crash()
    with pytest.raises(errors.SandboxGoneError):
        await finish(events)
    again = await world.node.adopt(made.sandbox_id, world.runtime_name, made.record)
    assert again is not None
    assert (again.sandbox_id, again.boundary, again.record) == (made.sandbox_id, made.boundary, made.record)
    face = world.node.guest(made.sandbox_id)
    assert [(process.pid, process.tag) for process in await face.list_processes()] == [(pid, "before")]
    assert (await face.env())["GREETING"] == "hello"
    (result,) = of(await execute(face, context, "x"), contract.Result)
    assert result.data["text/plain"] == "42"
    await world.node.destroy(made.sandbox_id)
    assert marked(made.sandbox_id) == []


async def test_what_died_meanwhile_is_not_adopted_and_leaves_nothing(world, made, face):
    events = start(face, "sh", "-c", STUBBORN)
    await output_until(events, b"up")
    await world.crash()
    os.kill(made.record["pid"], signal.SIGKILL)
    with pytest.raises(errors.SandboxGoneError):
        await finish(events)
    await eventually(lambda: made.record["pid"] not in marked(made.sandbox_id))
    assert await world.node.adopt(made.sandbox_id, world.runtime_name, made.record) is None
    assert marked(made.sandbox_id) == []


async def test_an_unknown_sandbox_is_not_adopted(world, made):
    assert await world.node.adopt(ids.new_sandbox_id(), world.runtime_name, {"pid": 1, "start_time": 0}) is None
    out, _, _ = await run(world.node.guest(made.sandbox_id), "echo", "alive")
    assert out == b"alive\n"


async def test_sweep_after_a_crash(world, made):
    unwanted = await world.create()
    await world.crash()
    assert await world.node.adopt(made.sandbox_id, world.runtime_name, made.record) is not None
    assert await world.node.sweep([made.sandbox_id]) == [unwanted.sandbox_id]
    assert marked(unwanted.sandbox_id) == []
    out, _, _ = await run(world.node.guest(made.sandbox_id), "echo", "alive")
    assert out == b"alive\n"
    assert await world.node.sweep([made.sandbox_id]) == []


async def test_a_lost_link_is_opened_again(world, made, face):
    """Another link replaces the first, as after a restart; the next call takes it back."""
    events = start(face, "sleep", "600")
    await begin(events)
    instance = world.node._held[made.sandbox_id].instance
    sock = await instance.open_link()
    with pytest.raises(errors.SandboxGoneError):
        await finish(events)
    sock.close()
    assert (await face.env())["GREETING"] == "hello"
    assert world.ended == {}


async def test_many_at_once(world):
    started = time.perf_counter()
    made = await asyncio.gather(*(world.create() for _ in range(8)))
    outs = await asyncio.gather(*(run(world.node.guest(one.sandbox_id), "echo", one.sandbox_id) for one in made))
    assert [out.decode().strip() for out, _, _ in outs] == [one.sandbox_id for one in made]
    assert time.perf_counter() - started < WAIT_S
    await asyncio.gather(*(world.node.destroy(one.sandbox_id) for one in made))
    assert [pid for one in made for pid in marked(one.sandbox_id)] == []
