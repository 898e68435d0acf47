"""The front door: who is let in, who is not, and what nobody can put into our answers and logs."""

import concurrent.futures
import datetime as dt
import hashlib
import hmac
import json
import pathlib
import secrets
import time
import urllib.parse
from collections.abc import Iterator

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from glovebox_server import audit
from glovebox_server.gateway.e2b import signatures
from tests.support import hostile_http, servers

_UNKNOWN = "i" + "0" * 19
#: What no line of a log may hold: what a terminal obeys, and what looks like a line of ours.
_FORGED = '\x1b[31mred\r\n{"event":"forged","level":"info"}\n\u2028next'


@pytest.fixture
def admin(server: servers.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=60) as client:
        yield client


@pytest.fixture
def anybody(server: servers.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def make_key(admin: httpx.Client, **more: object) -> tuple[str, str]:
    """A new tenant's key: its id and its secret."""
    made = admin.post("/api-keys", json={"name": "front door", **more})
    assert made.status_code == 201
    return made.json()["id"], made.json()["key"]


def token_of(sandbox: Sandbox) -> str:
    return str(sandbox._envd_access_token)


def lists(client: httpx.Client, sandbox: Sandbox, **headers: str | None) -> int:
    """The status of a harmless call to the sandbox's envd."""
    sent = hostile_http.to_sandbox(sandbox.sandbox_id, token_of(sandbox)) | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    found = {name: value for name, value in sent.items() if value is not None}
    return client.post("/process.Process/List", json={}, headers=found).status_code


# Keys


@pytest.mark.parametrize("key", [None, "", "x", "e2b_", "e2b_" + "0" * 40, "E2B_" + "0" * 40, "e2b_" + "0" * 4000])
def test_wrong_keys(anybody: httpx.Client, sandbox: Sandbox, key: str | None) -> None:
    headers = {} if key is None else {"X-API-KEY": key}
    for method, path in (
        ("GET", "/v2/sandboxes"),
        ("POST", "/sandboxes"),
        ("DELETE", f"/sandboxes/{sandbox.sandbox_id}"),
        ("GET", "/api-keys"),
        ("GET", f"/sandboxes/{_UNKNOWN}"),
    ):
        answer = anybody.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert sandbox.sandbox_id not in answer.text
    assert sandbox.is_running()


def test_a_part_of_a_key_and_its_hash_open_nothing(server: servers.Server, anybody: httpx.Client) -> None:
    key = server.key
    for wrong in (key[:-1], key + "0", key.upper(), key[:-1] + ("0" if key[-1] != "0" else "1")):
        assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": wrong}).status_code == 401
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": digest}).status_code == 401
    for other in ({"Authorization": f"Bearer {key}"}, {"Cookie": f"X-API-KEY={key}"}):
        assert anybody.get("/v2/sandboxes", headers=other).status_code == 401
    assert anybody.get("/v2/sandboxes", params={"X-API-KEY": key, "api_key": key}).status_code == 401


def test_revoked_and_expired_keys(admin: httpx.Client, anybody: httpx.Client) -> None:
    key_id, key = make_key(admin)
    assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": key}).status_code == 200
    assert admin.delete(f"/api-keys/{key_id}").status_code == 204
    assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": key}).status_code == 401
    past = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)).isoformat()
    _, key = make_key(admin, expiresAt=past)
    assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": key}).status_code == 401


def test_a_key_expires_although_it_was_just_used(admin: httpx.Client, anybody: httpx.Client) -> None:
    _, key = make_key(admin, expiresAt=(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)).isoformat())
    assert anybody.get("/v2/sandboxes", headers={"X-API-KEY": key}).status_code == 200
    servers.wait_until(lambda: anybody.get("/v2/sandboxes", headers={"X-API-KEY": key}).status_code == 401, 30)


