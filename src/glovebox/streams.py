"""A program in a sandbox with its three streams connected to ours, byte for byte."""

import codecs
import contextlib
import dataclasses
import os
import sys
import threading
from typing import Any, BinaryIO

import e2b

from glovebox import outcome

_CHUNK_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Program:
    """What to run, as whom, where, and for how long (0: without limit)."""

    command: str
    user: str | None
    cwd: str | None
    variables: dict[str, str]
    timeout_s: float


def start(sandbox: e2b.Sandbox, program: Program, with_stdin: bool) -> Any:
    """Starts it; the SDK's handle. Without `with_stdin` it reads from /dev/null."""
    return sandbox.commands.run(
        program.command,
        background=True,
        envs=program.variables,
        user=program.user,
        cwd=program.cwd,
        stdin=with_stdin,
        timeout=program.timeout_s,
        retain_output=False,
    )


def run(sandbox: e2b.Sandbox, program: Program, with_stdin: bool) -> int:
    """Runs it to its end, and returns its exit code. Interrupted, it is killed."""
    handle = start(sandbox, program, with_stdin)
    _decode_nothing(handle)
    if with_stdin:
        threading.Thread(target=_feed, args=(handle,), name="stdin", daemon=True).start()
    try:
        handle.wait(
            on_stdout=lambda text: _pass_on(sys.stdout.buffer, text),
            on_stderr=lambda text: _pass_on(sys.stderr.buffer, text),
        )
    except e2b.CommandExitException as ended:
        return exit_code(ended.exit_code)
    except (KeyboardInterrupt, BrokenPipeError):
        handle.kill()
        raise
    return 0


def exit_code(reported: int) -> int:
    """A process's exit code for ours: the protocol reports -1 for every signal, which a shell shows as 128 and more."""
    return outcome.SIGNALLED if reported < 0 else reported & 0xFF


def _decode_nothing(handle: Any) -> None:
    """Makes the SDK's handle deliver bytes as Latin-1 text, which is each byte as one character.

    Its own UTF-8 decoding would replace what is no text, and `exec ID -- tar c .` must give a tar file. The SDK has no
    public way to ask for bytes; an integration test sees to it that this one goes on working.
    """
    for name in ("_stdout_decoder", "_stderr_decoder"):
        if not hasattr(handle, name):
            raise AttributeError(f"this version of the E2B SDK has no {name}: glovebox exec cannot pass bytes")
        setattr(handle, name, codecs.getincrementaldecoder("latin-1")())


def _pass_on(stream: BinaryIO, text: str) -> None:
    stream.write(text.encode("latin-1"))
    stream.flush()


def _feed(handle: Any) -> None:
    """Passes our standard input on until it ends, or until nobody reads it any more."""
    # The program may end first, or be told to close its input: neither is an error here.
    with contextlib.suppress(e2b.SandboxException):
        while chunk := os.read(0, _CHUNK_BYTES):
            handle.send_stdin(chunk)
        handle.close_stdin()
