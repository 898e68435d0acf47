"""What every process of a sandbox may do, asserted from outside against an exact expected posture."""

import os
import pathlib
import re

from e2b_code_interpreter import Sandbox

from tests.support import posture, servers

#: chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot audit_write setfcap
ALLOWED = 0xA00405FB
FIRST_ID = 0x7000_0000
NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")


def started(sandbox: Sandbox) -> list[posture.Posture]:
    """One of each kind of process: the guest agent, a code context, a command as user, one as root, a terminal."""
    sandbox.run_code("1")
    sandbox.commands.run("sleep 100", background=True).disconnect()
    sandbox.commands.run("sleep 100", background=True, user="root").disconnect()
    # A command is announced when it is forked; what it becomes is to be seen once it has become it.
    servers.wait_until(lambda: _named(sandbox, b"sleep") == 2, 20)
    postures = [posture.read(pid) for pid in posture.pids_of(sandbox.sandbox_id)]
    assert len(postures) >= 4
    return postures


def _named(sandbox: Sandbox, name: bytes) -> int:
    lines = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in posture.pids_of(sandbox.sandbox_id)]
    return len([line for line in lines if line.startswith(name + b"\0")])


def test_no_process_has_an_id_of_the_host(sandbox: Sandbox) -> None:
    for seen in started(sandbox):
        assert all(number >= FIRST_ID for number in (*seen.uids, *seen.gids))


def test_no_process_has_more_capabilities_than_named(sandbox: Sandbox) -> None:
    for seen in started(sandbox):
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert seen.capabilities[name] & ~ALLOWED == 0, name
        assert seen.capabilities["CapInh"] == seen.capabilities["CapAmb"] == 0


def test_every_process_is_filtered(sandbox: Sandbox) -> None:
    for seen in started(sandbox):
        assert (seen.seccomp, seen.filters) == (2, 1)


def test_every_namespace_is_its_own(sandbox: Sandbox, neighbour: Sandbox) -> None:
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    mine = started(sandbox)
    other = posture.read(posture.pids_of(neighbour.sandbox_id)[0])
    for name in NAMESPACES:
        assert len({seen.namespaces[name] for seen in mine}) == 1
        assert mine[0].namespaces[name] not in (host[name], other.namespaces[name]), name


def test_namespaces_belong_to_the_zygote_and_not_to_the_sandbox(sandbox: Sandbox) -> None:
    """Root inside owns its user namespace and nothing else: no mounting, no network configuration, even unfiltered."""
    import fcntl

    get_owner = 0xB701  # NS_GET_USERNS (ioctl_ns(2))
    pid = posture.pids_of(sandbox.sandbox_id)[0]
    own = os.stat(f"/proc/{pid}/ns/user").st_ino
    for name in ("pid", "mnt", "net", "ipc", "uts", "cgroup"):
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        owner = fcntl.ioctl(fd, get_owner)
        assert os.fstat(owner).st_ino != own, name
        os.close(owner)
        os.close(fd)


def test_ids_are_a_range_of_its_own(sandbox: Sandbox, neighbour: Sandbox) -> None:
    ranges = []
    for box in (sandbox, neighbour):
        ((inside, outside, count),) = posture.read(posture.pids_of(box.sandbox_id)[0]).uid_map
        assert inside == 0
        assert outside >= FIRST_ID
        assert count == 65_536
        ranges.append(range(outside, outside + count))
    assert not set(ranges[0]) & set(ranges[1])


def test_no_descriptor_leads_to_the_host(sandbox: Sandbox) -> None:
    harmless = re.compile(r"(pipe|socket|anon_inode):|/dev/(null|pts/\d+|ptmx)$|/home/user|/tmp|/dev/shm|/memfd:")
    for seen in started(sandbox):
        for number, target in seen.descriptors.items():
            assert harmless.match(target), (number, target)


def test_nobody_is_protected_from_the_memory_killer(sandbox: Sandbox) -> None:
    postures = started(sandbox)
    assert postures[0].oom_score_adj == 0
    assert all(seen.oom_score_adj > 0 for seen in postures[1:])


def test_limits_of_every_process(sandbox: Sandbox) -> None:
    for seen in started(sandbox):
        assert seen.limits["Max core file size"].split()[0] == "0"
        assert seen.limits["Max open files"].split()[0] != "unlimited"
        assert seen.limits["Max realtime priority"].split()[0] == "0"


def test_the_zygote_itself_has_no_privilege_on_the_host(sandbox: Sandbox) -> None:
    agent = posture.pids_of(sandbox.sandbox_id)[0]
    parent = re.search(r"PPid:\t(\d+)", pathlib.Path(f"/proc/{agent}/status").read_text())
    assert parent
    seen = posture.read(int(parent[1]))
    assert all(number >= FIRST_ID for number in seen.uids)
    assert seen.namespaces["user"] != os.readlink("/proc/self/ns/user")
    environ = pathlib.Path(f"/proc/{parent[1]}/environ").read_text()
    assert {part.partition("=")[0] for part in environ.split("\0") if part} <= {"PATH", "HOME", "LANG", "LC_ALL"}