def test_another_tenants_sandbox_does_not_exist(admin: httpx.Client, anybody: httpx.Client, sandbox: Sandbox) -> None:
    _, key = make_key(admin)
    for sandbox_id in (sandbox.sandbox_id, _UNKNOWN):
        one = f"/sandboxes/{sandbox_id}"
        for method, path, body in (
            ("GET", one, None),
            ("DELETE", one, None),
            ("POST", one + "/timeout", {"timeout": 0}),
            ("POST", one + "/connect", {"timeout": 10}),
            ("POST", "/v2" + one + "/connect", {}),
            ("POST", one + "/refreshes", {}),
            ("PUT", one + "/network", {}),
            ("GET", one + "/metrics", None),
            ("GET", one + "/logs", None),
            ("GET", "/v2" + one + "/logs", None),
        ):
            answer = anybody.request(method, path, json=body, headers={"X-API-KEY": key})
            assert answer.status_code == 404, (method, path, answer.text)
            # The same words for both: else the ids of others could be found out.
            assert answer.json()["message"] == f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it"
    headers = {"X-API-KEY": key}
    found = anybody.get("/sandboxes/metrics", params={"sandbox_ids": sandbox.sandbox_id}, headers=headers)
    assert found.json() == {"sandboxes": {}}
    assert anybody.get("/v2/sandboxes", headers=headers).json() == []
    assert anybody.get("/v2/sandboxes", headers=headers).headers["X-Total-Running"] == "0"
    assert sandbox.is_running()


def test_a_tenant_is_no_admin(admin: httpx.Client, anybody: httpx.Client) -> None:
    key_id, key = make_key(admin)
    for method, path in (("GET", "/api-keys"), ("POST", "/api-keys"), ("DELETE", f"/api-keys/{key_id}")):
        answer = anybody.request(method, path, json={"name": "x", "admin": True}, headers={"X-API-KEY": key})
        assert answer.status_code == 403


def test_two_creates_for_the_last_place(admin: httpx.Client, anybody: httpx.Client) -> None:
    _, key = make_key(admin, maxSandboxes=1)
    headers = {"X-API-KEY": key}

    def create(_: int) -> httpx.Response:
        return anybody.post("/v2/sandboxes", json={"templateID": "base", "timeout": 60}, headers=headers)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [429] * 7
    (made,) = anybody.get("/v2/sandboxes", headers=headers).json()
    assert anybody.delete(f"/sandboxes/{made['sandboxID']}", headers=headers).status_code == 204


# Tokens


def test_wrong_tokens(server: servers.Server, anybody: httpx.Client, sandbox: Sandbox) -> None:
    token = token_of(sandbox)
    for wrong in (None, "", "x", token[:-1], token + "0", token.swapcase(), server.key):
        assert lists(anybody, sandbox, X_Access_Token=wrong) == 401
        code = hostile_http.to_sandbox(sandbox.sandbox_id, wrong, hostile_http.CODE)
        assert anybody.post("/execute", json={"code": "1"}, headers=code).status_code == 401
    assert lists(anybody, sandbox, X_Access_Token=None, X_API_KEY=server.key) == 401
    assert lists(anybody, sandbox) == 200


def test_a_token_is_for_one_sandbox(anybody: httpx.Client, sandbox: Sandbox, neighbour: Sandbox) -> None:
    assert lists(anybody, sandbox, X_Access_Token=token_of(neighbour)) == 401
    assert lists(anybody, sandbox, E2b_Sandbox_Id=neighbour.sandbox_id) == 401
    assert lists(anybody, neighbour) == 200


def test_a_token_dies_with_its_sandbox(anybody: httpx.Client, sandbox: Sandbox, neighbour: Sandbox) -> None:
    assert sandbox.kill()
    assert lists(anybody, sandbox) == 502
    assert lists(anybody, neighbour, X_Access_Token=token_of(sandbox)) == 401


@pytest.mark.parametrize("sandbox_id", ["", "x", _UNKNOWN, "../x", "i" * 5000, "%00", "*", "local-key"])
def test_guessed_ids(anybody: httpx.Client, sandbox: Sandbox, sandbox_id: str) -> None:
    assert lists(anybody, sandbox, E2b_Sandbox_Id=sandbox_id) in (400, 502)


def test_ids_and_secrets_are_random(admin: httpx.Client, sandbox: Sandbox, neighbour: Sandbox) -> None:
    _, key = make_key(admin)
    assert len(key) >= 40
    for one, other in ((sandbox.sandbox_id, neighbour.sandbox_id), (token_of(sandbox), token_of(neighbour))):
        assert len(one) >= 20
        assert sum(a != b for a, b in zip(one, other, strict=True)) > len(one) // 2


