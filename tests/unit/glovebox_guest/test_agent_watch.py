"""Watching, with a real agent: each change once, in order, under its name; and bounds."""

import asyncio
import os
import pathlib

import pytest

from glovebox_guest import watch, watcher
from tests.support import agent_client

guest = agent_client.guest
Guest = agent_client.Guest
Refused = agent_client.Refused

UPLOAD = ["create", "chmod", "write"]


class Polled:
    def __init__(self, guest: Guest, watcher_id: str) -> None:
        self._guest, self.watcher_id = guest, watcher_id

    async def events(self) -> list[dict[str, object]]:
        return list((await self._guest.call("fs.watcher_events", watcher_id=self.watcher_id))["events"])

    async def changes(self) -> list[tuple[object, object]]:
        return [(event["name"], event["type"]) for event in await self.events()]


async def watched(guest: Guest, path: pathlib.Path, *, recursive: bool = False, include_entry: bool = False) -> Polled:
    answer = await guest.call("fs.watcher_create", path=str(path), recursive=recursive, include_entry=include_entry)
    return Polled(guest, answer["watcher_id"])


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
async def test_an_upload_is_create_chmod_write_whatever_its_size(
    guest: Guest, tmp_path: pathlib.Path, size: int
) -> None:
    one = await watched(guest, tmp_path)
    await guest.write(tmp_path / "f", bytes(size))
    assert await one.changes() == [("f", type_) for type_ in UPLOAD]
    assert await one.changes() == []
    await guest.write(tmp_path / "f", bytes(size))
    assert await one.changes() == [("f", "write")]


async def test_a_cancelled_upload_is_not_seen(guest: Guest, tmp_path: pathlib.Path) -> None:
    one = await watched(guest, tmp_path)
    channel = guest.open("fs.write", path=str(tmp_path / "f"))
    await channel.send(bytes(100))
    await guest.ping()
    channel.cancel()
    with pytest.raises(Refused):
        await channel.rest()
    assert await one.changes() == []


async def test_an_upload_into_a_new_folder_is_seen_whole(guest: Guest, tmp_path: pathlib.Path) -> None:
    one = await watched(guest, tmp_path, recursive=True)
    await guest.write(tmp_path / "a" / "b" / "f", b"x", user="nobody")
    changes = await one.changes()
    assert [change for change in changes if change[0] == "a/b/f"] == [("a/b/f", type_) for type_ in UPLOAD]
    assert [change for change in changes if change[1] == "create"] == [
        *(("a", "create"), ("a/b", "create"), ("a/b/f", "create")),
    ]


async def test_what_programs_do(guest: Guest, tmp_path: pathlib.Path) -> None:
    one = await watched(guest, tmp_path)
    steps = {
        "echo x > f": [("f", "create"), ("f", "write")],
        "echo y >> f": [("f", "write")],
        "chmod 600 f": [("f", "chmod")],
        "mv f g": [("f", "rename"), ("g", "create")],
        "rm g": [("g", "remove")],
        "mkdir d": [("d", "create")],
        "touch d/below": [],
    }
    for command, expected in steps.items():
        await guest.run("sh", "-c", command, cwd=str(tmp_path))
        assert await one.changes() == expected, command


async def test_new_folders_are_watched_at_once(guest: Guest, tmp_path: pathlib.Path) -> None:
    one = await watched(guest, tmp_path, recursive=True)
    for _ in range(5):
        await guest.run("sh", "-c", "mkdir -p a/b/c; echo x > a/b/c/f; touch a/b/g", cwd=str(tmp_path))
        changes = await one.changes()
        created = [name for name, type_ in changes if type_ == "create"]
        assert sorted(map(str, created)) == ["a", "a/b", "a/b/c", "a/b/c/f", "a/b/g"], changes
        assert ("a/b/c/f", "write") in changes
        # They stand now.
        await guest.run("sh", "-c", "echo y >> a/b/c/f; rm -r a", cwd=str(tmp_path))
        changes = await one.changes()
        assert changes[0] == ("a/b/c/f", "write")
        removed = [str(name) for name, type_ in changes if type_ == "remove"]
        assert sorted(removed) == ["a", "a/b", "a/b/c", "a/b/c/f", "a/b/g"]


