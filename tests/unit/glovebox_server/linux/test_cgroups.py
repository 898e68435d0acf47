"""cgroups, v2 on a fake tree and v1 on a fake tree and on this host."""

import errno
import os
import pathlib
import subprocess

import pytest

from glovebox_server.linux import cgroups
from glovebox_server.model import resources
from tests.support import servers

LIMITS = resources.Resources(cpu_count=1.5, memory_bytes=512 * resources.MIB, pids=64)


class FakeV2(pathlib.PosixPath):
    """A directory tree that answers as cgroup2 does: making a directory makes the control files in it."""

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        super().mkdir(mode, parents, exist_ok)
        enabled = (self.parent / "cgroup.subtree_control").read_text().split()
        files = ["cgroup.procs", "cgroup.subtree_control", "cgroup.freeze", "cgroup.events"]
        for controller, names in {
            "memory": ["memory.max", "memory.swap.max", "memory.current", "memory.stat", "memory.events"],
            "cpu": ["cpu.max", "cpu.stat"],
            "pids": ["pids.max", "pids.current"],
        }.items():
            if f"+{controller}" in enabled:
                files += names
        for name in files:
            (self / name).write_text("")

    def rmdir(self) -> None:
        for child in self.iterdir():
            if child.is_file():
                child.unlink()
        super().rmdir()


@pytest.fixture
def v2_root(tmp_path: pathlib.Path) -> FakeV2:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    return FakeV2(tmp_path)


def test_v2_is_found_by_its_controllers_file(v2_root: FakeV2) -> None:
    found = cgroups.detect("glovebox-x", v2_root)
    assert isinstance(found, cgroups.V2)
    assert found.version == 2


def test_v2_without_a_controller_says_which(v2_root: FakeV2) -> None:
    (v2_root / "cgroup.controllers").write_text("cpu pids\n")
    found = cgroups.detect("glovebox-x", v2_root)
    assert isinstance(found, str)
    assert "memory" in found


def test_v2_passes_controllers_down_and_sets_limits(v2_root: FakeV2) -> None:
    hierarchy = cgroups.V2(v2_root, "glovebox-x")
    group = hierarchy.create("sandboxes", "i1")
    group.limit(LIMITS)
    for folder in (v2_root, v2_root / "glovebox-x", v2_root / "glovebox-x/sandboxes"):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    own = v2_root / "glovebox-x/sandboxes/i1"
    assert (own / "memory.max").read_text() == str(512 * resources.MIB)
    assert (own / "memory.swap.max").read_text() == "0"
    assert (own / "cpu.max").read_text() == "150000 100000"
    assert (own / "pids.max").read_text() == "64"
    assert hierarchy.children("sandboxes") == ["i1"]


def test_v2_a_process_joins_through_an_open_descriptor(v2_root: FakeV2) -> None:
    group = cgroups.V2(v2_root, "glovebox-x").create("i1")
    (fd,) = group.open_join()
    os.write(fd, b"0")
    os.close(fd)
    assert (v2_root / "glovebox-x/i1/cgroup.procs").read_text() == "0"


def test_v2_usage_is_read_from_the_kernels_files(v2_root: FakeV2) -> None:
    group = cgroups.V2(v2_root, "glovebox-x").create("i1")
    own = v2_root / "glovebox-x/i1"
    (own / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (own / "memory.current").write_text("1048576\n")
    (own / "memory.stat").write_text("anon 1\ninactive_file 4096\n")
    (own / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (own / "pids.current").write_text("7\n")
    assert group.usage() == resources.Usage(2.5, 1048576, 4096, 7, 2)


def test_v2_is_frozen_when_the_kernel_says_so_and_not_before(v2_root: FakeV2) -> None:
    group = cgroups.V2(v2_root, "glovebox-x").create("i1")
    own = v2_root / "glovebox-x/i1"
    assert group.can_freeze
    (own / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    group.freeze()
    assert (own / "cgroup.freeze").read_text() == "1"
    assert not group.is_frozen
    (own / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert group.is_frozen
    group.thaw()
    assert (own / "cgroup.freeze").read_text() == "0"


def test_v2_remove_takes_children_first_and_twice(v2_root: FakeV2) -> None:
    hierarchy = cgroups.V2(v2_root, "glovebox-x")
    hierarchy.create("sandboxes", "i1")
    hierarchy.create("sandboxes", "i2")
    hierarchy.group().remove()
    hierarchy.group().remove()
    assert not (v2_root / "glovebox-x").exists()


def test_v1_missing_controllers_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/tasks").write_text("")
    found = cgroups.detect("glovebox-x", tmp_path)
    assert isinstance(found, str)
    assert "cpu" in found
    assert "pids" in found


def test_v1_freezes_by_a_controller_of_its_own(tmp_path: pathlib.Path) -> None:
    group = cgroups.V1(tmp_path, "glovebox-x").create("i1")
    state = tmp_path / "freezer/glovebox-x/i1/freezer.state"
    assert not group.can_freeze  # as one that an earlier version made: to be left alone
    assert not group.is_frozen
    group.thaw()
    state.write_text("THAWED\n")
    assert group.can_freeze
    assert not group.is_frozen
    group.freeze()
    assert state.read_text().startswith("FROZEN")
    assert group.is_frozen
    state.write_text("FREEZING\n")
    assert not group.is_frozen
    group.thaw()
    assert state.read_text().startswith("THAWED")


def test_v1_without_a_freezer_does_all_the_rest(tmp_path: pathlib.Path) -> None:
    for controller in ("memory", "cpu", "cpuacct", "pids"):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "tasks").write_text("")
    hierarchy = cgroups.detect("glovebox-x", tmp_path)
    assert isinstance(hierarchy, cgroups.V1)
    group = hierarchy.create("i1")
    assert len(group.paths) == 4
    assert not group.can_freeze
    assert not group.is_frozen
    group.thaw()
    (tmp_path / "freezer").mkdir()
    (tmp_path / "freezer/tasks").write_text("")
    with_one = cgroups.detect("glovebox-x", tmp_path)
    assert isinstance(with_one, cgroups.V1)
    assert (hierarchy.can_freeze, with_one.can_freeze) == (False, True)
    assert len(with_one.group("i1").paths) == 5


def test_on_this_host_a_process_joins_is_limited_measured_and_removed() -> None:
    hierarchy = cgroups.detect(f"glovebox-test-{os.getpid()}")
    assert not isinstance(hierarchy, str), hierarchy
    group = hierarchy.create("i1")
    try:
        group.limit(LIMITS)
        joins = group.open_join()
        code = (
            "import os, sys\nfor fd in sys.argv[1:]: os.write(int(fd), b'0')\nprint('in', flush=True)\nsys.stdin.read()"
        )
        arguments = ["python3", "-c", code, *map(str, joins)]
        with subprocess.Popen(
            arguments, pass_fds=joins, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            for fd in joins:
                os.close(fd)
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            assert group.pids() == [process.pid]
            assert group.usage().pids == 1
            process.communicate("")
        assert group.pids() == []
    finally:
        servers.wait_until(lambda: removed(hierarchy.group()), 10)
    assert hierarchy.children() == []


def removed(group: cgroups.Group) -> bool:
    try:
        group.remove()
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False
    return True


def test_v1_members_are_those_of_every_tree(tmp_path: pathlib.Path) -> None:
    group = cgroups.V1(tmp_path, "glovebox-x").create("i1")
    for path, members in zip(group.paths, ("7\n8\n", "7\n", "", "9\n", "7\n"), strict=True):
        (path / "cgroup.procs").write_text(members)
    assert group.pids() == [7, 8, 9]
