"""The `glovebox` command against a real server: sandboxes, programs, terminals."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import e2b_code_interpreter
import pytest

from tests.support import leaks, servers

_BOUND_S = 60


def _command(server: servers.Server, *arguments: str) -> list[str]:
    """`glovebox ARGUMENTS` for that server; the directory goes before what is after `--`."""
    verb, *rest = arguments
    return [sys.executable, "-m", "glovebox", verb, "--data-dir", str(server.data_dir), *rest]


@pytest.fixture
def glovebox(server: servers.Server) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        return subprocess.run(_command(server, *arguments), capture_output=True, timeout=_BOUND_S, **options)

    return run


@pytest.fixture
def sandbox(server: servers.Server) -> Iterator[e2b_code_interpreter.Sandbox]:
    made = e2b_code_interpreter.Sandbox.create(timeout=120)
    yield made
    made.kill()


def _ids(glovebox: Any) -> list[str]:
    return [sandbox["sandboxID"] for sandbox in json.loads(glovebox("ps", "--json").stdout)]


class TestRun:
    def test_output_result_and_exit_code(self, glovebox: Any) -> None:
        before = _ids(glovebox)

        done = glovebox("run", "-c", "import sys; print('out'); print('err', file=sys.stderr); 6 * 7")

        assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n42\n", b"err\n")
        assert _ids(glovebox) == before

    def test_output_comes_while_the_code_runs(self, server: servers.Server) -> None:
        code = "import time\nprint('first', flush=True)\ntime.sleep(60)"
        with subprocess.Popen(_command(server, "run", "-c", code), stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"first\n"
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(_BOUND_S) == 130

    def test_code_that_raises(self, glovebox: Any) -> None:
        done = glovebox("run", "-", input=b"1 / 0")

        assert done.returncode == 1
        assert b"ZeroDivisionError" in done.stderr
        assert b"\x1b" not in done.stderr

    def test_a_time_limit(self, glovebox: Any) -> None:
        assert glovebox("run", "--timeout", "1", "-c", "while True: pass").returncode == 124

    def test_variables_and_saved_results(self, glovebox: Any, tmp_path: pathlib.Path) -> None:
        code = "import os, matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nos.environ['WHO']"

        done = glovebox("run", "-e", "WHO=me", "--save-dir", str(tmp_path), "--json", "-c", code)

        told = json.loads(done.stdout)
        assert told["text"] == "me"
        pictures = [pathlib.Path(path) for path in told["saved"] if path.endswith(".png")]
        assert [path.read_bytes()[:8] for path in pictures] == [b"\x89PNG\r\n\x1a\n"]

    def test_a_kept_sandbox_is_there_after(self, glovebox: Any) -> None:
        sandbox_id = json.loads(glovebox("run", "--keep", "--json", "-c", "1").stdout)["sandbox_id"]

        assert sandbox_id in _ids(glovebox)
        assert glovebox("kill", sandbox_id).returncode == 0
        assert sandbox_id not in _ids(glovebox)
        assert glovebox("kill", sandbox_id).returncode == 4

    def test_an_unknown_template(self, glovebox: Any) -> None:
        done = glovebox("run", "--template", "nosuch", "-c", "1")

        assert done.returncode in (4, 5)
        assert done.stderr.startswith(b"glovebox: ")
        assert done.stderr.count(b"\n") == 1


class TestExec:
    def test_streams_stay_apart_and_the_exit_code_comes_back(self, glovebox: Any, sandbox: Any) -> None:
        done = glovebox("exec", sandbox.sandbox_id, "--", "sh", "-c", "echo out; echo err >&2; exit 7")

        assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")

    def test_arguments_are_not_read_by_a_shell(self, glovebox: Any, sandbox: Any) -> None:
        odd = "$HOME `id` 'quoted' \"double\" \\ ; é"

        assert glovebox("exec", sandbox.sandbox_id, "--", "printf", "%s", odd).stdout.decode() == odd

    def test_bytes_pass_unchanged_in_both_directions(self, glovebox: Any, sandbox: Any) -> None:
        data = bytes(range(256)) * 1024

        done = glovebox("exec", sandbox.sandbox_id, "--", "cat", input=data)

        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == data

    def test_input_that_nobody_reads_does_not_hold_the_end_back(self, server: servers.Server, sandbox: Any) -> None:
        command = _command(server, "exec", sandbox.sandbox_id, "--", "true")
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # which stays open
            assert process.wait(_BOUND_S) == 0

    def test_user_cwd_and_variables(self, glovebox: Any, sandbox: Any) -> None:
        options = ("--user", "root", "--cwd", "/tmp", "--env", "A=b c")

        done = glovebox("exec", *options, sandbox.sandbox_id, "--", "sh", "-c", 'id -un; pwd; echo "$A"')

        assert done.stdout == b"root\n/tmp\nb c\n"

    def test_a_detached_program_goes_on(self, glovebox: Any, sandbox: Any) -> None:
        pid = int(glovebox("exec", "-d", sandbox.sandbox_id, "--", "sleep", "60").stdout)

        assert pid in [process.pid for process in sandbox.commands.list()]

    def test_a_time_limit(self, glovebox: Any, sandbox: Any) -> None:
        assert glovebox("exec", "--timeout", "1", sandbox.sandbox_id, "--", "sleep", "60").returncode == 124

    def test_a_signal(self, glovebox: Any, sandbox: Any) -> None:
        assert glovebox("exec", sandbox.sandbox_id, "--", "sh", "-c", "kill -9 $$").returncode == 137

    def test_no_such_sandbox(self, glovebox: Any) -> None:
        done = glovebox("exec", "i0000000000000000000", "--", "true")

        assert done.returncode == 4
        assert done.stderr.count(b"\n") == 1


class Terminal:
    """A program on a terminal of its own, and what is on its screen."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 91, 0, 0))
        self.settings = termios.tcgetattr(slave)
        self._slave = slave
        # A new session, with the terminal as its own: only so does the kernel send it SIGWINCH.
        own = ["setsid", "--ctty", "--wait", *command]
        self._process = subprocess.Popen(own, stdin=slave, stdout=slave, stderr=slave)
        self.screen = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str) -> None:
        """Reads until `text` is on the screen, and forgets all up to it."""
        deadline = time.monotonic() + _BOUND_S
        while text.encode() not in self.screen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"not on the screen: {text!r}; there is {self.screen!r}"
            self.screen += os.read(self._master, 65536)
        self.screen = self.screen.partition(text.encode())[2]

    def end(self) -> int:
        return self._process.wait(_BOUND_S)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._slave) == self.settings

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        os.close(self._slave)
        os.close(self._master)


