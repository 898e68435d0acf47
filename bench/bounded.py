"""Waiting for processes with an end: lines, exits, conditions."""

import contextlib
import select
import subprocess
import time
from collections.abc import Callable
from typing import IO

from bench.contenders import contract

LINE_TIMEOUT_S = 30.0
END_TIMEOUT_S = 15.0


def read_line(stream: IO[str], timeout_s: float = LINE_TIMEOUT_S) -> str:
    """The next line. Only for streams whose writer sends one line at a time: more would hide in the buffer."""
    if not select.select([stream], [], [], timeout_s)[0]:
        raise contract.MeasureError(f"no line in {timeout_s:.0f} s")
    return stream.readline().strip()


def end(process: subprocess.Popen[str], timeout_s: float = END_TIMEOUT_S) -> None:
    """Ask one process of ours to end, wait, and end it if it does not."""
    if process.poll() is None:
        process.terminate()
    _wait_or_kill(process, timeout_s)


def close_input_and_wait(process: subprocess.Popen[str], timeout_s: float = END_TIMEOUT_S) -> None:
    """The same for one that ends when its input does."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    _wait_or_kill(process, timeout_s)
    if process.stdout is not None:
        process.stdout.close()


def _wait_or_kill(process: subprocess.Popen[str], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], what: str, timeout_s: float, step_s: float = 0.02) -> None:
    """Return once the condition holds; PrepareError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise contract.PrepareError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(step_s)
