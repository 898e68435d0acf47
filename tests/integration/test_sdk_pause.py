"""The official Python SDK: sandboxes that are paused, by hand and by their timeout, and go on where they were."""

import concurrent.futures
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator

import e2b
import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support import leaks, servers

#: Ticks for ever, and keeps the number of ticks and the longest time between two of them.
TICKER = """
import os, time
ticks, longest, last = 0, 0.0, time.monotonic()
while True:
    time.sleep(0.005)
    ticks, now = ticks + 1, time.monotonic()
    longest, last = max(longest, now - last), now
    with open("ticks.new", "w") as file:
        file.write(f"{ticks} {longest}")
    os.replace("ticks.new", "ticks")
"""
AUTO = {"on_timeout": "pause", "auto_resume": True}


def tick(sandbox: Sandbox) -> int:
    """Start the ticker; its pid."""
    sandbox.files.write("ticker.py", TICKER)
    handle = sandbox.commands.run("exec python3 ticker.py", background=True, timeout=0)
    handle.disconnect()
    servers.wait_until(lambda: sandbox.files.exists("ticks") and ticks(sandbox)[0] > 0, 30)
    return handle.pid


def ticks(sandbox: Sandbox) -> tuple[int, float]:
    count, longest = sandbox.files.read("ticks").split()
    return int(count), float(longest)


def pids(sandbox: Sandbox) -> list[int]:
    return [process.pid for process in sandbox.commands.list()]


def state(sandbox: Sandbox) -> str:
    return str(sandbox.get_info().state.value)


def has_no_files(pid: int) -> bool:
    """Whether a process that was killed has closed all it had: nobody will be answered by it any more."""
    try:
        return not os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return True


@pytest.fixture
def make(server: servers.Server) -> Iterator[Callable[..., Sandbox]]:
    made = []

    def one(**options: object) -> Sandbox:
        made.append(Sandbox.create(**{"timeout": 120, **options}))  # type: ignore[arg-type]  # whatever the test wants
        return made[-1]

    yield one
    for sandbox in made:
        sandbox.kill()


def test_all_goes_on_where_it_stood(make: Callable[..., Sandbox]) -> None:
    sandbox, other = make(envs={"GREETING": "hello"}), make()
    tick(other)
    pid = tick(sandbox)
    sandbox.files.write("kept.txt", "kept")
    sandbox.run_code("import threading; state = {'n': 42}; lock = threading.Lock()")
    boot_id = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    assert ticks(sandbox)[1] < 1

    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert state(sandbox) == "paused"
    assert not sandbox.is_running()
    until = ticks(other)[0] + 400
    servers.wait_until(lambda: ticks(other)[0] > until, 60)  # at least two seconds of the other's life

    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    count, longest = ticks(again)
    assert longest > 1.9
    servers.wait_until(lambda: ticks(again)[0] > count, 30)
    assert pid in pids(again)
    assert again.files.read("kept.txt") == "kept"
    assert again.files.read("/proc/sys/kernel/random/boot_id") == boot_id
    assert again.run_code("state['n']").text == "42"
    assert again.commands.run("echo $GREETING").stdout == "hello\n"
    assert sandbox.is_running()
    assert sandbox.files.read("kept.txt") == "kept"  # the object from before the pause is good, too