class TestShell:
    @pytest.fixture
    def terminal(self, server: servers.Server, sandbox: Any) -> Iterator[Terminal]:
        with contextlib.closing(Terminal(_command(server, "shell", sandbox.sandbox_id))) as opened:
            yield opened

    def test_a_session(self, terminal: Terminal) -> None:
        terminal.type("echo $((6 * 7))-ok\n")
        terminal.expect("42-ok")
        terminal.type("tput cols | sed 's/^/wide:/'\n")
        terminal.expect("wide:91")
        terminal.type("exit 5\n")

        assert terminal.end() == 5
        assert terminal.is_as_before()

    def test_a_new_size_reaches_the_program_inside(self, terminal: Terminal) -> None:
        terminal.type("trap 'tput cols | sed s/^/now:/' WINCH; echo rea''dy\n")
        terminal.expect("ready")
        terminal.resize(30, 77)
        terminal.type("\n")
        terminal.expect("now:77")

    def test_control_c_is_for_the_program_inside(self, terminal: Terminal) -> None:
        # One process says it and waits: bash would miss a Ctrl-C between two of its own.
        terminal.type("sh -c \"echo wai''ting; exec sleep 1000\"\n")
        terminal.expect("waiting")
        terminal.type("\x03")
        terminal.type("echo stil''l here\n")
        terminal.expect("still here")

    def test_a_fresh_sandbox_goes_with_its_shell(self, server: servers.Server, glovebox: Any) -> None:
        before = set(_ids(glovebox))
        with contextlib.closing(Terminal(_command(server, "shell"))) as terminal:
            terminal.type("echo her''e\n")
            terminal.expect("here")
            assert len(set(_ids(glovebox)) - before) == 1
            terminal.type("exit\n")
            assert terminal.end() == 0
        assert set(_ids(glovebox)) == before

    def test_the_terminal_is_given_back_when_the_sandbox_is_killed(self, terminal: Terminal, sandbox: Any) -> None:
        terminal.type("echo her''e\n")
        terminal.expect("here")
        sandbox.kill()

        assert terminal.end() not in (0, 1)
        assert terminal.is_as_before()


