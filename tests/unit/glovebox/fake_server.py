"""A small control plane: what the command needs to see of a server, in a thread or as a process.

As a program it takes the server's own command line (`serve --host H --port P --data-dir D`), for tests of private servers.
"""

import argparse
import dataclasses
import http.server
import json
import os
import pathlib
import threading
import urllib.parse
from typing import Any

KEY = "e2b_" + "0" * 40


def sandbox(sandbox_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "templateID": "base",
        "sandboxID": sandbox_id,
        "clientID": "local",
        "startedAt": "2026-01-01T00:00:00Z",
        "endAt": "2026-01-01T00:05:00Z",
        "cpuCount": 2,
        "memoryMB": 2048,
        "diskSizeMB": 1536,
        "state": "running",
        "envdVersion": "0.6.13",
        **fields,
    }


@dataclasses.dataclass
class State:
    sandboxes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    keys: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    page: int = 2
    requests: list[str] = dataclasses.field(default_factory=list)
    refuse: int | None = None
    log_reads_left: int | None = None  # after so many reads of a log the sandbox has ended


class Handler(http.server.BaseHTTPRequestHandler):
    state: State

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.state.requests.append(f"GET {self.path}")
        if url.path == "/health":
            self._answer(204)
        elif self._refused():
            pass
        elif url.path == "/v2/sandboxes":
            start = int(query.get("nextToken") or 0)
            end = start + self.state.page
            more = {"X-Next-Token": str(end)} if end < len(self.state.sandboxes) else {}
            self._answer(200, self.state.sandboxes[start:end], more)
        elif url.path.endswith("/logs"):
            self._answer_logs(query)
        elif url.path == "/api-keys":
            self._answer(200, self.state.keys)
        else:
            self._answer(404, {"code": 404, "message": "no such route"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.requests.append(f"POST {self.path}")
        if not self._refused():
            created = {"id": "key1", "name": body["name"]}
            self.state.keys.append(created)
            self._answer(201, created | {"key": "e2b_" + "ab" * 20})

    def do_DELETE(self) -> None:
        self.state.requests.append(f"DELETE {self.path}")
        name = urllib.parse.unquote(self.path.rpartition("/")[2])
        here, field = (self.state.keys, "id") if "/api-keys/" in self.path else (self.state.sandboxes, "sandboxID")
        kept = [thing for thing in here if thing[field] != name]
        if len(kept) == len(here):
            self._answer(404, {"code": 404, "message": f'Sandbox "{name}" doesn\'t exist'})
            return
        here[:] = kept
        self._answer(204)

    def _refused(self) -> bool:
        if self.state.refuse is not None:
            self._answer(self.state.refuse, {"code": self.state.refuse, "message": "refused\x1b[31m here\nsecond line"})
        elif self.headers.get("X-API-KEY") != KEY:
            self._answer(401, {"code": 401, "message": "Invalid API key"})
        else:
            return False
        return True

    def _answer_logs(self, query: dict[str, str]) -> None:
        if self.state.log_reads_left is not None:
            self.state.log_reads_left -= 1
            if self.state.log_reads_left < 0:
                self._answer(404, {"code": 404, "message": "gone"})
                return
        cursor = int(query.get("cursor") or 0)
        fresh = [entry for entry in self.state.logs if entry["ms"] >= cursor]
        self._answer(200, {"logs": fresh[: int(query["limit"])]})

    def _answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class FakeServer:
    def __init__(self, port: int = 0, sandboxes: list[dict[str, Any]] | None = None) -> None:
        self.state = State(sandboxes=sandboxes or [])
        handler = type("Bound", (Handler,), {"state": self.state})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def describe(self, data_dir: pathlib.Path, **changes: Any) -> pathlib.Path:
        content = {"url": self.url, "pid": os.getpid(), "key": KEY, "version": "9.9.9", **changes}
        path = data_dir / "server.json"
        path.write_text(json.dumps(content))
        return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--log-level")
    options = parser.parse_args()
    with FakeServer(options.port, [sandbox("ileft")]) as server:
        server.describe(options.data_dir)
        threading.Event().wait()


if __name__ == "__main__":
    main()
