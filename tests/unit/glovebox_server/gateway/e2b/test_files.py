import asyncio
import gzip
import resource
import time

import httpx
import pytest

from glovebox import errors
from glovebox_server.gateway.e2b import files, signatures
from tests.support import server


@pytest.fixture
def guest(world, box):
    return world.guest(box["sandboxID"])


async def get(world, box, path="a", **headers):
    # httpx would unpack: what is on the wire counts.
    request = world.client.build_request("GET", "/files", params={"path": path}, headers=server.envd(box, **headers))
    if "Accept-Encoding" not in headers:
        del request.headers["accept-encoding"]
    answer = await world.client.send(request, stream=True)
    data = b"".join([chunk async for chunk in answer.aiter_raw()])
    await answer.aclose()
    return answer, data


async def test_download(world, box, guest):
    guest.files["/home/user/a.html"] = b"<b>" * 100
    answer, data = await get(world, box, "a.html")
    assert data == b"<b>" * 100
    assert answer.headers["content-length"] == "300"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-disposition"] == 'inline; filename="a.html"'
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_empty_file(world, box, guest):
    guest.files["/home/user/a"] = b""
    answer, data = await get(world, box, **{"Accept-Encoding": "gzip"})
    assert (answer.headers["content-length"], data) == ("0", b"")


@pytest.mark.parametrize("size", [5, 500_000])
async def test_gzip(world, box, guest, size):
    guest.files["/home/user/a"] = b"x" * size
    answer, data = await get(world, box, **{"Accept-Encoding": "gzip, deflate"})
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"]
    assert "content-length" not in answer.headers
    assert gzip.decompress(data) == b"x" * size
    answer, data = await get(world, box, **{"Accept-Encoding": "gzip", "Range": "bytes=0-1"})
    assert (answer.status_code, data) == (206, b"xx")
    answer, _ = await get(world, box, **{"Accept-Encoding": "identity;q=0"})
    assert answer.status_code == 406


async def test_pseudo_file(world, box, guest, monkeypatch):
    """What stat says of its size is not so: 4096 for a few bytes, or 0 for many."""
    for path, data in (("/proc/big", b"y" * 200_000), ("/sys/small", b"1\n")):
        guest.files[path] = data
        entry = guest._entry(path)
        monkeypatch.setattr(
            guest,
            "_entry",
            lambda _, entry=entry: type(entry)(**{**vars(entry), "size": 4096 if "sys" in entry.path else 0}),
        )
        _, found = await get(world, box, path)
        assert found == data
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=199990-", 206, 199_990, 200_000),
        ("bytes=-5", 206, 199_995, 200_000),
        ("bytes=5-999999999", 206, 5, 200_000),
        ("bytes=200000-", 416, 0, 0),
        ("bytes=9-5", 200, 0, 200_000),
        ("bytes=0-1,4-5", 200, 0, 200_000),
        ("pages=1", 200, 0, 200_000),
    ],
)
async def test_ranges(world, box, guest, asked, status, start, end):
    guest.files["/home/user/a"] = whole = bytes(range(200)) * 1000
    answer, data = await get(world, box, Range=asked)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */200000"
    else:
        assert data == whole[start:end]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/200000"
        assert answer.headers["content-length"] == str(end - start)


async def test_broken_off_read_is_cut(world, box, guest):
    async def breaking(path, *, user, offset=0, length=None):
        yield type(guest._entry("/home/user"))("a", "file", "/a", 9**6, 0o644, "-rw-r--r--", "user", "user", 0)
        yield b"x" * 100_000
        raise errors.GuestError("internal", "input/output error")

    guest.read_file = breaking
    for coding in ("identity", "gzip"):
        with pytest.raises(httpx.RemoteProtocolError):
            await get(world, box, **{"Accept-Encoding": coding})


