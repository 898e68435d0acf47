"""The fake runtime with a stand-in for the guest agent: what it starts, finds again, kills, and leaves nothing of."""

import asyncio
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

from glovebox import errors
from glovebox_server.model import ids, resources, sandbox, template
from glovebox_server.runtimes import fake

#: Runs each line it is sent as a shell command with the sandbox's mark, in a session of its own, and answers its pid.
AGENT = """
import os, socket, subprocess, sys
assert sys.argv[1:] == ["--listen-fd", "3"], sys.argv
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    for line in connection.makefile():
        folder = os.environ["GLOVEBOX_FAKE_FOLDER"]
        env = {"PATH": os.environ["PATH"], "E2B_SANDBOX_ID": os.path.basename(folder)}
        process = subprocess.Popen(line, shell=True, env=env, start_new_session=True)
        connection.sendall(b"%d\\n" % process.pid)
"""


@pytest.fixture
def folder():
    path = pathlib.Path(tempfile.mkdtemp(prefix="gb"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def base(folder):
    package = folder / "stand-in" / "glovebox_guest"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(AGENT)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/stand-in exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return template.Template("base", ("base",), (), str(python), "/usr/bin:/bin", runtime="fake")


@pytest.fixture
async def runtime(folder, base):
    runtime = fake.FakeRuntime(folder / "data", acknowledge="isolates nothing")
    await runtime.prepare(base)
    yield runtime
    await runtime.sweep([])
    await runtime.close(destroy=True)


def spec():
    return sandbox.SandboxSpec(ids.new_sandbox_id(), "base", resources.Resources(), {}, "host")


async def run(instance, command):
    """Have the agent start a command; its pid."""
    sock = await instance.open_link()
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, command.encode() + b"\n")
        return int(await asyncio.wait_for(loop.sock_recv(sock, 100), 20))
    finally:
        sock.close()


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def members(instance):
    """All processes of an instance, by its agent's tree."""
    pid = instance.record()["pid"]
    return [pid, *fake._descendants(pid)]


async def until(condition):
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


STUBBORN = "trap '' TERM INT HUP; (setsid env -i sh -c 'sleep 600; true' &); (setsid env -i sh -c 'sleep 601; true' &); sleep 602"


async def test_processes_that_hide_are_killed_with_the_agent(runtime, base):
    instance = await runtime.create(spec(), base)
    await run(instance, STUBBORN)
    # The agent, the shell and its sleep, and two sessions of two, without any mark in their environment.
    await until(lambda: len(members(instance)) >= 7)
    pids = members(instance)
    await instance.destroy()
    assert not any(map(alive, pids))
    await instance.destroy()
    assert await asyncio.wait_for(instance.wait(), 10)


async def test_orphans_of_a_dead_agent_are_killed(runtime, base):
    instance = await runtime.create(spec(), base)
    orphan = await run(instance, "sleep 600")
    os.kill(instance.record()["pid"], signal.SIGKILL)
    assert await asyncio.wait_for(instance.wait(), 10)
    assert alive(orphan)
    with pytest.raises(errors.SandboxGoneError):
        await instance.open_link()
    with pytest.raises(errors.SandboxGoneError):
        await instance.usage()
    await instance.destroy()
    assert not alive(orphan)


async def test_a_dead_agent_is_no_zombie(runtime, base):
    instance = await runtime.create(spec(), base)
    await run(instance, "true")
    pid = instance.record()["pid"]
    await instance.destroy()
    assert not os.path.exists(f"/proc/{pid}")


async def test_adopted_by_a_new_runtime(runtime, base, folder):
    asked = spec()
    instance = await runtime.create(asked, base)
    await run(instance, "sleep 600")
    record = instance.record()
    await runtime.close(destroy=False)
    assert alive(record["pid"])
    later = fake.FakeRuntime(folder / "data", acknowledge="isolates nothing")
    again = await later.adopt(asked.sandbox_id, record)
    assert again.record() == record
    assert (await again.usage()).pids >= 2
    pids = members(again)
    await again.destroy()
    assert not any(map(alive, pids))


async def test_a_pid_that_somebody_else_has_now_is_not_adopted(runtime, base):
    asked = spec()
    instance = await runtime.create(asked, base)
    await run(instance, "true")  # it has its own environment by now, by which it is found
    record = {**instance.record(), "pid": os.getpid()}
    assert await runtime.adopt(asked.sandbox_id, record) is None
    assert not alive(instance.record()["pid"])  # what its folder stands for is gone as well


async def test_sweep_finds_what_was_never_written_down(runtime, base):
    kept, unwanted = await runtime.create(spec(), base), await runtime.create(spec(), base)
    half_made = ids.new_sandbox_id()
    (runtime._data_folder / half_made).mkdir()
    swept = await runtime.sweep([kept.sandbox_id])
    assert sorted(swept) == sorted([unwanted.sandbox_id, half_made])
    assert alive(kept.record()["pid"])
    assert not alive(unwanted.record()["pid"])
    assert [path.name for path in runtime._data_folder.iterdir()] == [kept.sandbox_id]


async def test_sweep_finds_an_agent_whose_folder_is_gone(runtime, base):
    instance = await runtime.create(spec(), base)
    await run(instance, "true")
    shutil.rmtree(runtime._data_folder)
    assert await runtime.sweep([]) == [instance.sandbox_id]
    assert not alive(instance.record()["pid"])


async def test_an_agent_is_killed_in_the_moment_it_is_started(runtime, base):
    for _ in range(20):
        instance = await runtime.create(spec(), base)
        await instance.destroy()
        assert not alive(instance.record()["pid"])


async def test_a_python_that_is_not_there_leaves_nothing(runtime):
    nothing = template.Template("base", ("base",), (), "/no/such/python", "/bin", runtime="fake")
    with pytest.raises(errors.CapacityError):
        await runtime.create(spec(), nothing)
    assert list(runtime._data_folder.iterdir()) == []


async def test_the_probe_says_that_nothing_is_isolated(runtime):
    probe = await runtime.probe()
    assert probe.boundary.startswith("none")
    assert probe.notes


def test_it_cannot_be_made_by_accident(folder):
    with pytest.raises(TypeError):
        fake.FakeRuntime(folder)
    for words in (True, "yes", ""):
        with pytest.raises(errors.UnsupportedError):
            fake.FakeRuntime(folder, acknowledge=words)