def test_comparing_secrets_takes_no_shorter_for_a_wrong_beginning(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    # Time itself cannot be measured well enough here: what can is that every comparison is the one made for it.
    from glovebox_server.gateway import auth

    compared: list[tuple[bytes, bytes]] = []
    honest = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return honest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    token = token_of(sandbox)
    assert auth.same(token, token)
    assert not auth.same("é" + token, token)
    query = {"path": "a", "username": "", "signature": signatures.sign("a", "read", "", token)}
    assert signatures.matches(query, "GET", token)
    assert not signatures.matches(query | {"signature": "v1_x"}, "GET", token)
    assert len(compared) == 4


# Signed URLs


def signed(sandbox: Sandbox, path: str, operation: str = "read", expires_in_s: int = 60) -> dict[str, str]:
    expiration = str(int(time.time()) + expires_in_s)
    signature = signatures.sign(path, operation, "user", token_of(sandbox), expiration)
    return {"path": path, "username": "user", "signature": signature, "signature_expiration": expiration}


def test_signed_urls_are_for_what_they_say(anybody: httpx.Client, sandbox: Sandbox, neighbour: Sandbox) -> None:
    for box in (sandbox, neighbour):
        box.files.write("mine.txt", "content")
        box.files.write("other.txt", "content")
    query = signed(sandbox, "mine.txt")
    there = hostile_http.to_sandbox(sandbox.sandbox_id, None)
    other = hostile_http.to_sandbox(neighbour.sandbox_id, None)
    assert anybody.get("/files", params=query, headers=there).text == "content"
    assert anybody.get("/files", params=query).text == "content"
    later = str(int(query["signature_expiration"]) + 1)
    altered = (
        {"path": "other.txt"},
        {"path": "./mine.txt"},
        {"username": "root"},
        {"signature_expiration": later},
        {"signature_expiration": "9" * 100},
        {"signature": query["signature"][:-1]},
        {"signature": ""},
        {"signature": "v1_" + secrets.token_urlsafe(32)},
    )
    for change in altered:
        for headers in (there, {}):
            assert anybody.get("/files", params=query | change, headers=headers).status_code == 401, change
    del query["signature_expiration"]
    assert anybody.get("/files", params=query, headers=there).status_code == 401
    query = signed(sandbox, "mine.txt")
    assert anybody.get("/files", params=query, headers=other).status_code == 401
    assert anybody.post("/files", params=query, headers=there, files={"file": b"x"}).status_code == 401
    assert anybody.post("/files", params=query, files={"file": b"x"}).status_code == 401
    for headers in (there, {}):
        expired = signed(sandbox, "mine.txt", expires_in_s=-5)
        assert anybody.get("/files", params=expired, headers=headers).status_code == 401
    assert anybody.post("/process.Process/List", json={}, params=query, headers=there).status_code == 401
    assert sandbox.files.read("mine.txt") == "content"


def test_a_wrong_token_is_not_helped_by_a_signature(anybody: httpx.Client, sandbox: Sandbox) -> None:
    sandbox.files.write("mine.txt", "content")
    wrong = hostile_http.to_sandbox(sandbox.sandbox_id, "wrong")
    assert anybody.get("/files", params=signed(sandbox, "mine.txt"), headers=wrong).status_code == 401


# Where a request goes


def test_a_routing_header_cannot_move_a_named_host(anybody: httpx.Client, sandbox: Sandbox, neighbour: Sandbox) -> None:
    named = f"{hostile_http.ENVD}-{neighbour.sandbox_id}.example.com"
    # Host says the neighbour, the header the sandbox whose token comes along: Host decides.
    assert lists(anybody, sandbox, Host=named) == 401
    assert lists(anybody, neighbour, Host=named, E2b_Sandbox_Id=sandbox.sandbox_id) == 200
    # A host that names no sandbox and is not ours: the header is not believed, and the control plane has no such route.
    assert lists(anybody, sandbox, Host="attacker.example") == 404
    assert lists(anybody, sandbox, Host="localhost.attacker.example") == 404
    assert lists(anybody, sandbox, Host="127.0.0.1.attacker.example") == 404


def test_headers_given_twice(server: servers.Server, sandbox: Sandbox, neighbour: Sandbox) -> None:
    mine, other = (hostile_http.to_sandbox(box.sandbox_id, token_of(box)) for box in (sandbox, neighbour))
    for name in ("E2b-Sandbox-Id", "X-Access-Token"):
        for first, second in ((mine, other), (other, mine)):
            rest = {key: value for key, value in mine.items() if key != name}
            head = hostile_http.request("POST", "/process.Process/List", {"Host": "localhost", **rest})
            lines = f"{name}: {first[name]}\r\n{name}: {second[name]}\r\nContent-Type: application/json\r\n"
            answer = hostile_http.raw(server.url, head.replace(b"\r\n", b"\r\n" + lines.encode(), 1))
            (status,) = hostile_http.statuses(answer)
            # One of the two, whole: never an id of the one with the token of the other.
            assert status == (200 if first is mine else 401)


@pytest.mark.parametrize("path", ["..%2fapi-keys", "%2e%2e/api-keys", "../api-keys", "x%2f..%2f..%2fapi-keys", "%00"])
def test_traversal_in_paths(server: servers.Server, admin: httpx.Client, path: str) -> None:
    _, key = make_key(admin)
    head = hostile_http.request("GET", f"/sandboxes/{path}", {"Host": "localhost", "X-API-KEY": key})
    assert hostile_http.statuses(hostile_http.raw(server.url, head)) in ([404], [400])
    quoted = urllib.parse.quote(f"/sandboxes/{path}", safe="")
    head = hostile_http.request("GET", "/" + quoted, {"Host": "localhost", "X-API-KEY": key})
    assert hostile_http.statuses(hostile_http.raw(server.url, head)) in ([404], [400])


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 60",
        "Transfer-Encoding: xchunked\r\nContent-Length: 6",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: identity, chunked, identity",
        "Content-Length: +6",
        "Content-Length: 0x6",
        "Content-Length: -1",
    ],
)
def test_no_request_hides_in_another(server: servers.Server, headers: str) -> None:
    hidden = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n0\r\n\r\n{hidden}"
    answer = hostile_http.raw(server.url, head.encode(), half_close=True)
    statuses = hostile_http.statuses(answer)
    # Two readings are possible: then none is taken.
    assert 200 not in statuses
    assert b"http_request_duration" not in answer