def test_ten_times(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    pid = tick(sandbox)
    sandbox.run_code("n = 0")
    for number in range(1, 11):
        assert sandbox.pause() is True
        sandbox.connect(timeout=60)
        assert sandbox.run_code("n += 1; n").text == str(number)
        count, _ = ticks(sandbox)
        servers.wait_until(lambda count=count: ticks(sandbox)[0] > count, 30)
    assert pids(sandbox) == [pid]


def test_what_is_open_is_cut_and_said_to_be(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    handle = sandbox.commands.run("echo up; exec sleep 600", background=True, timeout=0)
    sandbox.pause()
    with pytest.raises(e2b.TimeoutException, match="end of life"):
        handle.wait()
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("true")
    sandbox.connect()
    assert handle.pid in pids(sandbox)
    assert sandbox.commands.kill(handle.pid)


def test_code_whose_caller_is_cut_is_interrupted(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    code = "import pathlib, time\npathlib.Path('begun').touch()\nfor n in range(60_000): time.sleep(0.01)"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.run_code, code, timeout=0)
        servers.wait_until(lambda: sandbox.files.exists("begun"), 30)
        sandbox.pause()
        with pytest.raises(e2b.TimeoutException, match="killed while the request was in progress"):
            running.result(30)
    sandbox.connect()
    answer = sandbox.run_code("n")  # which would wait its turn for ten minutes, and be given up long before
    assert answer.text is not None
    assert 0 <= int(answer.text) < 59_999


def test_a_timeout_pauses_and_traffic_wakes(make: Callable[..., Sandbox], server: servers.Server) -> None:
    sandbox = make(lifecycle=AUTO)
    sandbox.files.write("site/index.html", "<p>awake</p>")
    sandbox.commands.run("exec python3 -m http.server --directory site 8000", background=True, timeout=0).disconnect()
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}

    def page() -> str:
        return httpx.get(server.url, headers=headers, timeout=30).text

    servers.wait_until(lambda: page() == "<p>awake</p>", 30)
    assert sandbox.get_info().lifecycle == {"on_timeout": "pause", "auto_resume": True}
    for wake in (page, lambda: sandbox.files.read("site/index.html")):
        sandbox.set_timeout(1)
        servers.wait_until(lambda: state(sandbox) == "paused", 30)
        assert not sandbox.is_running()  # which asks, and does not wake it
        assert state(sandbox) == "paused"
        assert wake() == "<p>awake</p>"
        assert state(sandbox) == "running"
        info = sandbox.get_info()
        assert (info.end_at - info.started_at).total_seconds() > 290


def test_without_auto_resume_traffic_wakes_nobody(make: Callable[..., Sandbox], server: servers.Server) -> None:
    sandbox = make(lifecycle={"on_timeout": "pause"})
    sandbox.set_timeout(0)
    assert state(sandbox) == "paused"
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    answer = httpx.get(server.url, headers=headers)
    assert answer.status_code == 502
    assert answer.json() == {"sandboxId": sandbox.sandbox_id, "message": "The sandbox was not found", "code": 502}
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("true")
    assert state(sandbox) == "paused"
    sandbox.connect()
    assert sandbox.commands.run("echo on").stdout == "on\n"


def test_list_by_state(make: Callable[..., Sandbox]) -> None:
    mark = uuid.uuid4().hex
    running, paused = make(metadata={"mark": mark}), make(metadata={"mark": mark})
    paused.pause()

    def listed(*states: e2b.SandboxState) -> set[str]:
        query = e2b.SandboxQuery(metadata={"mark": mark}, state=list(states) or None)
        return {item.sandbox_id for item in Sandbox.list(query=query).next_items()}

    assert listed(e2b.SandboxState.PAUSED) == {paused.sandbox_id}
    assert listed(e2b.SandboxState.RUNNING) == {running.sandbox_id}
    assert listed() == {running.sandbox_id, paused.sandbox_id}


def test_what_is_not_there_or_not_paused(make: Callable[..., Sandbox]) -> None:
    with pytest.raises(e2b.NotFoundException):
        Sandbox.pause("i" + "0" * 19)
    sandbox = make()
    with pytest.raises(e2b.SandboxException, match="files only"):
        sandbox.pause(mode="filesystem")
    assert sandbox.pause(strict=True) is True
    with pytest.raises(e2b.NotFoundException):
        sandbox.set_timeout(60)
    assert sandbox.kill() is True
    with pytest.raises(e2b.NotFoundException):
        sandbox.connect()


async def test_async(server: servers.Server) -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        await sandbox.run_code("x = 'kept'")
        handle = await sandbox.commands.run("exec sleep 600", background=True, timeout=0)
        assert await sandbox.pause() is True
        with pytest.raises(e2b.TimeoutException, match="end of life"):
            await handle.wait()
        assert await sandbox.pause() is False
        await sandbox.connect(timeout=60)
        assert (await sandbox.run_code("x")).text == "kept"
        assert handle.pid in [process.pid for process in await sandbox.commands.list()]
    finally:
        await sandbox.kill()


def test_killed_while_paused_nothing_is_left(own_server: servers.Server) -> None:
    before = leaks.cgroups_of_sandboxes()
    sandbox = Sandbox.create(timeout=60)
    tick(sandbox)
    sandbox.commands.run("trap '' TERM; while true; do sleep 600; done", background=True, timeout=0).disconnect()
    sandbox.pause()
    own = leaks.cgroups_of_sandboxes() - before
    assert own
    assert sandbox.kill() is True
    assert not own & leaks.cgroups_of_sandboxes()
    assert sandbox.kill() is False


def test_paused_ones_end_with_their_server(own_server: servers.Server) -> None:
    sandbox = Sandbox.create(timeout=60)
    tick(sandbox)
    sandbox.pause()
    own_server.stop()
    assert not [line for line in leaks.processes() if str(own_server.data_dir) in line]


def test_the_end_of_their_zygote_is_not_held_up(own_server: servers.Server) -> None:
    """It is process 1 to all sandboxes, and waits for each of them when it dies: a frozen one could not."""
    paused = Sandbox.create(timeout=600)
    tick(paused)
    paused.pause()
    (facts,) = own_server.data_dir.glob("zygotes/*/zygote.json")
    pid = json.loads(facts.read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    servers.wait_until(lambda: has_no_files(pid), 10)
    other = Sandbox.create(timeout=60)
    assert other.commands.run("echo on").stdout == "on\n"
    with pytest.raises(e2b.NotFoundException):
        paused.connect()
    other.kill()


def test_a_server_that_is_killed_finds_them_paused(own_server: servers.Server) -> None:
    paused, other = Sandbox.create(timeout=5), Sandbox.create(timeout=600)
    pid = tick(paused)
    tick(other)
    paused.run_code("n = 42")
    paused.pause()
    for _ in range(2):
        own_server.kill()
        own_server.start()
        assert state(paused) == "paused"
    until = ticks(other)[0] + 1200  # longer than its timeout, which is not counted
    servers.wait_until(lambda: ticks(other)[0] > until, 60)
    paused.connect(timeout=60)
    count, longest = ticks(paused)
    assert longest > 5
    servers.wait_until(lambda: ticks(paused)[0] > count, 30)
    assert pid in pids(paused)
    assert paused.run_code("n").text == "42"
    for sandbox in (paused, other):
        assert sandbox.kill() is True
