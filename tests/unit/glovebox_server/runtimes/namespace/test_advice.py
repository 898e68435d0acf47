"""What `doctor` says of settings that are the owner's to change."""

import pathlib

import pytest

from glovebox_server.runtimes.namespace import advice

V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate,{} 0 0\ntmpfs /tmp tmpfs rw 0 0\n"


@pytest.fixture
def proc(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "sys/fs/inotify").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "sys/fs/inotify/max_user_instances").write_text("8192\n")
    (tmp_path / "self/mounts").write_text(V2.format("favordynmods"))
    return tmp_path


def test_a_host_that_is_set_up_well_gets_none(proc: pathlib.Path) -> None:
    assert advice.advice(2, proc) == []


def test_few_inotify_instances(proc: pathlib.Path) -> None:
    (proc / "sys/fs/inotify/max_user_instances").write_text("128\n")
    (note,) = advice.advice(2, proc)
    assert "128" in note
    assert "sysctl -w fs.inotify.max_user_instances=8192" in note


@pytest.mark.parametrize(("version", "count"), [(2, 1), (1, 0), (None, 0)])
def test_a_v2_tree_whose_moves_wait(version: int | None, count: int, proc: pathlib.Path) -> None:
    (proc / "self/mounts").write_text(V2.format("relatime"))
    notes = advice.advice(version, proc)
    assert len(notes) == count
    assert all("remount,favordynmods" in note for note in notes)
