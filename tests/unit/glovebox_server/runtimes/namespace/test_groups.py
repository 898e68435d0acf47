"""Control groups taken away, also when the kernel lets go of them late."""

import contextlib
import errno
import os
import pathlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from glovebox import errors
from glovebox_server.linux import cgroups
from glovebox_server.model import resources
from glovebox_server.runtimes.namespace import groups


class BusyGroup:
    """A group without members that the kernel still counts as used, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.is_there = True
        self.can_freeze = True
        self.is_frozen = False
        self.slow = 0  # how often the kernel must be asked until all stands still

    def freeze(self) -> None:
        self.is_frozen = self.slow <= 0
        self.slow -= 1

    def thaw(self) -> None:
        self.is_frozen = False

    def limit(self, limits: resources.Resources) -> None: ...

    def open_join(self) -> list[int]:
        return []

    def pids(self) -> list[int]:
        return []

    def usage(self) -> resources.Usage:
        return resources.Usage(0, 0, 0, 0, 0)

    def remove(self) -> None:
        if self.left:
            self.left -= 1
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.is_there = False


async def test_a_group_that_is_busy_for_a_while_is_removed() -> None:
    group = BusyGroup(20)
    await groups.remove(group)
    assert not group.is_there


async def test_one_that_stays_busy_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_TIMEOUT_S", 0.05)
    group = BusyGroup(1_000_000)
    with pytest.raises(OSError, match="busy"):
        await groups.remove(group)
    assert group.is_there


async def test_another_error_is_not_waited_for() -> None:
    class Forbidden(BusyGroup):
        def remove(self) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    with pytest.raises(PermissionError):
        await groups.remove(Forbidden(0))


async def test_frozen_when_all_stands_still() -> None:
    group = BusyGroup(0)
    group.slow = 10
    await groups.freeze(group, lambda: False)
    assert group.is_frozen
    assert group.slow < 0


async def test_one_that_does_not_stand_still_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_FREEZE_TIMEOUT_S", 0.05)
    group = BusyGroup(0)
    group.slow = 1_000_000
    with pytest.raises(errors.CapacityError, match="did not stand still"):
        await groups.freeze(group, lambda: False)
    assert not group.is_frozen


async def test_one_that_is_to_end_is_frozen_no_more() -> None:
    group = BusyGroup(0)
    group.slow = 1_000_000
    await groups.freeze(group, lambda: group.slow < 999_995)
    assert not group.is_frozen


@contextlib.contextmanager
def member(group: cgroups.Group, code: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of this group that runs `code` once it has said that it is in."""
    joins = group.open_join()
    joining = "import os, sys\nfor fd in sys.argv[1:]: os.write(int(fd), b'0')\nprint('in', flush=True)\n"
    command = ["python3", "-c", joining + code, *map(str, joins)]
    with subprocess.Popen(command, pass_fds=joins, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for fd in joins:
            os.close(fd)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        yield process


@pytest.fixture
async def hierarchy() -> AsyncIterator[cgroups.Hierarchy]:
    found = cgroups.detect(f"glovebox-test-groups-{os.getpid()}")
    assert not isinstance(found, str), found
    yield found
    await groups.remove(found.group())
    assert found.children() == []


async def test_members_are_killed_and_the_group_is_gone(hierarchy: cgroups.Hierarchy) -> None:
    group = hierarchy.create("i1")
    with member(group, "sys.stdin.read()") as process:
        await groups.remove(group)
        await groups.remove(group)
        assert process.wait(timeout=10) == -9
    assert hierarchy.children() == []


@pytest.mark.parametrize("way", ["remove", "let_die"])
async def test_frozen_members_are_killed_too_and_never_run_again(
    hierarchy: cgroups.Hierarchy, tmp_path: pathlib.Path, way: str
) -> None:
    group = hierarchy.create("i1")
    path = tmp_path / "count"
    code = f"fd = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT)\n"
    code += "n = 0\nwhile True:\n    n += 1\n    os.pwrite(fd, b'%20d' % n, 0)"
    with member(group, code) as process:
        await groups.freeze(group, lambda: False)
        assert group.is_frozen
        frozen_at = path.read_bytes()
        if way == "let_die":
            groups.let_die(group)
        else:
            await groups.remove(group)
        assert process.wait(timeout=10) == -9
    await groups.remove(group)
    assert path.read_bytes() == frozen_at
    assert hierarchy.children() == []