async def test_folders_that_move_keep_their_right_names(guest: Guest, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in" / "old" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    one = await watched(guest, tmp_path / "in", recursive=True)
    await guest.run("sh", "-c", "mv in/old in/new; touch in/new/deep/f", cwd=str(tmp_path))
    below = [("new/deep/f", "create"), ("new/deep/f", "chmod")]
    assert await one.changes() == [("old", "rename"), ("new", "create"), *below]
    await guest.run("sh", "-c", "touch in/new/deep/g; mv in/new out", cwd=str(tmp_path))
    assert await one.changes() == [("new/deep/g", "create"), ("new/deep/g", "chmod"), ("new", "rename")]
    await guest.run("sh", "-c", "touch out/new/deep/h", cwd=str(tmp_path))
    assert await one.changes() == []
    await guest.run("sh", "-c", "mv out/new in/back", cwd=str(tmp_path))
    assert await one.changes() == [("back", "create")]
    await guest.run("sh", "-c", "echo > in/back/deep/i", cwd=str(tmp_path))
    assert await one.changes() == [("back/deep/i", "create"), ("back/deep/i", "write")]


async def test_links_below_are_not_followed(guest: Guest, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("in")
    # The root may be one.
    one = await watched(guest, tmp_path / "link", recursive=True)
    await guest.run("sh", "-c", "ln -s ../out in/link; touch out/f", cwd=str(tmp_path))
    assert await one.changes() == [("link", "create")]


async def test_the_root_itself(guest: Guest, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    one = await watched(guest, root)
    root.rmdir()
    assert (".", "remove") in await one.changes()
    assert await one.changes() == []


async def test_a_stream_of_changes_with_entries(guest: Guest, tmp_path: pathlib.Path) -> None:
    channel = guest.open("fs.watch", path=str(tmp_path), recursive=True, include_entry=True)
    assert await channel.event() == {"event": "start"}
    await guest.write(tmp_path / "f", b"12345", user="nobody")
    for type_ in UPLOAD:
        event = await channel.event()
        assert (event["event"], event["name"], event["type"]) == ("change", "f", type_)
        assert (event["entry"]["owner"], event["entry"]["size"]) == ("nobody", 5)
    (tmp_path / "f").unlink()
    assert await channel.event() == {"event": "change", "name": "f", "type": "remove"}
    channel.cancel()
    with pytest.raises(Refused, match="canceled"):
        await channel.rest()


async def test_refusals(guest: Guest, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").touch()
    for path, code in [(tmp_path / "no", "not_found"), (tmp_path / "f", "invalid_argument")]:
        for op in ("fs.watch", "fs.watcher_create"):
            with pytest.raises(Refused, match=code):
                await guest.call(op, path=str(path), recursive=False, include_entry=False)
    one = await watched(guest, tmp_path)
    assert await guest.call("fs.watcher_remove", watcher_id=one.watcher_id) == {}
    for op in ("fs.watcher_events", "fs.watcher_remove"):
        with pytest.raises(Refused, match="not_found"):
            await guest.call(op, watcher_id=one.watcher_id)


async def test_the_number_of_watchers_is_bounded(guest: Guest, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Refused, match="resource_exhausted"):
        for _ in range(watch.MAX_WATCHERS + 1):
            await watched(guest, tmp_path)
    await guest.write(tmp_path / "f", b"")
    await guest.ping()


async def test_a_storm_drops_the_oldest_and_holds_nobody_up(guest: Guest, tmp_path: pathlib.Path) -> None:
    one = await watched(guest, tmp_path, recursive=True)
    count = watcher.MAX_QUEUED_CHANGES  # of folders: twice as many changes
    storm = f"import os\nfor i in range({count}): name = f'd{{i}}'; os.mkdir(name); os.rmdir(name)"
    running = asyncio.create_task(guest.run("/usr/bin/python3", "-c", storm, cwd=str(tmp_path)))
    loop = asyncio.get_running_loop()
    slowest = 0.0
    while not running.done():
        started = loop.time()
        await guest.ping()
        slowest = max(slowest, loop.time() - started)
    await running
    assert slowest < 1
    changes = await one.changes()
    assert 0 < len(changes) <= watcher.MAX_QUEUED_CHANGES
    assert changes[-1] == (f"d{count - 1}", "remove")
    await guest.run("sh", "-c", "mkdir last; touch last/f", cwd=str(tmp_path))
    assert ("last/f", "create") in await one.changes()


async def test_watchers_outlive_nothing_they_need(guest: Guest, tmp_path: pathlib.Path) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{guest.process.pid}/fd"))

    await guest.ping()
    before = descriptors()
    for _ in range(3):
        channel = guest.open("fs.watch", path=str(tmp_path), recursive=False, include_entry=False)
        await channel.event()
        channel.cancel()
        with pytest.raises(Refused):
            await channel.rest()
        await guest.call("fs.watcher_remove", watcher_id=(await watched(guest, tmp_path)).watcher_id)
    assert descriptors() == before
