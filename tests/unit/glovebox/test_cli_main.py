"""The command as a whole: its help is instant, and every error is one line with an exit code."""

import json
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom glovebox import main\n"
        "try: main.app(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print(sorted({'e2b', 'e2b_code_interpreter', 'httpx', 'rich', 'glovebox_server'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [("ps",), ("kill", "ix"), ("logs", "ix"), ("key", "list"), ("env",), ("exec", "ix", "--", "ls")],
)
def test_without_a_server_the_exit_code_is_3(glovebox: Any, arguments: tuple[str, ...]) -> None:
    result = glovebox(*arguments)

    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("glovebox: no server is running")
    assert result.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_no_server(glovebox: Any, server: Any, tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server.describe(tmp_path, url=f"http://127.0.0.1:{port}")

    result = glovebox("ps")

    assert result.exit_code == 3
    assert result.stderr == f"glovebox: no server answers at http://127.0.0.1:{port}\n"


@pytest.mark.parametrize(("status", "code"), [(401, 5), (403, 5), (404, 4), (409, 5), (429, 5), (500, 5), (501, 5)])
def test_a_refusal_is_one_harmless_line(glovebox: Any, server: Any, status: int, code: int) -> None:
    server.state.refuse = status

    result = glovebox("ps")

    assert result.exit_code == code
    assert result.stderr == "glovebox: refused\\x1b[31m here\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("kill",),
        ("kill", "ix", "--all"),
        ("run",),
        ("run", "a.py", "-c", "1"),
        ("run", "/nonexistent.py"),
        ("run", "-c", "1", "--env", "NOVALUE"),
        ("exec", "ix"),
        ("ps", "--bogus"),
        ("shell", "ix"),
        ("env", "--shell", "tcsh"),
    ],
)
def test_a_wrong_command_line_ends_with_2(glovebox: Any, server: Any, arguments: tuple[str, ...]) -> None:
    assert glovebox(*arguments).exit_code == 2


def test_a_bug_is_not_hidden(glovebox: Any, server: Any) -> None:
    server.state.sandboxes.append({"not": "a sandbox"})

    assert isinstance(glovebox("ps").exception, KeyError)


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "glovebox", "version", "--json"], capture_output=True, check=True)

    assert set(json.loads(done.stdout)) == {"glovebox", "e2b_code_interpreter", "python", "server"}