class TestServer:
    def test_keys_work_and_are_revoked(self, glovebox: Any, server: servers.Server) -> None:
        created = json.loads(
            subprocess.run(
                [*_key_command("create", server), "--json", "tests"], capture_output=True, check=True, timeout=_BOUND_S
            ).stdout
        )
        options = {"api_key": created["key"], "api_url": server.url, "sandbox_url": server.url}
        mine = e2b_code_interpreter.Sandbox.create(timeout=60, **options)
        assert mine.run_code("1 + 1").text == "2"
        mine.kill()

        listed = subprocess.run(_key_command("list", server), capture_output=True, check=True, timeout=_BOUND_S)
        assert b"tests" in listed.stdout
        assert created["key"].encode() not in listed.stdout

        subprocess.run([*_key_command("revoke", server), created["id"]], check=True, timeout=_BOUND_S)
        with pytest.raises(Exception, match="401"):
            e2b_code_interpreter.Sandbox.create(timeout=60, **options)

    def test_logs(self, glovebox: Any, sandbox: Any) -> None:
        done = glovebox("logs", sandbox.sandbox_id, "--json")

        assert done.returncode == 0
        assert all("timestamp" in json.loads(line) for line in done.stdout.splitlines())

    def test_a_second_server_on_the_same_directory_is_refused(self, glovebox: Any) -> None:
        done = glovebox("serve")

        assert done.returncode == 5
        assert b"already running" in done.stderr

    def test_env_is_all_that_the_sdk_needs(self, server: servers.Server, glovebox: Any) -> None:
        program = "import e2b_code_interpreter as e\ns = e.Sandbox.create()\nprint(s.run_code('1 + 1').text)\ns.kill()"
        script = f'eval "$1"; exec {sys.executable} -c "$2"'

        done = subprocess.run(
            ["sh", "-c", script, "sh", glovebox("env").stdout.decode(), program],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            timeout=_BOUND_S,
        )

        assert (done.returncode, done.stdout) == (0, b"2\n")

    def test_doctor(self, glovebox: Any) -> None:
        done = glovebox("doctor", "--json")

        assert done.returncode == 0
        rungs = {rung["runtime"]: rung["available"] for rung in json.loads(done.stdout)["runtimes"]}
        assert rungs["namespace"] is True


class TestWithoutAServer:
    """`run` brings a server of its own, and leaves nothing of it."""

    @pytest.fixture
    def temporary(self, tmp_path: pathlib.Path) -> pathlib.Path:
        (tmp_path / "tmp").mkdir()
        return tmp_path / "tmp"

    @pytest.fixture
    def environment(self, temporary: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, str]:
        data_dir = tmp_path / "data"
        data_dir.mkdir()
        servers.TEMPLATES.mkdir(parents=True, exist_ok=True)
        (data_dir / "templates").symlink_to(servers.TEMPLATES)
        return {"PATH": os.environ["PATH"], "GLOVEBOX_DATA_DIR": str(data_dir), "TMPDIR": str(temporary)}

    def test_run(self, temporary: pathlib.Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "glovebox", "run", "-c", "print('alone')"]

        done = subprocess.run(command, env=environment, capture_output=True, timeout=300)

        assert (done.returncode, done.stdout, done.stderr) == (0, b"alone\n", b"")
        assert list(temporary.iterdir()) == []
        assert _processes_with(str(temporary)) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal(self, number: signal.Signals, temporary: pathlib.Path, environment: dict[str, str]) -> None:
        code = "import time\nprint('first', flush=True)\ntime.sleep(600)"
        command = [sys.executable, "-m", "glovebox", "run", "-c", code]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"first\n"
            (data_dir,) = temporary.iterdir()
            groups = _groups_of(data_dir)
            assert any("/sandboxes/" in group for group in groups)
            process.send_signal(number)
            assert process.wait(_BOUND_S) == 128 + number

        # Its zygote and its sandbox are told by their control groups: both are gone only when these can be removed.
        assert _groups_of(data_dir) == []
        assert list(temporary.iterdir()) == []
        assert _processes_with(str(temporary)) == []


def _groups_of(data_dir: pathlib.Path) -> list[str]:
    """The control groups of the server with that data directory."""
    name = f"/glovebox-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]}"
    return [group for group in leaks.cgroups() if name in group]


def _processes_with(text: str) -> list[str]:
    """The processes that have `text` in their command line or among their mounts: servers, zygotes, sandboxes."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (process / "cmdline").read_text() + (process / "mountinfo").read_text():
                found.append(process.name)
    return found


def _key_command(verb: str, server: servers.Server) -> list[str]:
    return [sys.executable, "-m", "glovebox", "key", verb, "--data-dir", str(server.data_dir)]
