"""Where the server is: the data directory, its `server.json`, and what a client needs to reach it.

A server that is ready writes `<data dir>/server.json` with its address and a local admin key, readable by its owner
alone. `GLOVEBOX_URL` and `GLOVEBOX_API_KEY` name a server elsewhere instead. Only this module reads the environment.
"""

import dataclasses
import json
import os
import pathlib
import re
import urllib.parse
from typing import Any

from glovebox import errors

SERVER_FILE = "server.json"
_KEY = re.compile(r"[\x21-\x7e]{1,256}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
# What a server that listens everywhere is called by a client on the same machine.
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # compared with, never bound to


class NoServerError(errors.GloveboxError):
    """There is no running server where one was looked for."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """A server and the key to use it with."""

    url: str
    key: str = dataclasses.field(repr=False)
    pid: int | None = None
    version: str = ""

    @property
    def domain(self) -> str:
        """The base of sandbox host names: `<port>-<sandbox id>.<domain>`.

        A loopback address has no names under it; `*.localhost` is loopback by RFC 6761.
        """
        parts = urllib.parse.urlsplit(self.url)
        host = parts.hostname or "localhost"
        if host == "::1" or host.startswith("127."):
            host = "localhost"
        return f"{host}:{parts.port}" if parts.port else host

    def environment(self) -> dict[str, str]:
        """The variables by which every E2B SDK and the E2B CLI find this server."""
        return {
            "E2B_API_KEY": self.key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
            "E2B_DOMAIN": self.domain,
        }

    def sdk_options(self) -> dict[str, Any]:
        """The same, as options of a Python SDK call; they win over the caller's environment."""
        return {
            "api_key": self.key,
            "api_url": self.url,
            "sandbox_url": self.url,
            "domain": self.domain,
            "debug": False,
        }


def default_data_dir() -> pathlib.Path:
    """Where the server keeps its state when nobody says otherwise (the server has the same rule)."""
    if named := os.environ.get("GLOVEBOX_DATA_DIR"):
        return pathlib.Path(named)
    if os.geteuid() == 0:
        return pathlib.Path("/var/lib/glovebox")
    return pathlib.Path.home() / ".local" / "share" / "glovebox"


def find(data_dir: pathlib.Path | None = None) -> Connection:
    """The server to use: an explicit `data_dir`, else `GLOVEBOX_URL`, else the default directory.

    Raises NoServerError when there is none; it does not ask whether the server answers.
    """
    if data_dir is None and (url := os.environ.get("GLOVEBOX_URL")):
        key = os.environ.get("GLOVEBOX_API_KEY") or os.environ.get("E2B_API_KEY")
        if not key:
            raise errors.AuthenticationError("GLOVEBOX_URL is set, but GLOVEBOX_API_KEY is not")
        return _checked({"url": url, "key": key}, "GLOVEBOX_URL")
    directory = data_dir or default_data_dir()
    found = read(directory / SERVER_FILE)
    if found.pid is not None and not is_alive(found.pid):
        raise NoServerError(f"the server of {directory} has ended (pid {found.pid}); start it with: glovebox serve")
    return found


def read(path: pathlib.Path) -> Connection:
    """The connection written in a server file. Raises NoServerError when it can't be read."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NoServerError(f"no server is running (no {path}); start one with: glovebox serve") from error
    except PermissionError as error:
        raise NoServerError(f"{path} belongs to another user; run as that user, or set GLOVEBOX_URL") from error
    except (OSError, ValueError) as error:
        raise NoServerError(f"{path} cannot be read; start the server again with: glovebox serve") from error
    return _checked(content, str(path))


def is_alive(pid: int) -> bool:
    """Whether a process of that id exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _checked(content: Any, source: str) -> Connection:
    """`content` as a connection: its text ends up in a shell (`glovebox env`), so nothing odd passes."""
    if not isinstance(content, dict):
        raise NoServerError(f"{source} is not a server's description")
    key, pid = content.get("key"), content.get("pid")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise NoServerError(f"{source} holds no usable key")
    if not isinstance(pid, int) or pid <= 0:
        pid = None
    return Connection(_checked_url(content.get("url"), source), key, pid, str(content.get("version", "")))


def _checked_url(url: Any, source: str) -> str:
    """`url` as plain `http(s)://host[:port]`, with an address a client can connect to."""
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        port = parts.port
    except ValueError as error:
        raise NoServerError(f"{source} holds no usable address") from error
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or parts.path.strip("/"):
        raise NoServerError(f"{source} holds no usable address")
    host = _ANY_HOST.get(host, f"[{host}]" if ":" in host else host)
    return f"{parts.scheme}://{host}:{port}" if port else f"{parts.scheme}://{host}"
