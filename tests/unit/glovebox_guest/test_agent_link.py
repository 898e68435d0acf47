"""The link, with a real agent: fair among channels, bounded when the host stops reading, strict, and replaceable."""

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator

import pytest

from glovebox_guest import wire
from tests.support import agent_client

guest = agent_client.guest
Guest = agent_client.Guest
Refused = agent_client.Refused

MIB = 1024 * 1024


async def test_a_flood_does_not_delay_another_channel(guest: Guest) -> None:
    floods = [guest.open("process.start", argv=["cat", "/dev/zero"]) for _ in range(2)]
    taking = [asyncio.create_task(flood.rest()) for flood in floods]
    loop = asyncio.get_running_loop()
    delays = []
    for _ in range(100):
        started = loop.time()
        await guest.ping()
        await guest.call("sandbox.env")
        delays.append(loop.time() - started)
    # Two round trips; the machine's own load is not what is measured, so the median.
    assert sorted(delays)[len(delays) // 2] < 0.1
    for flood in floods:
        flood.cancel()
    for task in taking:
        with pytest.raises(Refused, match="canceled"):
            await task


async def test_output_without_credit_stays_in_the_program(guest: Guest) -> None:
    before = guest.rss_bytes()
    channels = [guest.open("process.start", argv=["cat", "/dev/zero"]) for _ in range(20)]
    for channel in channels:
        channel.generous = False
        await channel.event()
    for channel in channels:
        while channel.window.left:
            await guest.ping()
    for _ in range(50):
        await guest.ping()
    assert guest.rss_bytes() - before < 20 * MIB


async def test_memory_is_bounded_when_the_host_asks_and_does_not_read() -> None:
    async with agent_client.running() as guest:
        await guest.call("sandbox.configure", env={"A": "x" * 100_000})
        before = guest.rss_bytes()
        guest._task.cancel()
        await asyncio.gather(guest._task, return_exceptions=True)
        guest._reader._transport.pause_reading()  # type: ignore[attr-defined]  # there is no public way
        guest.open("process.start", argv=["cat", "/dev/zero"])
        # Answers are not counted against any credit: the agent must stop reading instead.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                for _ in range(20_000):
                    guest.open("sandbox.env")
                    guest.send(wire.encode(0, wire.PING, b"x" * 64))
                    await guest._writer.drain()
        assert guest.rss_bytes() - before < 40 * MIB
        guest._writer.transport.abort()


async def test_a_big_answer_and_a_big_request_pass(guest: Guest) -> None:
    env = {f"VARIABLE_{number}": "x" * 10_000 for number in range(100)}
    await guest.call("sandbox.configure", env=env)
    assert (await guest.call("sandbox.env"))["env"] == env


async def test_unknown_operations_and_mistakes(guest: Guest) -> None:
    for op in ("nope", "", None, 7, ["x"], "Agent.stop", "__init__"):
        with pytest.raises(Refused, match="unimplemented"):
            await guest.call(op)  # type: ignore[arg-type]  # on purpose
    for op in ("process.start", "fs.stat", "net.dial", "code.execute", "fs.watcher_events", "process.signal"):
        with pytest.raises(Refused, match="invalid_argument"):
            await guest.call(op)


async def test_metrics(guest: Guest) -> None:
    seen = await guest.call("sandbox.metrics")
    assert set(seen) == {
        *("ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"),
    }
    assert 0 < seen["mem_used"] < seen["mem_total"]
    assert 0 < seen["disk_used"] < seen["disk_total"]
    assert seen["cpu_count"] == len(os.sched_getaffinity(0))
    assert 0 <= seen["cpu_used_pct"] <= 100


async def test_over_stdio_and_nothing_else_has_the_link() -> None:
    async with agent_client.running("stdio") as guest:
        data, _ = await guest.run("sh", "-c", "ls -l /proc/self/fd; cat")
        assert b"socket" not in data[1]
        assert (await guest.hello)["pid"] == guest.process.pid


async def test_shutdown_ends_all_and_exits() -> None:
    async with agent_client.running() as guest:
        channel = guest.open("process.start", argv=["sh", "-c", "trap '' TERM HUP; sleep 60 & echo $!; wait"])
        pid = (await channel.event())["pid"]
        grandchild = int((await channel.next())[2])
        assert await guest.call("sandbox.shutdown") == {}
        assert await asyncio.to_thread(guest.process.wait, 10) == 0
        for number in (pid, grandchild):
            async with asyncio.timeout(10):
                while pathlib.Path(f"/proc/{number}/status").exists() and not is_zombie(number):
                    await asyncio.sleep(0.01)


def is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "State:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text()
    return True


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/agent"
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "glovebox_guest", "--listen-fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(agent_client.SOURCE)},
        )
        try:
            yield process, path
        finally:
            process.kill()
            process.wait()


