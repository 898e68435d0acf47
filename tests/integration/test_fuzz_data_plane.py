"""A live sandbox's fronts under what no client would send: refused in words, and everything works afterwards."""

import gzip
import json
import pathlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from tests.support import hostile_http, servers

_SEED = 20_261_123
_MIB = 1024 * 1024
#: 501: not served; 502: the sandbox, or what should listen in it, is not there; 507: its disk is full.
_DOCUMENTED = frozenset((501, 502, 507))
_UNARY = (
    "/process.Process/List",
    "/process.Process/Update",
    "/process.Process/SendInput",
    "/process.Process/SendSignal",
    "/process.Process/CloseStdin",
    "/filesystem.Filesystem/Stat",
    "/filesystem.Filesystem/MakeDir",
    "/filesystem.Filesystem/Move",
    "/filesystem.Filesystem/ListDir",
    "/filesystem.Filesystem/CreateWatcher",
    "/filesystem.Filesystem/GetWatcherEvents",
    "/filesystem.Filesystem/RemoveWatcher",
)
_STREAMS = ("/process.Process/Start", "/process.Process/Connect", "/process.Process/StreamInput")
_FIELDS = (
    "process", "selector", "pid", "tag", "cmd", "args", "envs", "cwd", "stdin", "pty", "size", "cols", "rows", "input",
    "signal", "path", "depth", "source", "destination", "recursive", "includeEntry", "watcherId", "start", "data",
)  # fmt: skip
_SCALARS = (
    None, True, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, -(2**63), 1.5, 1e308, "", "a", "\0", "..", "../../etc/passwd",
    "/" * 5000, "x" * 70_000, "é\u202e\x1b[31m", "SIGNAL_SIGKILL", "AAAA", "=", [], {}, [None], {"": None},
)  # fmt: skip


class Front:
    """Requests to one sandbox, each answer looked at."""

    def __init__(self, server: servers.Server, sandbox: Sandbox, client: httpx.Client) -> None:
        self.server, self.sandbox, self.client = server, sandbox, client
        self.token = str(sandbox._envd_access_token)
        self.seen: dict[int, int] = {}

    def send(
        self, method: str, path: str, content: Any = b"", port: int = hostile_http.ENVD, **headers: str
    ) -> httpx.Response:
        sent = hostile_http.to_sandbox(self.sandbox.sandbox_id, self.token, port, **headers)
        answer = self.client.request(method, path, content=content, headers=sent)
        self.seen[answer.status_code] = self.seen.get(answer.status_code, 0) + 1
        check(self.server, answer.status_code, answer.text)
        return answer

    def still_works(self) -> None:
        assert self.sandbox.commands.run("echo alive").stdout == "alive\n"
        assert self.sandbox.run_code("6*7").text == "42"
        assert httpx.get(self.server.url + "/health").status_code == 204


def check(server: servers.Server, status: int, text: str) -> None:
    assert status < 500 or status in _DOCUMENTED, (status, text[:500])
    for secret in ("Traceback", str(server.data_dir), str(servers.ROOT), "site-packages"):
        assert secret not in text


def rss_bytes(pid: int) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def sandbox(server: servers.Server) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=600, api_key=server.key, api_url=server.url, sandbox_url=server.url)
    made.run_code("1")  # what is started on first use is started now
    yield made
    made.kill()


@pytest.fixture
def front(server: servers.Server, sandbox: Sandbox) -> Iterator[Front]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        found = Front(server, sandbox, client)
        yield found
        found.still_works()
    assert "Traceback" not in server.log()
    assert "request failed" not in server.log()


