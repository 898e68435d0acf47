"""Control groups taken away, also when the kernel lets go of them late."""

import errno
import os
import subprocess

import pytest

from glovebox_server.linux import cgroups
from glovebox_server.model import resources
from glovebox_server.runtimes.namespace import groups


class BusyGroup:
    """A group without members that the kernel still counts as used, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.is_there = True

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


async def test_members_are_killed_and_the_group_is_gone() -> None:
    hierarchy = cgroups.detect(f"glovebox-test-groups-{os.getpid()}")
    assert not isinstance(hierarchy, str), hierarchy
    group = hierarchy.create("i1")
    joins = group.open_join()
    code = "import os, sys\nfor fd in sys.argv[1:]: os.write(int(fd), b'0')\nprint('in', flush=True)\nsys.stdin.read()"
    command = ["python3", "-c", code, *map(str, joins)]
    with subprocess.Popen(command, pass_fds=joins, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for fd in joins:
            os.close(fd)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        await groups.remove(group)
        await groups.remove(group)
        assert process.wait(timeout=10) == -9
    assert hierarchy.children() == []
    await groups.remove(hierarchy.group())
