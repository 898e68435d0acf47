"""Running attackers' programs inside a sandbox, and the same ones on the host, where no wall is, to see that they would work."""

import json
import shlex
import subprocess
import sys
from typing import Any

from e2b import CommandExitException
from e2b_code_interpreter import Sandbox

#: A system call by number, from Python; `call` returns the result, or minus the errno.
CALL = """
import ctypes, errno, json, os, sys
_libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return result if result >= 0 else -ctypes.get_errno()
def tried(action, *arguments, **keywords):
    "What came of it: the errno's name, or `done`."
    try:
        action(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"
"""


class Ended:
    """How a command ended; a failure is a result."""

    def __init__(self, exit_code: int, stdout: str, stderr: str, error: str | None = None) -> None:
        self.exit_code, self.stdout, self.stderr, self.error = exit_code, stdout, stderr, error

    def __repr__(self) -> str:
        return f"exit {self.exit_code} {self.error}\n{self.stdout[-2000:]}\n{self.stderr[-2000:]}"


def run(box: Sandbox, command: str, *, user: str = "root", timeout: float = 120) -> Ended:
    """Run a shell command inside to its end."""
    try:
        ended = box.commands.run(command, user=user, timeout=timeout)
    except CommandExitException as failed:
        return Ended(failed.exit_code, failed.stdout, failed.stderr, failed.error)
    return Ended(ended.exit_code, ended.stdout, ended.stderr)


def program(box: Sandbox, source: str, *, user: str = "root", timeout: float = 120) -> Ended:
    """Run Python inside to its end, which may be a bad one."""
    return run(box, f"exec python3 -c {shlex.quote(CALL + source)}", user=user, timeout=timeout)


def python(box: Sandbox, source: str, *, user: str = "root", timeout: float = 120) -> Any:
    """Run Python inside; the JSON that it prints."""
    ended = program(box, source, user=user, timeout=timeout)
    assert ended.exit_code == 0, ended
    return json.loads(ended.stdout)


def on_host(source: str) -> Any:
    """The same program outside of any sandbox, as whoever runs the tests; the JSON that it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", CALL + source], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(ended.stdout)