def value(chance: random.Random, depth: int = 0) -> Any:
    """Something that JSON can say; with the protocol's own words, so that it comes further in."""
    kind = chance.random()
    if depth > 4 or kind < 0.45:
        return chance.choice(_SCALARS)
    if kind < 0.9:
        return {chance.choice(_FIELDS): value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return [value(chance, depth + 1) for _ in range(chance.randrange(4))]


def broken(chance: random.Random, body: bytes) -> bytes:
    """`body` with some of its bytes changed, cut or doubled."""
    data = bytearray(body)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(3)
        if what == 0:
            data[at:at] = chance.randbytes(chance.randrange(1, 5))
        elif what == 1:
            del data[at : at + chance.randrange(1, 9)]
        else:
            data[at : at + 1] = chance.randbytes(1)
    return bytes(data)


def test_random_messages_to_unary_calls(front: Front) -> None:
    chance = random.Random(_SEED)
    for number in range(2500):
        body = json.dumps(value(chance)).encode()
        if number % 3 == 0:
            body = broken(chance, body)
        kind = chance.choice(("application/json", "application/json", "application/json", "application/proto"))
        front.send("POST", chance.choice(_UNARY), body, Content_Type=kind)
    assert front.seen[400] > 500
    assert front.seen.keys() & {200, 404}


def test_random_frames_to_streams(front: Front) -> None:
    chance = random.Random(_SEED)
    for _ in range(600):
        body = json.dumps(value(chance)).encode()
        flags = chance.choice((0, 0, 0, 1, 2, 3, 0x80, 0xFF))
        length = chance.choice((None, None, None, 0, len(body) - 1, len(body) + 1, 2**31, 2**32 - 1))
        frame = hostile_http.envelope(body, flags, length)
        frame = broken(chance, frame) if chance.random() < 0.3 else frame
        codec = chance.choice(("json", "json", "proto"))
        path = chance.choice(_STREAMS)
        headers = {"Content_Type": f"application/connect+{codec}", "Connect_Timeout_Ms": "2000"}
        answer = front.send("POST", path, frame, **headers)
        assert answer.status_code == 200
        flags = answer.content[0]
        assert flags in (0, 2)
    front.sandbox.commands.run("true")


def test_random_code_requests(front: Front) -> None:
    chance = random.Random(_SEED)
    paths = ("/execute", "/contexts", "/contexts/x", "/contexts/x/restart", "/contexts/%00", "/nope", "/health")
    fields = ("context_id", "language", "env_vars", "cwd", "extra")
    for number in range(600):
        asked = {field: chance.choice(_SCALARS) for field in fields if chance.random() < 0.5}
        # Code that is right would be run: here it must not even be text.
        body = json.dumps(asked | {"code": chance.choice((None, 1, [], {}))}).encode()
        body = broken(chance, body) if number % 3 == 0 else body
        path = chance.choice(paths)
        if path == "/contexts":
            body = json.dumps({"language": chance.choice((1, [], "cobol", "\0")), "cwd": 5}).encode()
        front.send(chance.choice(("POST", "DELETE", "GET", "PUT")), path, body, hostile_http.CODE)
    assert front.seen.keys() >= {400, 404}


@pytest.mark.parametrize("port", [hostile_http.ENVD, hostile_http.CODE])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"process":' * 100_000,
        b'{"path":"' + b"x" * (2 * _MIB),
        b'{"code":' + b"9" * 100_000 + b"}",
        b"\xff" * 1000,
        b"\xef\xbb\xbf{}",
        b"",
        b"null",
        b'"' + b"\\ud800" * 1000 + b'"',
    ],
    ids=["deep-list", "deep-object", "long-string", "long-number", "no-utf8", "bom", "empty", "null", "surrogates"],
)
def test_deep_and_strange_json(front: Front, port: int, body: bytes) -> None:
    path = "/filesystem.Filesystem/Stat" if port == hostile_http.ENVD else "/execute"
    answer = front.send("POST", path, body, port, Content_Type="application/json")
    assert answer.status_code in ((200, 400) if body in (b"", b"null") else (400,))


