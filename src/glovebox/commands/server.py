"""Commands about the server itself: `serve`, `env`, `doctor`, `version`."""

import enum
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Annotated, Any

import typer

from glovebox import connection, errors, outcome, program, terminal
from glovebox.commands import options

#: The rung that a sandbox gets when nobody asks for another; without it a host is of no use.
DEFAULT_RUNTIME = "namespace"
_DOCTOR_S = 120.0


class Shell(enum.StrEnum):
    """The shells whose syntax `env` can write."""

    SH = "sh"
    FISH = "fish"
    POWERSHELL = "powershell"


class LogLevel(enum.StrEnum):
    """How much the server says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on; 0: any.  [default: 3000]")
    ] = None,
    data_dir: options.DataDir = None,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much to log.  [default: info]")] = None,
    keep_sandboxes: Annotated[
        bool, typer.Option("--keep-sandboxes", help="When stopped, leave sandboxes running for the next server.")
    ] = False,
) -> None:
    """Start the server, in the foreground."""
    directory = data_dir or connection.default_data_dir()
    _refuse_second(directory)
    # Only what was given: the rest is for the environment, the settings file and the server's own defaults.
    given = {"--host": host, "--port": port, "--log-level": log_level.value if log_level else None}
    arguments = ["--data-dir", str(directory)]
    for name, value in given.items():
        if value is not None:
            arguments += [name, str(value)]
    if keep_sandboxes:
        arguments.append("--keep-sandboxes")
    sys.stdout.flush()
    # The server takes this process over: signals and the exit code are its own.
    os.execv(sys.executable, program.server_command("serve", *arguments))  # noqa: S606  # no shell is wanted


def env(
    data_dir: options.DataDir = None,
    shell: Annotated[Shell, typer.Option(help="Whose syntax to write.")] = Shell.SH,
    as_json: options.Json = False,
) -> None:
    """Print what the E2B SDKs and CLI need to use this server: eval "$(glovebox env)"."""
    target = connection.find(data_dir)
    if as_json:
        terminal.print_json(target.environment())
        return
    for line in shell_lines(target.environment(), shell):
        print(line)


def doctor(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Say what this host can do, rung by rung, and how to get what is missing."""
    report = _examine(data_dir or connection.default_data_dir())
    if as_json:
        terminal.print_json(report)
    else:
        _show_report(report)
    rungs = report.get("runtimes", [])
    if not any(rung.get("runtime") == DEFAULT_RUNTIME and rung.get("available") for rung in rungs):
        raise typer.Exit(outcome.FAILED)


def version(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Print the versions of this command, of the SDK it uses, and of the server if one runs."""
    versions: dict[str, Any] = {
        "glovebox": importlib.metadata.version("glovebox"),
        "e2b_code_interpreter": importlib.metadata.version("e2b-code-interpreter"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "server": _server_version(data_dir),
    }
    if as_json:
        terminal.print_json(versions)
        return
    for name, value in versions.items():
        print(f"{name} {terminal.printable(value) if value else '(none running)'}")


def shell_lines(values: dict[str, str], shell: Shell) -> list[str]:
    """The lines that set `values` in `shell`, quoted so that no value can be anything but a value.

    E2B_DEBUG is removed, not set to false: the SDKs read its value, but other tools only ask whether it is set.
    """
    if shell is Shell.FISH:
        return ["set -e E2B_DEBUG;", *(f"set -gx {name} {_fish_quoted(value)};" for name, value in values.items())]
    if shell is Shell.POWERSHELL:
        doubled = {name: value.replace("'", "''") for name, value in values.items()}
        lines = [f"$env:{name} = '{value}'" for name, value in doubled.items()]
        return ["Remove-Item Env:E2B_DEBUG -ErrorAction SilentlyContinue", *lines]
    return ["unset E2B_DEBUG;", *(f"export {name}={shlex.quote(value)};" for name, value in values.items())]


def _fish_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _refuse_second(directory: pathlib.Path) -> None:
    """Raises ConflictError when a server of this data directory is running and answers."""
    try:
        found = connection.find(directory)
    except connection.NoServerError:
        return
    from glovebox import control  # here: httpx is slow to import, and rarely needed for this

    with control.Control(found) as client:
        if client.is_healthy():
            raise errors.ConflictError(f"a server of {directory} is already running at {found.url} (pid {found.pid})")


def _server_version(data_dir: pathlib.Path | None) -> str | None:
    try:
        return connection.find(data_dir).version or "unknown"
    except errors.GloveboxError:
        return None


def _examine(directory: pathlib.Path) -> dict[str, Any]:
    """The server's own report about this host. Raises UnsupportedError when it can't be made."""
    command = program.server_command("doctor", "--json", "--data-dir", str(directory))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOCTOR_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the server's doctor took more than {_DOCTOR_S:g} s") from error
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise errors.UnsupportedError(f"the server's doctor failed (exit code {done.returncode}): {said}") from error
    return report


def _show_report(report: dict[str, Any]) -> None:
    console = terminal.output()
    for name, value in report.get("host", {}).items():
        console.print(f"{terminal.printable(name)}: {terminal.printable(_flat(value))}", style="dim")
    for rung in report.get("runtimes", []):
        name, available = terminal.printable(rung.get("runtime")), bool(rung.get("available"))
        console.print()
        console.print(f"{'✔' if available else '✘'} {name}", style="bold green" if available else "bold red")
        for label in ("boundary", "missing", "fix", "notes"):
            for line in _lines(rung.get(label)):
                console.print(f"    {label + ':':<10}{terminal.printable(line)}")


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(part)}" for name, part in value.items())
    return ", ".join(str(_flat(part)) for part in value) if isinstance(value, list) else value


def _lines(value: Any) -> list[str]:
    if not value:
        return []
    if isinstance(value, list | tuple):
        return [str(_flat(part)) for part in value]
    return str(_flat(value)).splitlines()
