"""The Glovebox server under measurement: started, asked over HTTP, ended. One for all that measure it."""

import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from e2b_code_interpreter.code_interpreter_sync import Sandbox

from bench import bounded, groups
from bench.contenders import contract

START_TIMEOUT_S = 120.0
_REQUEST_TIMEOUT_S = 60.0
_CODE_INTERPRETER_PORT = "49999"


class Server:
    """`start` and `stop` may be called by each contender; the first does it, and the others find it done."""

    def __init__(self) -> None:
        self.url = ""
        self.key = ""
        self.pid = 0
        self.created: list[str] = []
        self.groups: set[str] = set()
        self._process: subprocess.Popen[str] | None = None

    def missing(self) -> str | None:
        """Why it cannot be started, or None."""
        found = importlib.util.find_spec("glovebox_server")
        if found is None or importlib.util.find_spec("glovebox_server.__main__") is None:
            return "glovebox_server has no `serve` command here"
        return None

    def start(self, work: pathlib.Path) -> None:
        """Start it, if nobody has yet, and wait until it says that it is ready."""
        if self.url:
            return
        if self._process is not None:
            raise contract.PrepareError("the server did not start")
        data = work / "data"
        data.mkdir()
        argv = [sys.executable, "-m", "glovebox_server", "serve", "--host", "127.0.0.1"]
        argv += ["--port", str(_free_port()), "--data-dir", str(data)]
        with (work / "server.log").open("w") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, text=True, start_new_session=True)
        self._process = process
        bounded.until(lambda: self._is_ready(data, work / "server.log"), "the server is ready", START_TIMEOUT_S)
        about = json.loads((data / "server.json").read_text())
        self.url, self.key, self.pid = about["url"], about["key"], process.pid

    def _is_ready(self, data: pathlib.Path, log: pathlib.Path) -> bool:
        process = self._process
        if process is not None:
            self.groups |= groups.own_groups(os.getpid())
        if process is not None and process.poll() is not None:
            said = log.read_text(errors="replace").strip().rpartition("\n")[2][-300:]
            raise contract.PrepareError(f"the server ended with {process.returncode}: {said}")
        return (data / "server.json").exists()

    def stop(self) -> None:
        """Kill what sandboxes are left, and end the server."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            self.groups |= groups.own_groups(os.getpid())
            if process.poll() is None and self.url:
                self._kill_all()
        finally:
            bounded.end(process)

    def _kill_all(self) -> None:
        with contextlib.closing(Client(self)) as client, contextlib.suppress(OSError, contract.MeasureError):
            for sandbox in client.json("GET", "/v2/sandboxes", 200):
                client.kill(sandbox["sandboxID"])


class Client:
    """One kept-alive connection, and as little on top of it as the standard library allows."""

    def __init__(self, server: Server) -> None:
        self._server = server
        host = server.url.removeprefix("http://").rstrip("/")
        self._connection = http.client.HTTPConnection(host, timeout=_REQUEST_TIMEOUT_S)
        self._create_body = json.dumps({"templateID": Sandbox.default_template, "timeout": 300}).encode()

    def create(self) -> dict[str, Any]:
        """A new sandbox, in the words of the E2B API."""
        answer: dict[str, Any] = self.json("POST", "/v2/sandboxes", 201, self._create_body)
        self._server.created.append(answer["sandboxID"])
        return answer

    def kill(self, sandbox_id: str) -> None:
        """End one sandbox."""
        self._request("DELETE", f"/sandboxes/{sandbox_id}", 204).read()

    def execute(self, sandbox: dict[str, Any], code: str) -> Iterator[dict[str, Any]]:
        """Run code in the default context; events as they come. To be read to the end before the next request."""
        headers = {"E2b-Sandbox-Id": sandbox["sandboxID"], "E2b-Sandbox-Port": _CODE_INTERPRETER_PORT}
        if token := sandbox.get("envdAccessToken"):
            headers["X-Access-Token"] = token
        if token := sandbox.get("trafficAccessToken"):
            headers["E2B-Traffic-Access-Token"] = token
        response = self._request("POST", "/execute", 200, json.dumps({"code": code}).encode(), headers)
        while line := response.readline():
            if line.strip():
                yield json.loads(line)
        response.read()  # where the length was told, only this notices the end, and frees the connection

    def text(self, path: str) -> str | None:
        """A page's text, or None where there is no such page."""
        with contextlib.suppress(contract.MeasureError):
            return self._request("GET", path, 200).read().decode(errors="replace")
        return None

    def json(self, method: str, path: str, status: int, body: bytes | None = None) -> Any:
        """The answer, if it has the status that is expected."""
        return json.loads(self._request(method, path, status, body).read())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _request(
        self, method: str, path: str, status: int, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        sent = {"X-API-KEY": self._server.key, "Content-Type": "application/json", **(headers or {})}
        try:
            self._connection.request(method, path, body, sent)
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens it again
            raise contract.MeasureError(f"{method} {path}: {error!r}") from error
        if response.status != status:
            said = response.read()[:300].decode(errors="replace")
            raise contract.MeasureError(f"{method} {path}: {response.status} instead of {status}: {said}")
        return response


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
