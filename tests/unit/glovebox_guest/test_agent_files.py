"""Files, with a real agent: what entries say, what is made and for whom, and what refuses to go wrong."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from glovebox_guest import uploads
from tests.support import agent_client

guest = agent_client.guest
Guest = agent_client.Guest
Refused = agent_client.Refused


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A folder that `nobody` can reach, on a file system that keeps attributes."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="glovebox-files-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def listed(guest: Guest, path: object, depth: int = 1, **params: object) -> list[str]:
    _, events, _ = await guest.open("fs.list", path=str(path), depth=depth, **params).rest()
    return [entry["path"] for event in events for entry in event["entries"]]


async def refusal(guest: Guest, op: str, **params: object) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        await guest.call(op, **params)
    return refused.value.code, refused.value.message


async def test_entries(guest: Guest, folder: pathlib.Path) -> None:
    file = folder / "f"
    file.write_bytes(b"12345")
    file.chmod(0o640)
    os.setxattr(file, "user.e2b.key", b"value")
    os.setxattr(file, "user.other", b"hidden")
    os.chown(file, 65534, 65534)
    entry = (await guest.call("fs.stat", path=str(file)))["entry"]
    assert entry.pop("mtime_ns") == file.stat().st_mtime_ns
    group = entry.pop("group")
    assert group == "nogroup"
    assert entry == {
        "name": "f",
        "type": "file",
        "path": str(file),
        "size": 5,
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "owner": "nobody",
        "is_symlink": False,
        "metadata": {"key": "value"},
    }
    assert (await guest.call("fs.stat", path=str(folder)))["entry"]["permissions"] == "drwxr-xr-x"
    assert (await guest.call("fs.stat", path="/dev/null"))["entry"]["type"] == "other"


async def test_entries_of_links(guest: Guest, folder: pathlib.Path) -> None:
    (folder / "f").write_bytes(b"12345")
    (folder / "d").mkdir()
    for name, target in [("to_f", "f"), ("to_d", "d"), ("to_to_f", "to_f"), ("gone", "nowhere"), ("loop", "loop")]:
        (folder / name).symlink_to(target)
    seen = {}
    for name in ("to_f", "to_d", "to_to_f", "gone", "loop"):
        entry = (await guest.call("fs.stat", path=str(folder / name)))["entry"]
        assert entry["is_symlink"]
        seen[name] = (entry["type"], entry["symlink_target"])
    assert seen["to_f"] == seen["to_to_f"] == ("file", str(folder / "f"))
    assert seen["to_d"] == ("directory", str(folder / "d"))
    assert seen["gone"] == ("symlink", str(folder / "nowhere"))
    assert seen["loop"][0] == "symlink"


async def test_paths_are_relative_to_the_home_or_the_workdir(guest: Guest, folder: pathlib.Path) -> None:
    assert (await guest.call("fs.stat", path="~"))["entry"]["path"] == "/root"
    assert (await guest.call("fs.stat", path=""))["entry"]["path"] == "/root"
    await guest.call("sandbox.configure", env={}, default_workdir=str(folder))
    await guest.write("a/../b", b"x")
    assert (folder / "b").read_bytes() == b"x"
    assert (await guest.call("fs.stat", path="~/b"))["entry"]["path"] == str(folder / "b")
    assert (await refusal(guest, "fs.stat", path="~nobody/x"))[0] == "invalid_argument"


async def test_list_is_preorder_and_ascending(guest: Guest, folder: pathlib.Path) -> None:
    for name in ("sub2/z", "sub1/deep/er", "sub1/b", "sub1/a", "file1", "A"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "link").symlink_to("sub1")

    def names(paths: list[str]) -> list[str]:
        return [os.path.relpath(path, folder) for path in paths]

    assert names(await listed(guest, folder)) == ["A", "file1", "link", "sub1", "sub2"]
    assert names(await listed(guest, folder, 2)) == [
        *("A", "file1", "link", "sub1", "sub1/a", "sub1/b", "sub1/deep", "sub2", "sub2/z")
    ]
    assert "sub1/deep/er" in names(await listed(guest, folder, 9))
    # The root keeps the prefix that was asked for.
    assert await listed(guest, folder / "link") == [str(folder / "link" / name) for name in ("a", "b", "deep")]
    assert (await refusal(guest, "fs.list", path=str(folder), depth=0))[0] == "invalid_argument"
    assert await refusal(guest, "fs.list", path="/no", depth=1) == ("not_found", "path '/no' does not exist")
    file = str(folder / "file1")
    assert await refusal(guest, "fs.list", path=file, depth=1) == (
        "invalid_argument",
        f"path '{file}' is not a directory",
    )


async def test_long_lists_are_sorted_and_do_not_hold_others_up(guest: Guest, folder: pathlib.Path) -> None:
    names = [f"{number * 7919 % 20_000:05}" for number in range(20_000)]
    for name in names:
        (folder / name).touch()
    channel = guest.open("fs.list", path=str(folder), depth=1)
    listing = asyncio.create_task(channel.rest())
    pings = 0
    while not listing.done():
        await guest.ping()
        pings += 1
    _, events, _ = await listing
    assert [entry["name"] for event in events for entry in event["entries"]] == sorted(names)
    assert pings > 3
    await guest.call("fs.remove", path=str(folder))
    assert not folder.exists()


async def test_names_that_are_no_text(guest: Guest, folder: pathlib.Path) -> None:
    raw = os.fsencode(folder) + b"/\xff\n"
    with open(raw, "wb") as file:
        file.write(b"x")
    (path,) = await listed(guest, folder)
    assert path == f"{folder}/?\n"  # shown so: what is no text has no other way through JSON
    assert (await refusal(guest, "fs.stat", path="a\0"))[0] == "invalid_argument"
    assert (await refusal(guest, "fs.stat", path="/" + "x" * 5000))[0] == "invalid_argument"


async def test_make_dir(guest: Guest, folder: pathlib.Path) -> None:
    made = folder / "a" / "b"
    entry = (await guest.call("fs.make_dir", path=str(made), user="nobody"))["entry"]
    assert (entry["type"], entry["owner"], entry["mode"]) == ("directory", "nobody", 0o755)
    assert made.parent.stat().st_uid == 65534
    assert folder.stat().st_uid == 0
    assert await refusal(guest, "fs.make_dir", path=str(made)) == ("already_exists", f"path '{made}' already exists")
    (folder / "file").touch()
    assert (await refusal(guest, "fs.make_dir", path=str(folder / "file")))[0] == "invalid_argument"
    assert (await refusal(guest, "fs.make_dir", path=str(folder / "file" / "x")))[0] == "invalid_argument"


async def test_move(guest: Guest, folder: pathlib.Path) -> None:
    await guest.write(folder / "a", b"x", metadata={"k": "v"})
    entry = (await guest.call("fs.move", source=str(folder / "a"), destination=str(folder / "new" / "b")))["entry"]
    assert (entry["path"], entry["metadata"]) == (str(folder / "new" / "b"), {"k": "v"})
    assert not (folder / "a").exists()
    source, destination = str(folder / "a"), str(folder / "c")
    assert (await refusal(guest, "fs.move", source=source, destination=destination)) == (
        *("not_found", f"path '{source}' does not exist"),
    )
    assert (await refusal(guest, "fs.move", source=str(folder), destination=str(folder / "in")))[
        0
    ] == "invalid_argument"


async def test_move_to_another_file_system(guest: Guest, folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert os.stat(other).st_dev != folder.stat().st_dev
        tree = folder / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "sub" / "f").write_bytes(b"x" * 3_000_000)
        (tree / "sub" / "f").chmod(0o604)
        os.chown(tree / "sub" / "f", 65534, 65534)
        (tree / "link").symlink_to("sub/f")
        os.mkfifo(tree / "fifo")
        os.utime(tree / "sub", (1, 2))
        await guest.call("fs.move", source=str(tree), destination=f"{other}/moved")
        assert not tree.exists()
        moved = pathlib.Path(other, "moved")
        status = (moved / "sub" / "f").stat()
        assert (status.st_size, status.st_mode & 0o777, status.st_uid) == (3_000_000, 0o604, 65534)
        assert (moved / "sub").stat().st_mtime == 2
        assert os.readlink(moved / "link") == "sub/f"
        assert stat.S_ISFIFO((moved / "fifo").stat().st_mode)


async def test_remove(guest: Guest, folder: pathlib.Path) -> None:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = folder / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "f").touch()
    (tree / "a" / "b" / "link").symlink_to(outside)
    for path in (tree, tree, tree / "missing", outside / "kept" / "below"):
        assert await guest.call("fs.remove", path=str(path)) == {}
    assert not tree.exists()
    assert (outside / "kept").exists()
    (folder / "link").symlink_to(outside)
    await guest.call("fs.remove", path=str(folder / "link"))
    assert (outside / "kept").exists()
    assert (await refusal(guest, "fs.remove", path="/"))[0] == "invalid_argument"


async def test_remove_what_is_deeper_than_any_path(guest: Guest, folder: pathlib.Path) -> None:
    step = "os.mkdir('d' * 20); os.chdir('d' * 20)"
    script = f"import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(3000):\n {step}\nopen('f', 'w')"
    subprocess.run(["/usr/bin/python3", "-c", script, str(folder)], check=True)
    await guest.call("fs.remove", path=str(folder))
    assert not folder.exists()


async def test_remove_while_others_write(guest: Guest, folder: pathlib.Path) -> None:
    # Somebody who makes directories as fast as they go: removal either wins or says why not, and always ends.
    script = "while :; do mkdir -p x/y; touch x/y/$((i=i+1)); done 2>/dev/null"
    channel = guest.open("process.start", argv=["sh", "-c", script], cwd=str(folder))
    pid = (await channel.event())["pid"]
    for _ in range(20):
        try:
            await guest.call("fs.remove", path=str(folder / "x"))
        except Refused as refused:
            assert refused.code == "failed_precondition"
    await guest.call("process.signal", pid=pid, signal=9)


async def test_write_new_files(guest: Guest, folder: pathlib.Path) -> None:
    path = folder / "new" / "er" / "f"
    entry = await guest.write(path, b"content", user="nobody", metadata={"author": "me"})
    assert (entry["mode"], entry["owner"], entry["size"], entry["metadata"]) == (0o644, "nobody", 7, {"author": "me"})
    assert path.read_bytes() == b"content"
    assert path.parent.stat().st_uid == 65534
    assert (await guest.write(folder / "empty", b"", mode=0o600))["mode"] == 0o600
    assert sorted(os.listdir(folder)) == ["empty", "new"]
    content = os.urandom(5_000_000)
    await guest.write(folder / "big", content)
    assert (folder / "big").read_bytes() == content
    assert await guest.read(folder / "big") == content


async def test_overwriting_keeps_owner_and_mode_and_replaces_metadata(guest: Guest, folder: pathlib.Path) -> None:
    path = folder / "f"
    await guest.write(path, b"a longer one", user="nobody", metadata={"a": "1"})
    path.chmod(0o600)
    os.setxattr(path, "user.mine", b"stays")
    entry = await guest.write(path, b"short", metadata={"b": "2"})
    assert (entry["owner"], entry["mode"], entry["metadata"], path.read_bytes()) == (
        "nobody",
        0o600,
        {"b": "2"},
        b"short",
    )
    assert os.getxattr(path, "user.mine") == b"stays"
    assert (await guest.write(path, b""))["metadata"] == {}


async def test_setuid_does_not_survive_other_content(guest: Guest, folder: pathlib.Path) -> None:
    path = folder / "f"
    path.touch()
    path.chmod(0o6755)
    await guest.write(path, b"#!")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


async def test_writing_through_links_keeps_them(guest: Guest, folder: pathlib.Path) -> None:
    (folder / "real").write_text("old")
    (folder / "link").symlink_to("real")
    (folder / "dangling").symlink_to("sub/new")
    await guest.write(folder / "link", b"new")
    await guest.write(folder / "dangling", b"new")
    assert os.readlink(folder / "link") == "real"
    assert (folder / "real").read_text() == (folder / "sub" / "new").read_text() == "new"


async def test_a_cancelled_write_leaves_what_was_there(guest: Guest, folder: pathlib.Path) -> None:
    (folder / "old").write_text("old")
    for name in ("old", "new"):
        channel = guest.open("fs.write", path=str(folder / name))
        await channel.send(b"x" * 200_000)
        await guest.ping()
        # Until then it is beside, out of sight of the listing.
        assert any(one.startswith(uploads.TEMPORARY_PREFIX) for one in os.listdir(folder))
        assert await listed(guest, folder) == [str(folder / "old")]
        channel.cancel()
        with pytest.raises(Refused, match="canceled"):
            await channel.rest()
    assert os.listdir(folder) == ["old"]
    assert (folder / "old").read_text() == "old"


async def test_a_lost_link_leaves_what_was_there(folder: pathlib.Path) -> None:
    async with agent_client.running() as one:
        channel = one.open("fs.write", path=str(folder / "f"))
        await channel.send(b"x")
        await one.ping()
    assert os.listdir(folder) == []


async def test_writes_that_are_refused(guest: Guest, folder: pathlib.Path) -> None:
    assert (await refusal(guest, "fs.write", path=str(folder))) == (
        *("invalid_argument", f"path '{folder}' is a directory"),
    )
    (folder / "file").touch()
    assert (await refusal(guest, "fs.write", path=str(folder / "file" / "x")))[0] == "invalid_argument"
    (folder / "loop").symlink_to("loop")
    assert (await refusal(guest, "fs.write", path=str(folder / "loop")))[0] == "invalid_argument"
    assert (await refusal(guest, "fs.write", path=str(folder / "f"), metadata={"k": "x" * 20_000}))[
        0
    ] == "invalid_argument"
    assert (await refusal(guest, "fs.write", path=str(folder / "f"), user="who"))[0] == "unauthenticated"
    assert sorted(os.listdir(folder)) == ["file", "loop"]


async def test_a_full_disk_is_no_space_and_leaves_nothing(guest: Guest, folder: pathlib.Path) -> None:
    mount = folder / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=True)
    try:
        (mount / "old").write_text("old")
        channel = guest.open("fs.write", path=str(mount / "old"))
        with pytest.raises(Refused) as refused:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(channel.send(b"x" * 3_000_000), 1)
            await channel.rest()
        assert refused.value.code == "no_space"
        assert (mount / "old").read_text() == "old"
        assert os.listdir(mount) == ["old"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


async def test_a_mounted_file_is_written_in_place(guest: Guest, folder: pathlib.Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_text("something longer")
    target.touch()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        await guest.write(target, b"new", metadata={"a": "b"})
        assert source.read_text() == "new"
        assert sorted(os.listdir(folder)) == ["source", "target"]
    finally:
        subprocess.run(["umount", str(target)], check=True)


async def test_proc_is_read_and_written(guest: Guest) -> None:
    assert (
        await guest.read("/proc/sys/kernel/random/boot_id")
        == pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes()
    )
    assert (await guest.read("/proc/self/comm")).startswith(b"python")
    await guest.write("/proc/self/comm", b"renamed")
    assert await guest.read("/proc/self/comm") == b"renamed\n"


async def test_nothing_waits_for_a_fifo_or_a_device(guest: Guest, folder: pathlib.Path) -> None:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, pathlib.Path("/dev/zero"), pathlib.Path("/dev/null")):
        assert (await refusal(guest, "fs.read", path=str(path)))[0] == "invalid_argument"
    assert (await refusal(guest, "fs.write", path=str(fifo)))[0] == "failed_precondition"
    await guest.write("/dev/null", b"x" * 1_000_000)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    channel = guest.open("fs.write", path=str(fifo))
    await channel.send(b"x" * 100_000)
    await guest.ping()
    channel.cancel()
    with pytest.raises(Refused, match="canceled"):
        await channel.rest()
    os.close(reader)


async def test_reading_parts(guest: Guest, folder: pathlib.Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    assert await guest.read(folder / "f", offset=3) == b"3456789"
    assert await guest.read(folder / "f", offset=3, length=2) == b"34"
    assert await guest.read(folder / "f", offset=100) == b""
    assert await guest.read(folder / "f", length=0) == b""
    channel = guest.open("fs.read", path=str(folder / "f"))
    assert (await channel.event())["entry"]["size"] == 10
    assert await refusal(guest, "fs.read", path=str(folder)) == ("invalid_argument", f"path '{folder}' is a directory")
    assert (await refusal(guest, "fs.read", path="/no"))[0] == "not_found"
    assert (await refusal(guest, "fs.read", path="/no", offset=-1))[0] == "invalid_argument"
