"""`env`, `serve`, `doctor` and `version`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from glovebox import program
from glovebox.commands import server as server_commands

_ODD = {"A": "it's; $(touch owned) `x` \\ \"", "B": ""}


def test_env_is_all_a_shell_needs(glovebox: Any, server: Any, fake: Any) -> None:
    script = glovebox("env").stdout
    show = 'eval "$1"; env'

    done = subprocess.run(
        ["sh", "-c", show, "sh", script], env={"PATH": os.environ["PATH"], "E2B_DEBUG": "true"}, capture_output=True
    )

    seen = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    port = server.url.rpartition(":")[2]
    assert {name: value for name, value in seen.items() if name.startswith("E2B_")} == {
        "E2B_API_KEY": fake.KEY,
        "E2B_API_URL": server.url,
        "E2B_SANDBOX_URL": server.url,
        "E2B_DOMAIN": f"localhost:{port}",
    }


def test_the_sdk_takes_its_settings_from_env(glovebox: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from e2b import connection_config

    for name, value in json.loads(glovebox("env", "--json").stdout).items():
        monkeypatch.setenv(name, value)

    config = connection_config.ConnectionConfig()

    assert config.api_url == server.url
    assert config.get_sandbox_url("ix", "") == server.url


@pytest.mark.parametrize("shell", ["sh", "fish"])
def test_no_value_is_more_than_a_value(shell: str, tmp_path: pathlib.Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    lines = server_commands.shell_lines(_ODD, server_commands.Shell(shell))

    done = subprocess.run(
        [shell, "-c", "\n".join([*lines, 'printf "%s|%s" "$A" "$B"'])], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.stdout == f"{_ODD['A']}|"
    assert list(tmp_path.iterdir()) == []


def test_powershell_quotes_are_doubled() -> None:
    lines = server_commands.shell_lines({"A": "it's"}, server_commands.Shell.POWERSHELL)

    assert lines[-1] == "$env:A = 'it''s'"


def test_a_second_server_is_refused(glovebox: Any, server: Any, tmp_path: pathlib.Path) -> None:
    result = glovebox("serve")

    assert result.exit_code == 5
    assert f"already running at {server.url}" in result.stderr


def test_serve_becomes_the_server(glovebox: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(server_commands.os, "execv", lambda path, arguments: started.append(arguments))

    glovebox("serve", "--port", "4000", "--log-level", "debug")

    glovebox("serve", "--keep-sandboxes")

    server = [sys.executable, "-m", "glovebox_server", "serve", "--data-dir", str(tmp_path)]
    assert started == [[*server, "--port", "4000", "--log-level", "debug"], [*server, "--keep-sandboxes"]]


def _doctor_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(program, "server_command", lambda *_: [sys.executable, "-c", f"print({text!r})"])


@pytest.mark.parametrize(("available", "code"), [(True, 0), (False, 1)])
def test_doctor(glovebox: Any, monkeypatch: pytest.MonkeyPatch, available: bool, code: int) -> None:
    rung = {"runtime": "namespace", "available": available, "boundary": "namespaces", "notes": ["a", "b"]}
    other = {"runtime": "gvisor", "available": False, "missing": "runsc", "fix": "apt-get install runsc"}
    report = {"host": {"kernel": "6\x1b[0m"}, "runtimes": [rung, other]}
    _doctor_says(monkeypatch, json.dumps(report))

    shown = glovebox("doctor")

    assert shown.exit_code == code
    assert "kernel: 6\\x1b[0m" in shown.stdout
    assert f"{'✔' if available else '✘'} namespace" in shown.stdout
    assert "fix:      apt-get install runsc" in shown.stdout
    as_json = glovebox("doctor", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (code, report)


def test_a_doctor_that_fails_is_told(glovebox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _doctor_says(monkeypatch, "no json")

    assert glovebox("doctor").exit_code == 5


def test_version_tells_the_servers(glovebox: Any, server: Any) -> None:
    assert "server 9.9.9" in glovebox("version").stdout