async def connected(process: subprocess.Popen[bytes], path: str) -> Guest:
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    return await agent_client.Guest(process, link).attach()


async def test_a_new_link_takes_the_place_of_the_old_and_processes_go_on() -> None:
    async with listening() as (process, path):
        first = await connected(process, path)
        channel = first.open("process.start", argv=["sh", "-c", "read x; echo $x"], stdin=True, tag="t")
        pid = (await channel.event())["pid"]
        boot_id = (await first.hello)["boot_id"]
        second = await connected(process, path)
        assert (await second.hello)["boot_id"] == boot_id
        with pytest.raises(ConnectionError):
            await channel.rest()
        again = second.open("process.connect", tag="t")
        assert await again.event() == {"event": "start", "pid": pid}
        sending = second.open("process.input", pid=pid)
        await sending.send(b"hello\n")
        data, _, end = await again.rest()
        assert (data, end["exit_code"]) == ({1: b"hello\n"}, 0)
        await first.detach()
        await second.detach()
        third = await connected(process, path)
        await third.ping()
        await third.detach()


HELLO = b"".join(wire.encode_message(0, wire.HELLO, {"version": 1}))
OPEN = b"".join(wire.encode_message(5, wire.OPEN, {"op": "fs.write", "path": "/dev/null"}))
#: An operation that takes no data.
DEAF = b"".join(wire.encode_message(5, wire.OPEN, {"op": "fs.watch", "path": "/tmp"}))


@pytest.mark.parametrize(
    "data",
    [
        wire.encode(0, wire.PING, b""),
        HELLO + HELLO,
        b"".join(wire.encode_message(0, wire.HELLO, {"version": 2})),
        b"".join(wire.encode_message(0, wire.HELLO, {})),
        wire.encode(0, wire.HELLO, b"x"),
        HELLO + OPEN + OPEN,
        HELLO + wire.encode(0, wire.PONG, b""),
        HELLO + wire.encode(5, wire.OPEN, b"not JSON"),
        HELLO + OPEN + wire.encode(5, wire.EOF) + wire.encode(5, wire.EOF),
        HELLO + OPEN + wire.encode(5, wire.EOF) + wire.encode(5, wire.DATA, b"x"),
        HELLO + DEAF + wire.encode(5, wire.DATA, bytes(wire.MAX_BODY_BYTES)) * 5,
        HELLO + OPEN + wire.encode_credit(5, 1),
        HELLO + OPEN + wire.encode(5, wire.CANCEL) + wire.encode(5, wire.CANCEL),
        HELLO + OPEN + wire.encode(5, wire.EVENT, b"{}"),
        HELLO + OPEN + wire.encode(5, wire.END, b"{}"),
        HELLO + b"\xff" * 100,
        HELLO + b"".join(wire.encode(number, wire.OPEN, b'{"op"', wire.MORE) for number in range(1, 5000)),
    ],
)
async def test_a_host_that_breaks_the_protocol_loses_its_link_alone(data: bytes) -> None:
    async with listening() as (process, path):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            link.setblocking(False)
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(link, data)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    while await loop.sock_recv(link, 65536):
                        pass
        after = await connected(process, path)
        await after.ping()
        await after.detach()


async def test_any_bytes_at_all_leave_the_agent_alive() -> None:
    chance = random.Random(1)
    async with listening() as (process, path):
        for _ in range(30):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(path)
                with contextlib.suppress(OSError):
                    link.sendall(HELLO[: chance.choice((5, len(HELLO)))] + chance.randbytes(2000))
        after = await connected(process, path)
        await after.ping()
        await after.detach()


async def test_a_channel_is_dropped_with_its_link_while_it_sends() -> None:
    async with listening() as (process, path):
        for _ in range(5):
            one = await connected(process, path)
            channel = one.open("process.start", argv=["cat", "/dev/zero"], tag="flood")
            pid = (await channel.event())["pid"]
            one._writer.transport.abort()
            await one.detach()
            # The program is not lost with it.
            os.kill(pid, signal.SIGKILL)
        last = await connected(process, path)
        await last.ping()
        await last.detach()


def test_the_command_wants_one_way() -> None:
    for arguments in ([], ["--stdio", "--listen-fd", "3"]):
        done = subprocess.run(
            [sys.executable, "-m", "glovebox_guest", *arguments],
            env={**os.environ, "PYTHONPATH": str(agent_client.SOURCE)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
