"""The official Python SDK: commands, terminals, their streams and their mistakes."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import AsyncIterator

import e2b
import pytest
import pytest_asyncio
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support import servers


@pytest_asyncio.fixture
async def async_sandbox(server: servers.Server) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=120)
    yield made
    await made.kill()


def test_output_exit_code_and_order(sandbox: Sandbox) -> None:
    seen: list[tuple[str, str]] = []
    result = sandbox.commands.run(
        "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three",
        on_stdout=lambda text: seen.append(("out", text)),
        on_stderr=lambda text: seen.append(("err", text)),
    )
    assert (result.stdout, result.stderr, result.exit_code) == ("one\nthree\n", "two\n", 0)
    assert seen == [("out", "one\n"), ("err", "two\n"), ("out", "three\n")]


def test_output_streams_as_it_comes(sandbox: Sandbox) -> None:
    first = threading.Event()
    started = time.monotonic()
    times: list[float] = []

    def on_stdout(_: str) -> None:
        times.append(time.monotonic() - started)
        first.set()

    sandbox.commands.run("echo now; read -t 1.0 < <(sleep 5); echo later", on_stdout=on_stdout)
    assert first.is_set()
    assert times[-1] - times[0] > 0.5


def test_a_failing_command_raises_with_all_it_said(sandbox: Sandbox) -> None:
    with pytest.raises(e2b.CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 7")
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (7, "out\n", "err\n")


def test_a_missing_program_is_127(sandbox: Sandbox) -> None:
    with pytest.raises(e2b.CommandExitException) as caught:
        sandbox.commands.run("no-such-program")
    assert caught.value.exit_code == 127


def test_environment_user_and_directory(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("echo $GLOBAL").stdout == "from create\n"
    assert sandbox.commands.run("echo $GLOBAL", envs={"GLOBAL": "mine"}).stdout == "mine\n"
    assert sandbox.commands.run("echo $GLOBAL").stdout == "from create\n"
    assert sandbox.commands.run("whoami; pwd; echo $HOME").stdout == "user\n/home/user\n/home/user\n"
    assert sandbox.commands.run("whoami; echo $HOME", user="root").stdout == "root\n/root\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID").stdout == f"true {sandbox.sandbox_id}\n"


def test_root_inside_is_root_inside(sandbox: Sandbox) -> None:
    script = "id -u && touch /usr/local/made && chown user /usr/local/made && stat -c %U /usr/local/made && rm /usr/local/made"
    assert sandbox.commands.run(script, user="root").stdout == "0\nuser\n"
    with pytest.raises(e2b.CommandExitException):
        sandbox.commands.run("touch /usr/local/made")


def test_sudo_works_without_a_password(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"


def test_mistakes_have_their_own_exceptions(sandbox: Sandbox) -> None:
    with pytest.raises(e2b.InvalidArgumentException, match="/no/such"):
        sandbox.commands.run("true", cwd="/no/such")
    with pytest.raises(e2b.AuthenticationException, match="nosuchuser"):
        sandbox.commands.run("true", user="nosuchuser")
    with pytest.raises(e2b.NotFoundException):
        sandbox.commands.connect(999_999)
    assert sandbox.commands.kill(999_999) is False


def test_background_list_connect_and_kill(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo up; exec sleep 77", background=True)
    listed = {process.pid: process for process in sandbox.commands.list()}
    assert listed[handle.pid].args[-1].endswith("sleep 77")
    again = sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    assert handle.kill() is True
    with pytest.raises(e2b.CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code != 0
    assert handle.pid not in {process.pid for process in sandbox.commands.list()}
    assert sandbox.commands.kill(handle.pid) is False


def test_disconnecting_leaves_the_command_running(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 66", background=True)
    handle.disconnect()
    assert handle.pid in {process.pid for process in sandbox.commands.list()}
    sandbox.commands.kill(handle.pid)


def test_stdin_and_its_end(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("hello ")
    handle.send_stdin("there\n")
    handle.close_stdin()
    assert handle.wait().stdout == "hello there\n"


def test_a_timeout_ends_the_command(sandbox: Sandbox) -> None:
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("sleep 55", timeout=1)
    servers.wait_until(lambda: not [p for p in sandbox.commands.list() if "sleep 55" in p.args[-1]], 10)


def test_split_and_broken_utf8(sandbox: Sandbox) -> None:
    script = r"printf '\xe2\x82'; sleep 0.2; printf '\xac'; printf '\xff'"
    assert sandbox.commands.run(script).stdout == "€�"


def test_large_output_is_whole(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x")
    assert len(result.stdout) == 20_000_000


def test_many_short_commands(sandbox: Sandbox) -> None:
    for number in range(100):
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"


def test_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(e2b.PtySize(cols=100, rows=30), cwd="/tmp", envs={"MARK": "here"})
    output = bytearray()
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        done = reader.submit(terminal.wait, on_pty=output.extend)
        sandbox.pty.send_stdin(terminal.pid, b"tput cols; echo $MARK; pwd\n")
        servers.wait_until(lambda: b"100" in output and b"\n/tmp" in output.replace(b"\r", b""), 10)
        sandbox.pty.resize(terminal.pid, e2b.PtySize(cols=55, rows=20))
        sandbox.pty.send_stdin(terminal.pid, b"tput cols; exit\n")
        assert done.result(20).exit_code == 0
    assert b"here" in output
    assert b"55" in output


def test_a_terminal_is_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(e2b.PtySize(cols=80, rows=24))
    output = bytearray()
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        done = reader.submit(terminal.wait, on_pty=output.extend)
        sandbox.pty.send_stdin(terminal.pid, b"tty; echo go; sleep 50\n")
        servers.wait_until(lambda: b"/dev/pts/" in output and b"\ngo" in output, 10)
        sandbox.pty.send_stdin(terminal.pid, b"\x03")  # Ctrl-C reaches the foreground program
        sandbox.pty.send_stdin(terminal.pid, b"exit 3\n")
        with pytest.raises(e2b.CommandExitException) as caught:
            done.result(30)
    assert caught.value.exit_code == 3


async def test_async_streams_side_by_side(async_sandbox: AsyncSandbox) -> None:
    async def run(number: int) -> str:
        return (await async_sandbox.commands.run(f"sleep 0.2; echo {number}")).stdout

    started = time.monotonic()
    assert await asyncio.gather(*(run(n) for n in range(10))) == [f"{n}\n" for n in range(10)]
    assert time.monotonic() - started < 1.9


async def test_async_background_stdin_kill(async_sandbox: AsyncSandbox) -> None:
    output: list[str] = []
    handle = await async_sandbox.commands.run("cat", background=True, stdin=True, on_stdout=output.append)
    await handle.send_stdin("typed\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "typed\n"
    sleeper = await async_sandbox.commands.run("sleep 99", background=True)
    assert await sleeper.kill()
    with pytest.raises(e2b.CommandExitException):
        await sleeper.wait()


async def test_async_terminal(async_sandbox: AsyncSandbox) -> None:
    output = bytearray()
    terminal = await async_sandbox.pty.create(e2b.PtySize(cols=70, rows=20), on_data=output.extend)
    await async_sandbox.pty.send_stdin(terminal.pid, b"tput cols; exit\n")
    assert (await terminal.wait()).exit_code == 0
    assert b"70" in output
