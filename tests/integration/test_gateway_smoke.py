"""The published Python SDKs against the gateway, whose sandboxes are memory guests: the wire, not what runs behind it."""

import asyncio

import e2b
import e2b_code_interpreter
import httpx
import pytest

from tests.support import server


@pytest.fixture
async def world(tmp_path, monkeypatch):
    async with server.world(tmp_path) as world:
        for name, value in (("API_KEY", world.key), ("API_URL", world.url), ("SANDBOX_URL", world.url)):
            monkeypatch.setenv("E2B_" + name, value)
        yield world


async def test_sandbox_and_commands(world):
    box = await e2b.AsyncSandbox.create(timeout=60, metadata={"a b": "c&d"}, envs={"X": "1"})
    assert await box.is_running()
    assert (await box.commands.run("echo hello")).stdout == "hello\n"
    with pytest.raises(e2b.CommandExitException) as failed:
        await box.commands.run("fail 3")
    assert (failed.value.exit_code, failed.value.stderr) == (3, "failed\n")
    handle = await box.commands.run("cat", background=True, stdin=True)
    await box.commands.send_stdin(handle.pid, "typed")
    await box.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "typed"
    with pytest.raises(e2b.TimeoutException):
        await box.commands.run("sleep 99", timeout=0.3)
    assert not await box.commands.kill(99999)
    found = await e2b.AsyncSandbox.list(query=e2b.SandboxQuery(metadata={"a b": "c&d"})).next_items()
    assert [one.sandbox_id for one in found] == [box.sandbox_id]
    assert (await box.get_info()).metadata == {"a b": "c&d"}
    again = await e2b.AsyncSandbox.connect(box.sandbox_id)
    assert (await again.commands.run("echo x")).stdout == "x\n"
    assert await box.kill()
    assert not await e2b.AsyncSandbox.kill(box.sandbox_id)
    assert not await box.is_running()


async def test_files(world):
    box = await e2b.AsyncSandbox.create()
    written = await box.files.write("a.txt", "hello", metadata={"k": "v"})
    assert (written.path, written.metadata) == ("/home/user/a.txt", {"k": "v"})
    assert await box.files.read("a.txt") == "hello"
    assert await box.files.read("a.txt", format="bytes", gzip=True) == b"hello"
    await box.files.write_files([{"path": "/home/user/b", "data": "1"}, {"path": "/home/user/c", "data": b"2"}])
    assert [one.name for one in await box.files.list("/home/user")] == ["a.txt", "b", "c"]
    assert await box.files.exists("a.txt")
    assert not await box.files.exists("nope")
    with pytest.raises(e2b.NotFoundException):
        await box.files.read("nope")
    assert await box.files.make_dir("/home/user/d")
    assert not await box.files.make_dir("/home/user/d")
    events = []
    watch = await box.files.watch_dir("/home/user", on_event=events.append)
    await box.files.write("e", b"x" * 300_000)
    await server.until(lambda: len(events) == 3)
    await watch.stop()
    assert (await world.client.get(box.download_url("a.txt"))).text == "hello"


async def test_code(world):
    box = await e2b_code_interpreter.AsyncSandbox.create()
    ran = await box.run_code("20+22")
    assert ran.text == "42"
    assert (await box.run_code("raise")).error.name == "ValueError"
    context = await box.create_code_context(cwd="/root")
    assert (context.language, context.cwd) == ("python", "/root")
    with pytest.raises(e2b.TimeoutException):
        await box.run_code("sleep", timeout=0.3)
    await server.until(lambda: world.guest(box.sandbox_id).interrupted == 1)


async def test_killed_while_a_command_runs(world):
    box = await e2b.AsyncSandbox.create()
    running = asyncio.create_task(box.commands.run("sleep 99"))
    await server.until(lambda: world.guest(box.sandbox_id)._infos)
    await e2b.AsyncSandbox.kill(box.sandbox_id)
    with pytest.raises(e2b.TimeoutException, match="sandbox was killed or reached its end of life"):
        await running


async def test_killed_while_code_runs(world):
    box = await e2b_code_interpreter.AsyncSandbox.create()
    running = asyncio.create_task(box.run_code("sleep"))
    await server.until(lambda: world.app._traffic._cuts._tasks.get(world.sandboxes.ended(box.sandbox_id)))
    await e2b.AsyncSandbox.kill(box.sandbox_id)
    with pytest.raises(e2b.TimeoutException, match="sandbox was killed while the request was in progress"):
        await running


async def test_errors(world, monkeypatch):
    with pytest.raises(e2b.SandboxNotFoundException):
        await e2b.AsyncSandbox.connect("i" + "0" * 19)
    with pytest.raises(e2b.AuthenticationException):
        await e2b.AsyncSandbox.create(api_key="e2b_" + "0" * 40)
    box = await e2b.AsyncSandbox.create()
    with pytest.raises(e2b.AuthenticationException, match="invalid username: 'nobody'"):
        await box.commands.run("echo", user="nobody")
    with pytest.raises(e2b.InvalidArgumentException, match="does not exist"):
        await box.commands.run("echo", cwd="/nope")


async def test_a_create_whose_caller_leaves_is_undone(world, monkeypatch):
    begun, go_on, create = asyncio.Event(), asyncio.Event(), world.node.create

    async def wait_and_create(spec, runtime):
        begun.set()
        await go_on.wait()
        return await create(spec, runtime)

    monkeypatch.setattr(world.node, "create", wait_and_create)
    url, body = httpx.URL(world.url), '{"templateID": "base"}'
    head = f"POST /v2/sandboxes HTTP/1.1\r\nhost: x\r\nX-API-Key: {world.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write((head + body).encode())
    await begun.wait()
    writer.close()
    await server.until(lambda: len(world.sandboxes._tasks) == 2)  # one makes it, one waits to end it
    go_on.set()
    await server.until(lambda: "sandbox.end" in world.audit.actions())
    assert list(world.sandboxes.live_all()) == []
    assert world.node.instances == {}
