"""The official Python SDK: files, watching, signed URLs, and their mistakes."""

import datetime as dt
import io
import os

import e2b
import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support import servers


@pytest.mark.parametrize("content", ["", "text ✓\n", "x" * 3_000_000])
def test_text_goes_in_and_out(sandbox: Sandbox, content: str) -> None:
    written = sandbox.files.write("notes/a file.txt", content)
    assert written.path == "/home/user/notes/a file.txt"
    assert sandbox.files.read("notes/a file.txt") == content


def test_bytes_and_streams(sandbox: Sandbox) -> None:
    content = os.urandom(5_000_000)
    sandbox.files.write("/tmp/blob", content)
    assert sandbox.files.read("/tmp/blob", format="bytes") == content
    assert b"".join(sandbox.files.read("/tmp/blob", format="stream")) == content
    sandbox.files.write("/tmp/blob2", io.BytesIO(content))
    assert sandbox.files.read("/tmp/blob2", format="bytes") == content
    assert sandbox.files.read("/tmp/blob", format="bytes", gzip=True) == content


def test_many_at_once(sandbox: Sandbox) -> None:
    files = [{"path": f"many/{n}", "data": f"content {n}"} for n in range(20)]
    written = sandbox.files.write_files(files)  # type: ignore[arg-type]
    assert [entry.path for entry in written] == [f"/home/user/many/{n}" for n in range(20)]
    assert sandbox.files.read("many/13") == "content 13"
    assert sandbox.files.write_files([]) == []


def test_owner_mode_and_user(sandbox: Sandbox) -> None:
    sandbox.files.write("owned", "x")
    info = sandbox.files.get_info("owned")
    assert (info.owner, info.group, info.mode, info.permissions) == ("user", "user", 0o644, "-rw-r--r--")
    assert info.size == 1
    assert abs((dt.datetime.now(dt.UTC) - info.modified_time).total_seconds()) < 60
    sandbox.files.write("/etc/by-root", "x", user="root")
    assert sandbox.files.get_info("/etc/by-root").owner == "root"
    sandbox.commands.run("chmod 600 owned")
    sandbox.files.write("owned", "again")
    assert sandbox.files.get_info("owned").mode == 0o600


def test_directories(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("tree/sub/deep") is True
    assert sandbox.files.make_dir("tree/sub") is False
    sandbox.files.write("tree/file1", "1")
    sandbox.files.write("tree/sub/a", "2")
    assert [e.name for e in sandbox.files.list("tree")] == ["file1", "sub"]
    deep = [e.path.removeprefix("/home/user/tree/") for e in sandbox.files.list("tree", depth=3)]
    assert deep == ["file1", "sub", "sub/a", "sub/deep"]
    assert sandbox.files.get_info("tree/sub").type == e2b.FileType.DIR
    with pytest.raises(e2b.InvalidArgumentException):
        sandbox.files.make_dir("tree/file1")
    with pytest.raises(e2b.InvalidArgumentException):
        sandbox.files.list("tree/file1")


def test_exists_rename_remove(sandbox: Sandbox) -> None:
    sandbox.files.write("old", "content")
    renamed = sandbox.files.rename("old", "new/place")
    assert renamed.path == "/home/user/new/place"
    assert not sandbox.files.exists("old")
    assert sandbox.files.exists("new/place")
    sandbox.files.remove("new")
    assert not sandbox.files.exists("new/place")
    sandbox.files.remove("new")


def test_symlinks(sandbox: Sandbox) -> None:
    sandbox.files.write("target", "through")
    sandbox.commands.run("ln -sf target link; ln -sf nowhere dangling")
    info = sandbox.files.get_info("link")
    assert (info.type, info.symlink_target, info.size) == (e2b.FileType.SYMLINK, "/home/user/target", 7)
    assert sandbox.files.read("link") == "through"
    assert "dangling" in [e.name for e in sandbox.files.list(".")]


def test_metadata(sandbox: Sandbox) -> None:
    sandbox.files.write("tagged", "x", metadata={"Color": "blue"})
    assert sandbox.files.get_info("tagged").metadata == {"color": "blue"}
    sandbox.files.write("tagged", "y")
    assert not sandbox.files.get_info("tagged").metadata


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.files.read("/no/such"),
        lambda s: s.files.list("/no/such"),
        lambda s: s.files.get_info("/no/such"),
        lambda s: s.files.rename("/no/such", "/tmp/x"),
        lambda s: s.files.watch_dir("/no/such"),
    ],
)
def test_what_is_not_there_is_file_not_found(sandbox: Sandbox, call: object) -> None:
    with pytest.raises(e2b.FileNotFoundException):
        call(sandbox)  # type: ignore[operator]