async def test_shrinking_file_is_cut(world, box, guest):
    guest.files["/home/user/a"] = b"x" * 200_000
    entry = guest._entry("/home/user/a")
    guest._entry = lambda path: type(entry)(**{**vars(entry), "size": 300_000})
    with pytest.raises(httpx.RemoteProtocolError):
        await get(world, box)


@pytest.mark.parametrize(
    ("params", "status", "message"),
    [
        ({"path": "nope"}, 404, "path '/home/user/nope' does not exist"),
        ({"path": "/home/user"}, 400, "path '/home/user' is a directory"),
        ({"path": "a", "username": "nobody"}, 401, "error looking up user 'nobody'"),
        ({}, 400, "path is missing"),
        ({"path": "a\0"}, 400, "NUL"),
    ],
)
async def test_download_errors(world, box, params, status, message):
    answer = await world.client.get("/files", params=params, headers=server.envd(box))
    assert answer.status_code == answer.json()["code"] == status
    assert message in answer.json()["message"]


async def test_uploads(world, box, guest):
    answer = await world.client.post(
        "/files", params={"path": "p"}, files={"file": ("other", b"1")}, headers=server.envd(box)
    )
    assert answer.json() == [{"name": "p", "path": "/home/user/p", "type": "file"}]
    several = [("file", ("/home/user/b", b"2")), ("file", ("c", b"3" * 200_000)), ("note", ("d", b"no"))]
    answer = await world.client.post("/files", files=several, headers=server.envd(box))
    assert [one["path"] for one in answer.json()] == ["/home/user/b", "/home/user/c"]
    octets = server.envd(box, **{"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"})
    await world.client.post("/files?path=e", content=gzip.compress(b"4" * 300_000), headers=octets)
    assert guest.files == {
        "/home/user/p": b"1",
        "/home/user/b": b"2",
        "/home/user/c": b"3" * 200_000,
        "/home/user/e": b"4" * 300_000,
    }


async def test_part_without_a_file_name(world, box, guest):
    body = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nhi\r\n--x--\r\n'
    headers = server.envd(box, **{"Content-Type": "multipart/form-data; boundary=x"})
    answer = await world.client.post("/files?path=f", content=body, headers=headers)
    assert answer.json() == [{"name": "f", "path": "/home/user/f", "type": "file"}]
    assert guest.files["/home/user/f"] == b"hi"
    assert (await world.client.post("/files", content=body, headers=headers)).status_code == 400


async def test_metadata(world, box, guest):
    headers = server.envd(box, **{"X-Metadata-Kind": "Test"})
    answer = await world.client.post("/files?path=m", files={"file": b"x"}, headers=headers)
    assert answer.json()[0]["metadata"] == {"kind": "Test"}
    assert guest.metadata["/home/user/m"] == {"kind": "Test"}
    for name, value in (
        ("X-Metadata-" + "k" * 247, "v"),
        ("X-Metadata-k", "v" * 4096),
        ("X-Metadata-k", b"\xe9"),
        ("X-Metadata-", "v"),
    ):
        answer = await world.client.post(
            "/files?path=m", files={"file": b"x"}, headers=server.envd(box, **{name: value})
        )
        assert answer.status_code == 400