def test_bodies_over_the_limit_are_refused(front: Front) -> None:
    for path in _UNARY:
        size = 17 * _MIB if path.endswith("SendInput") else _MIB
        huge = b'{"path":"' + b"x" * size + b'"}'
        answer = front.send("POST", path, huge, Content_Type="application/json")
        assert answer.status_code == 400
        assert "longer than" in answer.text
    huge = hostile_http.envelope(b'{"x":"' + b"x" * 4 * _MIB + b'"}')
    answer = front.send("POST", "/process.Process/Start", huge, Content_Type="application/connect+json")
    assert b"resource_exhausted" in answer.content
    answer = front.send("POST", "/execute", b'{"code":"' + b"#" * (9 * _MIB) + b'"}', hostile_http.CODE)
    assert answer.status_code == 400
    made = front.client.post(
        "/v2/sandboxes",
        content=b'{"templateID":"base","metadata":{"x":"' + b"x" * _MIB + b'"}}',
        headers={"X-API-KEY": front.server.key},
    )
    assert made.status_code == 400


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/connect+json", "application/grpc", "a" * 10_000, "*/*;;;"]
)
def test_wrong_content_types(front: Front, kind: str) -> None:
    assert front.send("POST", "/process.Process/List", b"{}", Content_Type=kind).status_code == 415
    assert front.send("POST", "/files?path=x", b"{}", Content_Type=kind).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/files",
        "/files?path=" + "a" * 5000,
        "/files?path=" + "%2F".join("abc" for _ in range(2000)),
        "/files?path=%00",
        "/files?path=a%00b",
        "/files?path=%ff%fe",
        "/files?path=%ed%a0%80",
        "/files?path=..%2f..%2f..%2f..%2fetc%2fhosts%2fx",
        "/files?path=%252e%252e%252f",
        "/files?path=/proc/self/mem",
        "/files?path=/dev/null/x",
        "/files?path=.&username=" + "u" * 3000,
        "/files?path=x&username=%00",
        "/files?path[]=x&path[]=y",
        "/..%2f..%2ffiles",
        "//files?path=x",
        "/%00",
    ],
)
def test_strange_paths(front: Front, path: str) -> None:
    read = front.send("GET", path)
    wrote = front.send("POST", path, b"data", Content_Type="application/octet-stream")
    assert 400 <= read.status_code < 500
    assert 400 <= wrote.status_code < 500 or wrote.json()[0]["type"] == "file"


@pytest.mark.parametrize("depth", [-1, 0, 2**31, 2**32 - 1, 2**32, 2**64, 1.5, "1", "many", None, [1]])
def test_depths(front: Front, depth: Any) -> None:
    body = json.dumps({"path": "/home/user", "depth": depth}).encode()
    answer = front.send("POST", "/filesystem.Filesystem/ListDir", body, Content_Type="application/json")
    assert answer.status_code in (200, 400)


_PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x"),
        ("multipart/form-data; boundary=b", b"no boundary at all"),
        ("multipart/form-data; boundary=b", _PART % b"x" + b"never ends"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"H" * 100_000),
        ("multipart/form-data; boundary=b", b"--b\r\nX: \0\r\n\r\n" * 100),
        ("multipart/form-data; boundary=b", _PART % (b"n" * 10_000) + b"x\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", _PART % b"" + b"x\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", _PART % b"a\0b" + b"x\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", (_PART % b"same" + b"x\r\n") * 2 + b"--b--\r\n"),
    ],
)
def test_bad_multipart(front: Front, kind: str, body: bytes) -> None:
    assert front.send("POST", "/files", body, Content_Type=kind).status_code == 400


def test_random_multipart(front: Front) -> None:
    chance = random.Random(_SEED)
    good = _PART % b"fuzz.txt" + b"content\r\n--b--\r\n"
    for _ in range(300):
        answer = front.send("POST", "/files", broken(chance, good), Content_Type="multipart/form-data; boundary=b")
        assert answer.status_code in (200, 400)


@pytest.mark.parametrize(
    "body", [b"", b"not gzip", gzip.compress(b"x" * 9999)[:-9], gzip.compress(b"x") + b"rest", b"\x1f\x8b" + b"\0" * 99]
)
def test_bad_gzip(front: Front, body: bytes) -> None:
    headers = {"Content_Type": "application/octet-stream", "Content_Encoding": "gzip"}
    assert front.send("POST", "/files?path=zipped", body, **headers).status_code == 400
    headers["Content_Encoding"] = "br" * 50
    assert front.send("POST", "/files?path=zipped", body, **headers).status_code == 400


def test_a_gzip_bomb_fills_only_the_sandbox(front: Front) -> None:
    before = rss_bytes(front.server.pid)
    layer = gzip.compress(bytes(64 * _MIB))
    headers = {"Content_Type": "application/octet-stream", "Content_Encoding": "gzip"}
    # A member after the other: some 64 GiB, were there room for it.
    answer = front.send("POST", "/files?path=/tmp/bomb", layer * 1024, **headers)
    assert answer.status_code in (400, 429, 507)
    assert rss_bytes(front.server.pid) - before < 64 * _MIB
    front.sandbox.commands.run("rm -f /tmp/bomb*", user="root")


@pytest.mark.parametrize(
    "headers",
    [
        {"Connect_Timeout_Ms": "-1"},
        {"Connect_Timeout_Ms": "9" * 400},
        {"Connect_Timeout_Ms": "1e9"},
        {"Keepalive_Ping_Interval": "-5"},
        {"Keepalive_Ping_Interval": "9" * 1000},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + "A" * 20_000},
        {"Authorization": "Bearer x"},
        {"Content_Encoding": "zip"},
        {"Range": "bytes=" + "9" * 5000 + "-"},
        {"Range": "bytes=5-1"},
        {"Accept_Encoding": "gzip;q=x, *;q=0"},
        {"X_Metadata_" + "k" * 300: "v"},
        {"X_Metadata_k": "v" * 30_000},
        {"Expect": "something"},
        {"Cookie": "x" * 30_000},
    ],
)
def test_absurd_headers(front: Front, headers: dict[str, str]) -> None:
    front.send("POST", "/process.Process/List", b"{}", **{"Content_Type": "application/json", **headers})
    front.send("GET", "/files?path=/etc/hosts", **headers)
    front.send("POST", "/files?path=headers", b"x", **{"Content_Type": "application/octet-stream", **headers})


def test_a_hundred_thousand_headers(front: Front) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    many = (
        b"".join(b"X-%d: y\r\n" % number for number in range(start, start + 1000)) for start in range(0, 10**5, 1000)
    )
    answer = hostile_http.raw(front.server.url, (piece for part in ((head,), many, (b"\r\n",)) for piece in part))
    assert hostile_http.statuses(answer) in ([431], [])


def test_truncated_requests(front: Front) -> None:
    chance = random.Random(_SEED)
    headers = hostile_http.to_sandbox(
        front.sandbox.sandbox_id, front.token, Host="localhost", Content_Type="application/connect+json"
    )
    body = hostile_http.envelope({"process": {"cmd": "/bin/true"}})
    whole = hostile_http.request("POST", "/process.Process/Start", headers, body)
    for _ in range(100):
        cut = chance.randrange(len(whole))
        answer = hostile_http.raw(front.server.url, whole[:cut], half_close=True)
        for status in hostile_http.statuses(answer):
            check(front.server, status, answer.decode("latin-1"))


def test_a_head_that_never_ends_is_cut(front: Front) -> None:
    answer = hostile_http.raw(front.server.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
    assert answer == b""  # the server closed it, after its own time


def test_random_bytes_as_requests(front: Front) -> None:
    chance = random.Random(_SEED)
    good = hostile_http.request("GET", "/health", {"Host": "localhost"})
    for _ in range(300):
        answer = hostile_http.raw(front.server.url, broken(chance, good), half_close=True)
        for status in hostile_http.statuses(answer):
            check(front.server, status, answer.decode("latin-1"))
    answer = hostile_http.raw(front.server.url, struct.pack(">I", 5) * 20_000, half_close=True)
    assert hostile_http.statuses(answer) in ([400], [431], [])


def test_the_server_has_not_grown(front: Front) -> None:
    chance = random.Random(_SEED + 1)
    deep, wide = b"[" * 500_000, b'{"input":"' + b"x" * (15 * _MIB) + b'"}'

    def storm() -> None:
        for _ in range(10):
            for body in (deep, wide, json.dumps(value(chance)).encode()):
                front.send("POST", "/process.Process/SendInput", body, Content_Type="application/json")

    storm()  # what the allocator keeps for next time, it keeps once
    before = rss_bytes(front.server.pid)
    storm()
    storm()
    assert rss_bytes(front.server.pid) - before < 64 * _MIB
