import os
import pathlib

import pytest

from glovebox_server.images import tree

_ENTRIES = [
    tree.directory("tmp", 0o1777),
    tree.file("etc/sudoers", "user ALL\n", 0o440),
    tree.symlink("etc/mtab", "../proc/self/mounts"),
    tree.directory("home/user", 0o755, 1000),
    tree.file("home/user/.profile", b"\xff", owner=1000),
]


@pytest.fixture
def strict_umask() -> object:
    old = os.umask(0o077)
    yield
    os.umask(old)


def test_what_is_described_is_written(tmp_path: pathlib.Path, strict_umask: object) -> None:
    tree.write(_ENTRIES, tmp_path / "root")

    root = tmp_path / "root"
    modes = {str(p.relative_to(root)): p.lstat().st_mode & 0o7777 for p in root.rglob("*") if not p.is_symlink()}
    assert modes == {
        "tmp": 0o1777, "etc": 0o755, "etc/sudoers": 0o440, "home": 0o755, "home/user": 0o755,
        "home/user/.profile": 0o644,
    }  # fmt: skip
    assert (root / "etc/mtab").readlink() == pathlib.Path("../proc/self/mounts")
    assert (root / "home/user/.profile").read_bytes() == b"\xff"
    owner = 1000 if os.geteuid() == 0 else os.geteuid()
    assert [(root / name).stat().st_uid for name in ("etc", "home", "home/user", "home/user/.profile")] == [
        os.geteuid(), os.geteuid(), owner, owner,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        tree.file("etc/sudoers", "root ALL\n", 0o440),
        tree.file("etc/sudoers", "user ALL\n", 0o444),
        tree.file("etc/sudoers", "user ALL\n", 0o440, owner=1000),
        tree.file("etc/sudo", "user ALL\n", 0o440),
        tree.symlink("etc/sudoers", "user ALL\n"),
    ],
)
def test_any_change_changes_the_digest(changed: tree.Entry) -> None:
    assert tree.digest([*_ENTRIES[:1], changed, *_ENTRIES[2:]]) != tree.digest(_ENTRIES)


def test_the_order_does_not_change_the_digest() -> None:
    assert tree.digest(reversed(_ENTRIES)) == tree.digest(_ENTRIES)


def test_a_clone_shares_files_and_nothing_else(tmp_path: pathlib.Path) -> None:
    tree.write(_ENTRIES, tmp_path / "one")

    tree.clone(tmp_path / "one", tmp_path / "two")

    for path in (tmp_path / "one").rglob("*"):
        ours, theirs = path.lstat(), (tmp_path / "two" / path.relative_to(tmp_path / "one")).lstat()
        assert (ours.st_mode, ours.st_uid, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_uid, theirs.st_mtime_ns)
        assert (ours.st_ino == theirs.st_ino) == (not path.is_dir() or path.is_symlink())
    (tmp_path / "two/etc/new").touch()
    assert not (tmp_path / "one/etc/new").exists()