@pytest.mark.parametrize(
    ("content", "extra", "status"),
    [
        (b"--x\r\nA: b\r\n\r\nnot a file, never ends", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        (b"nonsense", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        (b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 400),  # no file in it
        (
            b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nhi',
            {"Content-Type": "multipart/form-data; boundary=x"},
            400,
        ),
        (b"", {"Content-Type": "multipart/form-data"}, 400),
        (b"x", {"Content-Type": "text/plain"}, 400),
        (b"x", {}, 400),
        (b"x", {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}, 400),
        (
            gzip.compress(b"x" * 9999)[:-9],
            {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"},
            400,
        ),
        (b"x", {"Content-Type": "application/octet-stream", "Content-Encoding": "br"}, 400),
    ],
)
async def test_bad_uploads(world, box, guest, content, extra, status):
    answer = await world.client.post("/files?path=a", content=content, headers=server.envd(box, **extra))
    assert answer.status_code == status, answer.text
    assert guest.files == {}


async def test_upload_errors(world, box):
    twice = [("file", ("a", b"1")), ("file", ("/home/user/a", b"2"))]
    assert (await world.client.post("/files", files=twice, headers=server.envd(box))).status_code == 400
    for path, status in (("/home/user", 400), ("/full/x", 507)):
        answer = await world.client.post(
            "/files", params={"path": path}, files={"file": b"x"}, headers=server.envd(box)
        )
        assert answer.status_code == answer.json()["code"] == status


async def test_signed_urls(world, box, guest):
    guest.files["/home/user/a"] = b"signed"
    token = box["envdAccessToken"]
    soon, past = str(int(time.time()) + 60), str(int(time.time()) - 60)

    def query(expiration=None, operation="read"):
        found = {"path": "a", "signature": signatures.sign("a", operation, "", token, expiration)}
        return found | ({"signature_expiration": expiration} if expiration else {})

    assert (await world.client.get("/files", params=query())).content == b"signed"
    assert (await world.client.get("/files", params=query(soon))).content == b"signed"
    expired = await world.client.get("/files", params=query(past))
    assert (expired.status_code, expired.json()) == (401, {"code": 401, "message": "signature is already expired"})
    assert (await world.client.get("/files", params=query(operation="write"))).status_code == 401
    written = await world.client.post("/files", params=query(operation="write"), files={"file": b"new"})
    assert written.status_code == 200
    named = {"Host": f"49983-{box['sandboxID']}.example.com"}
    missing = await world.client.get("/files?path=a", headers=named)
    assert missing.json() == {"code": 401, "message": "missing signature query parameter"}
    assert (await world.client.get("/files", params=query(), headers=named)).content == b"new"
    wrong = await world.client.get("/files", params=query(), headers={**named, "X-Access-Token": "x"})
    assert wrong.status_code == 401


async def test_big_ones_are_not_kept(world, box, guest):
    """128 MiB up and down, through a guest that keeps nothing either."""
    size, chunk = 128 * 2**20, b"z" * 65536

    async def swallow(path, content, *, user, metadata):
        seen = 0
        async for one in content:
            seen += len(one)
        assert seen == size
        guest.files["/home/user/big"] = b""
        return guest._entry("/home/user/big")

    async def pour(path, *, user, offset=0, length=None):
        yield type(guest._entry("/home/user"))(
            "big", "file", "/home/user/big", size, 0o644, "-rw-r--r--", "user", "user", 0
        )
        for _ in range(size // len(chunk)):
            yield chunk

    async def body():
        for _ in range(size // len(chunk)):
            yield chunk

    guest.write_file, guest.read_file = swallow, pour
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    octets = server.envd(box, **{"Content-Type": "application/octet-stream"})
    assert (await world.client.post("/files?path=big", content=body(), headers=octets)).status_code == 200
    async with world.client.stream(
        "GET", "/files?path=big", headers=server.envd(box, **{"Accept-Encoding": "identity"})
    ) as answer:
        assert sum([len(one) async for one in answer.aiter_raw()]) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


async def test_leaving_stops_a_download(world, box, guest):
    closed = asyncio.Event()

    async def endless(path, *, user, offset=0, length=None):
        yield guest._entry("/home/user")
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    guest.read_file = endless
    async with world.client.stream("GET", "/files?path=a", headers=server.envd(box)) as answer:
        await anext(answer.aiter_raw())
    await asyncio.wait_for(closed.wait(), 10)


def test_names_break_no_header():
    for name in ('a"b', "a\r\nSet-Cookie: x", "ü", "\ud800", "a;b"):
        assert files.disposition(name).isascii()
        assert not set(files.disposition(name)) & set('\r\n"')
    assert files.content_type("a.tar.gz") == "application/octet-stream"
    assert files.content_type("noext") == "application/octet-stream"
