"""A sandbox for the length of one command: a fresh one that is killed after, or one that exists and is left alone."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glovebox import connection, private

if TYPE_CHECKING:
    import e2b
    from e2b_code_interpreter import code_interpreter_sync

_EXTEND_S = 60.0
_LEFT_S = 300


@contextlib.contextmanager
def fresh(
    data_dir: pathlib.Path | None, template: str | None, variables: dict[str, str], timeout_s: int, keep: bool = False
) -> Iterator["code_interpreter_sync.Sandbox"]:
    """A new sandbox on the running server, else on a private one. Killed at the end, unless it is to be kept."""
    # A private server and its sandboxes end with the command: nothing could be kept there.
    servers = _running(data_dir) if keep else private.existing_or_private(data_dir)
    with servers as target:
        from e2b_code_interpreter import code_interpreter_sync  # most of a second: not before a sandbox is needed

        sandbox = code_interpreter_sync.Sandbox.create(
            template, timeout=timeout_s, envs=variables, metadata={"made-by": "glovebox"}, **target.sdk_options()
        )
        try:
            yield sandbox
        finally:
            if not keep:
                sandbox.kill()


def existing(data_dir: pathlib.Path | None, sandbox_id: str) -> "e2b.Sandbox":
    """The sandbox of that id, resumed if it was paused. Like any connect, it leaves it at least five minutes to live."""
    target = connection.find(data_dir)
    import e2b

    return e2b.Sandbox.connect(sandbox_id, timeout=_LEFT_S, **target.sdk_options())


@contextlib.contextmanager
def kept_alive(sandbox: "e2b.Sandbox") -> Iterator[None]:
    """While the block runs, the sandbox's timeout does not end it: whoever sits in a shell is using it."""
    done = threading.Event()

    def extend() -> None:
        while not done.wait(_EXTEND_S):
            # A miss is no harm (the next one comes in time); that the sandbox has gone, its user sees at once.
            with contextlib.suppress(Exception):
                sandbox.connect(timeout=_LEFT_S)

    threading.Thread(target=extend, name="keep alive", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def _running(data_dir: pathlib.Path | None) -> Iterator[connection.Connection]:
    yield connection.find(data_dir)