def test_a_directory_cannot_be_read_or_overwritten(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("adir")
    with pytest.raises(e2b.InvalidArgumentException, match="directory"):
        sandbox.files.read("adir")
    with pytest.raises(e2b.InvalidArgumentException, match="directory"):
        sandbox.files.write("adir", "x")


def test_pseudo_files_are_delivered(sandbox: Sandbox) -> None:
    boot_id = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    assert len(boot_id.strip()) == 36
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert boot_id.strip() != file.read().strip()


def test_a_full_disk_is_said(sandbox: Sandbox) -> None:
    sandbox.commands.run("fallocate -l 1450M /tmp/filler || true")
    try:
        with pytest.raises(e2b.NotEnoughSpaceException):
            sandbox.files.write("/tmp/too-much", os.urandom(200 * 1024 * 1024))
        assert sandbox.commands.run("echo alive").stdout == "alive\n"
    finally:
        sandbox.commands.run("rm -f /tmp/filler /tmp/too-much")
    sandbox.files.write("/tmp/small", "fits again")


def test_watching(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/new", "x")
    events = [(e.name, e.type) for e in handle.get_new_events()]
    kinds = e2b.FilesystemEventType
    assert events[0] == ("new", kinds.CREATE)
    assert sorted(event[1].value for event in events) == sorted(
        k.value for k in (kinds.CREATE, kinds.CHMOD, kinds.WRITE)
    )
    sandbox.files.make_dir("watched/sub")
    sandbox.files.write("watched/sub/file", "y")
    sandbox.files.rename("watched/new", "watched/renamed")
    sandbox.files.remove("watched/renamed")
    names = {(e.name, e.type) for e in handle.get_new_events()}
    assert ("sub/file", kinds.CREATE) in names
    assert ("new", kinds.RENAME) in names
    assert ("renamed", kinds.REMOVE) in names
    handle.stop()
    with pytest.raises(e2b.SandboxException):
        handle.get_new_events()


def test_signed_urls(server: servers.Server, sandbox: Sandbox) -> None:
    sandbox.files.write("public.txt", "for all to see")
    url = sandbox.download_url("public.txt")
    assert httpx.get(url).text == "for all to see"
    assert httpx.get(url.replace("signature=v1_", "signature=v1_x")).status_code == 401
    assert httpx.get(url.replace("public.txt", "other.txt")).status_code == 401
    expired = sandbox.download_url("public.txt", use_signature_expiration=-10)
    answer = httpx.get(expired)
    assert (answer.status_code, answer.json()) == (401, {"code": 401, "message": "signature is already expired"})
    upload = sandbox.upload_url("by-url.txt", use_signature_expiration=60)
    sent = httpx.post(upload, files={"file": ("by-url.txt", b"sent")})
    assert sent.status_code == 200
    assert sandbox.files.read("by-url.txt") == "sent"
    assert httpx.get(upload).status_code == 401  # a URL for writing does not read


def test_ranges(server: servers.Server, sandbox: Sandbox) -> None:
    sandbox.files.write("ranged", "0123456789")
    answer = httpx.get(sandbox.download_url("ranged"), headers={"Range": "bytes=2-5"})
    assert (answer.status_code, answer.text) == (206, "2345")
    assert answer.headers["content-range"] == "bytes 2-5/10"


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "/proc/1/root/etc/passwd", "/proc/self/root/etc/shadow"])
def test_no_path_leads_to_the_host(sandbox: Sandbox, path: str) -> None:
    with open("/etc/passwd") as file:
        hosts_own = file.read()
    try:
        seen = sandbox.files.read(path, user="root")
    except e2b.SandboxException:
        return
    assert seen != hosts_own
    assert "root:" in seen


async def test_async_files_and_watching(server: servers.Server) -> None:
    made = await AsyncSandbox.create(timeout=60)
    try:
        seen: list[e2b.FilesystemEvent] = []
        await made.files.make_dir("w")
        handle = await made.files.watch_dir("w", on_event=seen.append)
        await made.files.write("w/a", b"\x00\xff")
        assert await made.files.read("w/a", format="bytes") == b"\x00\xff"
        import asyncio

        for _ in range(200):
            if len(seen) >= 3:
                break
            await asyncio.sleep(0.01)
        assert seen[0].type == e2b.FilesystemEventType.CREATE
        await handle.stop()
        assert await made.files.exists("w/a")
        await made.files.remove("w")
        assert not await made.files.exists("w/a")
    finally:
        await made.kill()
