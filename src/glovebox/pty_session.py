"""An interactive shell in a sandbox, on the terminal we stand in.

keyboard ──▶ (raw mode: Ctrl-C is a byte like others) ──▶ PTY inside ──▶ screen
SIGWINCH ──▶ the PTY's new size
"""

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any

import e2b
from e2b.sandbox.commands.command_handle import PtySize

from glovebox import lease, streams

_CHUNK_BYTES = 16 * 1024


def run(sandbox: e2b.Sandbox, user: str | None, cwd: str | None, variables: dict[str, str]) -> int:
    """Runs a shell until it ends, and returns its exit code."""
    # The program inside draws for the terminal that is really here.
    known = {"TERM": os.environ.get("TERM", "xterm-256color"), **variables}
    handle = sandbox.pty.create(size(), user=user, cwd=cwd, envs=known, timeout=0)
    session = _Session(sandbox, handle)
    with lease.kept_alive(sandbox), _raw_terminal(), _resizes(session.resize):
        session.start()
        session.pump_input()
    return session.exit_code()


def size() -> PtySize:
    """How large our terminal is."""
    columns, lines = os.get_terminal_size(0)  # not shutil's, which believes COLUMNS and so never changes
    return PtySize(rows=lines, cols=columns)


class _Session:
    """Two directions: a thread writes what the PTY shows, the caller's thread sends what is typed."""

    def __init__(self, sandbox: e2b.Sandbox, handle: Any) -> None:
        self._sandbox = sandbox
        self._handle = handle
        self._result: int | BaseException | None = None
        # Written by the output thread when the shell has ended, to wake the select below.
        self._ended_r, self._ended_w = os.pipe()

    def start(self) -> None:
        threading.Thread(target=self._pump_output, name="pty output", daemon=True).start()

    def pump_input(self) -> None:
        """Sends the keyboard's bytes until the shell ends or the keyboard is gone."""
        while True:
            ready, _, _ = select.select([0, self._ended_r], [], [])
            if self._ended_r in ready:
                return
            typed = os.read(0, _CHUNK_BYTES)
            if not typed:
                self._handle.kill()
                return
            # The shell may have just ended; the output thread says so in a moment.
            with contextlib.suppress(e2b.NotFoundException):
                self._sandbox.pty.send_stdin(self._handle.pid, typed)

    def resize(self) -> None:
        with contextlib.suppress(e2b.SandboxException):
            self._sandbox.pty.resize(self._handle.pid, size())

    def exit_code(self) -> int:
        """The shell's exit code, once it has ended; the error that ended the session, if one did."""
        select.select([self._ended_r], [], [])
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result or 0

    def _pump_output(self) -> None:
        try:
            self._handle.wait(on_pty=_show)
            self._result = 0
        except e2b.CommandExitException as ended:
            self._result = streams.exit_code(ended.exit_code)
        except Exception as error:  # it belongs to the caller's thread, which raises it
            self._result = error
        os.close(self._ended_w)


def _show(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Raw mode, given back as it was: even when the session fails."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # not the default, which throws away what was typed while the sandbox started
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizes(resize: Any) -> Iterator[None]:
    """Calls `resize` whenever our terminal changes its size."""
    before = signal.signal(signal.SIGWINCH, lambda *_: resize())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
