"""A server of one's own for one job: in a temporary directory, on a free loopback port, leaving nothing behind.

start ──▶ wait for server.json and /health ──▶ (the job) ──▶ kill its sandboxes ──▶ SIGTERM ──▶ remove the directory
"""

import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from glovebox import connection, control, errors, program

_READY_S = 120.0
_END_S = 20.0
_POLL_S = 0.02


@contextlib.contextmanager
def server(log_level: str = "warning") -> Iterator[connection.Connection]:
    """A running private server; it and all it made are gone when the block is left."""
    data_dir = pathlib.Path(tempfile.mkdtemp(prefix="glovebox-private-"))
    try:
        _share_templates(data_dir)
        with _process(data_dir, log_level) as process:
            target = _ready(process, data_dir)
            try:
                yield target
            finally:
                _kill_sandboxes(target)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


@contextlib.contextmanager
def existing_or_private(data_dir: pathlib.Path | None) -> Iterator[connection.Connection]:
    """The server that runs already, else a private one."""
    try:
        target = connection.find(data_dir)
        with control.Control(target) as client:
            if not client.is_healthy():
                raise connection.NoServerError(f"no server answers at {target.url}")
    except connection.NoServerError:
        with server() as own:
            yield own
        return
    yield target


def _share_templates(data_dir: pathlib.Path) -> None:
    templates = connection.default_data_dir() / "templates"
    templates.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the server's own mode for it
    templates.mkdir(mode=0o755, exist_ok=True)
    (data_dir / "templates").symlink_to(templates)


@contextlib.contextmanager
def _process(data_dir: pathlib.Path, log_level: str) -> Iterator[subprocess.Popen[bytes]]:
    place = ["--host", "127.0.0.1", "--port", str(_free_port())]
    command = program.server_command("serve", *place, "--data-dir", str(data_dir), "--log-level", log_level)
    # A session of its own: Ctrl-C at the terminal must reach us alone, who then end it in order.
    with (data_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


def _ready(process: subprocess.Popen[bytes], data_dir: pathlib.Path) -> connection.Connection:
    """The connection, as soon as the server answers. Raises UnsupportedError with the log's last words if it ends."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise errors.UnsupportedError(f"the private server ended at its start: {_last_line(data_dir)}")
        with contextlib.suppress(connection.NoServerError):
            target = connection.read(data_dir / connection.SERVER_FILE)
            with control.Control(target) as client:
                if client.is_healthy():
                    return target
        time.sleep(_POLL_S)
    raise TimeoutError(f"the private server was not ready in {_READY_S:g} s: {_last_line(data_dir)}")


def _kill_sandboxes(target: connection.Connection) -> None:
    """Sandboxes outlive their server by design; those of a private one must not."""
    with control.Control(target) as client, contextlib.suppress(errors.GloveboxError):
        for sandbox in list(client.sandboxes()):
            with contextlib.suppress(errors.NotFoundError):
                client.kill(str(sandbox["sandboxID"]))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _last_line(data_dir: pathlib.Path) -> str:
    lines = (data_dir / "server.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