def test_forwarded_requests_have_one_length(server: servers.Server, sandbox: Sandbox) -> None:
    service = (
        "import socket\n"
        "s=socket.create_server(('127.0.0.1',8099))\n"
        "while True:\n"
        " c,_=s.accept(); d=b''\n"
        " while b'\\r\\n\\r\\n' not in d: d+=c.recv(65536)\n"
        " c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n'%len(d)+d); c.close()\n"
    )
    sandbox.files.write("/tmp/service.py", service)
    sandbox.commands.run("python3 /tmp/service.py", background=True)
    headers = {
        "Host": f"8099-{sandbox.sandbox_id}.example.com",
        "Connection": "X-Hop, close",
        "X-Hop": "1",
        "X-Access-Token": token_of(sandbox),
        "E2b-Sandbox-Id": "x",
    }
    head = hostile_http.request("POST", "/a%0d%0aX:1?q=%0d%0a", headers)

    def answered() -> bytes:
        found = hostile_http.raw(server.url, head)
        return found if b"HTTP/1.1 200" in found else b""

    servers.wait_until(answered, 30)
    seen = answered().partition(b"\r\n\r\n")[2].lower()
    assert seen.count(b"content-length") + seen.count(b"transfer-encoding") == 1
    assert b"x-hop" not in seen
    assert b"e2b-sandbox-id" not in seen
    assert token_of(sandbox).lower().encode() not in seen
    assert b"\r\nx:1" not in seen


def test_other_upgrades_than_websockets_are_refused_in_words(anybody: httpx.Client, sandbox: Sandbox) -> None:
    headers = {"Host": f"8080-{sandbox.sandbox_id}.example.com", "Connection": "Upgrade", "Upgrade": "irc/6.9"}
    answer = anybody.get("/", headers=headers)
    assert answer.status_code == 501
    assert "irc/6.9" in answer.json()["message"]


def test_cors_is_for_sandboxes_only(anybody: httpx.Client, admin: httpx.Client, sandbox: Sandbox) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    there = hostile_http.to_sandbox(sandbox.sandbox_id, None)
    answer = anybody.get("/health", headers=there | origin)
    assert answer.headers["access-control-allow-origin"] == "*"
    # With every origin allowed, a browser must not send along what it keeps.
    assert "access-control-allow-credentials" not in answer.headers
    for client, method, path in (
        (admin, "GET", "/v2/sandboxes"),
        (anybody, "GET", "/v2/sandboxes"),
        (anybody, "GET", "/metrics"),
        (anybody, "OPTIONS", "/v2/sandboxes"),
    ):
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        answer = client.request(method, path, headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]


