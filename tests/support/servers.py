"""Starting, killing and restarting a real server, and looking for what it left behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
#: Built once for all servers of all test runs of this checkout: a template takes a minute to make and is never changed.
TEMPLATES = ROOT / "build/templates"
_START_TIMEOUT_S = 300
#: Ours, for what building a template needs of it (proxies, certificates), without what would be a setting.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GLOVEBOX_", "E2B_"))}


class Server:
    """`python -m glovebox_server serve` on a data folder of its own and any free port."""

    def __init__(self, folder: pathlib.Path, **settings: str) -> None:
        self.data_dir = folder / "data"
        self.data_dir.mkdir(exist_ok=True)
        TEMPLATES.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "templates").symlink_to(TEMPLATES)
        self._settings = {f"GLOVEBOX_{name.upper()}": value for name, value in settings.items()}
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, str] = {}

    @property
    def url(self) -> str:
        return self.facts["url"]

    @property
    def key(self) -> str:
        return self.facts["key"]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What points the E2B SDKs here."""
        return {"E2B_API_KEY": self.key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}

    def start(self) -> None:
        """Start (again, on the same port and folder), and return when it answers."""
        facts = self.data_dir / "server.json"
        facts.unlink(missing_ok=True)
        with open(self.data_dir / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "glovebox_server",
                    "serve",
                    "--port",
                    str(self._port),
                    "--data-dir",
                    self.data_dir,
                ],
                env={**_ENVIRONMENT, "HOME": str(self.data_dir), **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: facts.exists() or self._process.poll() is not None, _START_TIMEOUT_S)  # type: ignore[union-attr]
        if not facts.exists():
            raise AssertionError(f"the server did not start:\n{self.log()[-4000:]}")
        self.facts = json.loads(facts.read_text())
        self._port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL: nothing of its own is run any more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, as an operator would; everything must be gone after it."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=60)

    def log(self) -> str:
        return (self.data_dir / "server.log").read_text(errors="replace")


def wait_until(condition: Callable[[], object], timeout_s: float, explain: Callable[[], object] = lambda: "") -> None:
    """Return when `condition` holds; AssertionError, with what `explain` says, when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout_s} s: {condition} {explain()}")
        time.sleep(0.01)