# What gets into headers and logs


@pytest.mark.parametrize(
    "name", ['a"; filename="b', "a\r\nX-Injected: 1", "a\nb", "é\u202e", "\x1b[31m", "%0d%0aX: 1", ";"]
)
def test_file_names_do_not_break_headers(
    server: servers.Server, anybody: httpx.Client, sandbox: Sandbox, name: str
) -> None:
    there = hostile_http.to_sandbox(sandbox.sandbox_id, token_of(sandbox))
    wrote = anybody.post(
        "/files",
        params={"path": f"/tmp/{name}"},
        content=b"x",
        headers={**there, "Content-Type": "application/octet-stream"},
    )
    assert wrote.status_code == 200
    answer = anybody.get("/files", params={"path": f"/tmp/{name}"}, headers=there)
    assert answer.status_code == 200
    assert "x-injected" not in answer.headers
    disposition = answer.headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert disposition.count('"') in (0, 2)
    assert disposition.count(";") == 1
    assert (answer.headers["x-content-type-options"], answer.headers["content-security-policy"]) == (
        "nosniff",
        "sandbox",
    )


def test_nothing_forges_a_log_line(tmp_path: pathlib.Path) -> None:
    own = servers.Server(tmp_path, log_level="debug")
    own.start()
    try:
        with httpx.Client(base_url=own.url, headers={"X-API-KEY": own.key}, timeout=60) as client:
            _write_everywhere(own, client)
    finally:
        own.stop()
    lines = own.log().splitlines(keepends=False)
    assert own.log().count("\n") == len(lines)  # not even what only some take for a line's end
    events = [json.loads(line)["event"] for line in lines]
    assert "request answered" in events
    assert "forged" not in events
    assert "\x1b" not in own.log()
    trail = own.data_dir / "audit.jsonl"
    records = [json.loads(line) for line in trail.read_text().splitlines()]
    assert "auth.refused" in [record["action"] for record in records]
    assert "\x1b" not in trail.read_text()
    assert audit.verify(trail).problem is None


def _write_everywhere(own: servers.Server, client: httpx.Client) -> None:
    """The forged line, in all that a caller may say."""
    quoted = urllib.parse.quote(_FORGED)
    made = client.post(
        "/v2/sandboxes", json={"templateID": "base", "metadata": {"k": _FORGED}, "envVars": {"X": "\x1b"}}
    )
    assert made.status_code == 201
    box = made.json()
    assert client.post("/v2/sandboxes", json={"templateID": _FORGED}).status_code in (400, 404)
    client.get(f"/sandboxes/{quoted}")
    client.get(f"/{quoted}")
    client.get("/v2/sandboxes", params={"metadata": _FORGED, "nextToken": _FORGED})
    client.post("/api-keys", json={"name": _FORGED, "tenant": _FORGED})
    there = hostile_http.to_sandbox(box["sandboxID"], box["envdAccessToken"])
    client.post("/files", params={"path": f"/tmp/{_FORGED}"}, content=b"x", headers=there)
    start = {"process": {"cmd": _FORGED, "args": [_FORGED]}, "tag": _FORGED}
    stream = {**there, "Content-Type": "application/connect+json"}
    client.post("/process.Process/Start", content=hostile_http.envelope(start), headers=stream)
    client.post("/process.Process/List", json={}, headers={**there, "X-Access-Token": "wrong"})
    client.post(f"/{quoted}", headers=there)
    odd = {"User-Agent": "\x1b[31m\\n", "Host": "localhost", "X-API-KEY": own.key, "E2b-Sandbox-Port": "\x1b[0m"}
    hostile_http.raw(own.url, hostile_http.request("GET", "/v2/sandboxes", odd))
    hostile_http.raw(own.url, b"\x1b[31mnonsense\n{}\n\n", half_close=True)
    hostile_http.raw(own.url, b"G\x1bET / HTTP/1.1\r\nHost: \x1b\r\n\r\n", half_close=True)
    hostile_http.raw(own.url, hostile_http.request("GET", "/", {"Connection": "Upgrade", "Upgrade": "x"}))
    assert client.delete(f"/sandboxes/{box['sandboxID']}").status_code == 204
