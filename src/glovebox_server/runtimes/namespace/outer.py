"""Starts a zygote: makes the outer namespaces, shows the template's root read-only in them, and becomes the template's Python.

Run as a program by `zygotes.py`, with one JSON argument (`Plan`) and inherited descriptors. Three processes, each for one step
that the one before cannot take:

    launcher ── fork ──▶ outer ── fork ──▶ zygote
    (the server's rights)  enters a new       process 1 of a new pid namespace: builds its view of the
    writes outer's id maps user namespace,     template, pivots into it, becomes the template's Python
    reports zygote's pid   then all the others

What comes out holds no privilege on the host at all: it is root in a user namespace whose ids are a range that is
nobody's on the host (docs/decisions/0002).
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import stat
import subprocess
import sys

from glovebox_server.linux import syscalls

#: The device nodes that a sandbox sees. Here bound from the host, for a user namespace cannot make any; where the server may,
#: it gives each sandbox its own (devices.py).
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEV_FOLDERS = ("pts", "shm")
DEV_LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
#: Where the view is put together: a directory that every host has and everybody can reach. In our own mount namespace.
_VIEW = "/tmp"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the launcher is told."""

    layers: list[tuple[str, str]]  # source on the host, target inside; the first is the root
    layer_fds: list[int]  # detached mounts of these; empty where the server may not make any, but may reach the paths
    python: str
    archive: str
    path: str
    warm_modules: list[str]
    uid_map: str  # lines for the outer user namespace (user_namespaces(7))
    gid_map: str
    map_with_helpers: bool  # newuidmap(1) and newgidmap(1), for those who are not root
    control_fd: int  # the zygote's listening control socket
    keep_fds: list[int]  # the lock that holds the id range: open for as long as the zygote lives
    join_fds: list[int]  # cgroup files that the launcher joins


def main() -> None:
    """The launcher."""
    raw = json.loads(sys.argv[1])
    plan = Plan(**raw)
    for fd in plan.join_fds:
        os.write(fd, b"0")
        os.close(fd)
    _be_killable()
    os.setsid()
    told_r, told_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    outer = os.fork()
    if outer == 0:
        os.close(told_r)
        os.close(mapped_w)
        _outer(plan, told_w, mapped_r)
    os.close(told_w)
    os.close(mapped_r)
    if os.read(told_r, 1) == b"u":
        _write_maps(plan, outer)
        os.write(mapped_w, b"m")
    report = b""
    while chunk := os.read(told_r, 4096):
        report += chunk
    os.waitpid(outer, 0)
    sys.stdout.write(report.decode() or json.dumps({"error": "the outer namespaces could not be made"}))


def _be_killable() -> None:
    # A server that is protected from the out-of-memory killer must not pass that on to what runs strangers' code.
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            if int(file.read()) < 0:
                file.seek(0)
                file.write("0")
    except PermissionError:
        pass  # only the privileged may lower it, so it can only have been inherited as 0 or more


def _be_nobody(plan: Plan) -> None:
    """As root: be the first id of our window before the user namespace is made, for that is whom the kernel charges.

    Else inotify instances and the like of all sandboxes would be counted as the host's root's, who would run out of them.
    """
    if plan.map_with_helpers:
        return
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK):
        # These become limits of the namespace as a whole; each sandbox has its own below it (jail.py).
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            continue  # without CAP_SYS_RESOURCE: the server's own limits go for all of its sandboxes together
    # Keeps the capabilities over the change of ids: some kernels want them for making a user namespace.
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, syscalls.SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    first_gid, first_uid = int(plan.gid_map.split()[1]), int(plan.uid_map.split()[1])
    os.setresgid(first_gid, first_gid, first_gid)
    os.setresuid(first_uid, first_uid, first_uid)


def _write_maps(plan: Plan, pid: int) -> None:
    if plan.map_with_helpers:
        for program, ids in (("newuidmap", plan.uid_map), ("newgidmap", plan.gid_map)):
            subprocess.run([program, str(pid), *ids.split()], check=True)
        return
    # Safety: the ranges come from `ids.py`, which gives each zygote a window of host ids that belong to nobody.
    for name, ids in (("uid_map", plan.uid_map), ("gid_map", plan.gid_map)):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(ids)


def _outer(plan: Plan, told: int, mapped: int) -> None:
    """In its own user namespace: make the other namespaces, and the zygote as process 1 of the new pid namespace."""
    try:
        _be_nobody(plan)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(told, b"u")
        if os.read(mapped, 1) != b"m":
            os._exit(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.setgroups([])
        syscalls.unshare(
            syscalls.CLONE_NEWNS
            | syscalls.CLONE_NEWPID
            | syscalls.CLONE_NEWIPC
            | syscalls.CLONE_NEWUTS
            | syscalls.CLONE_NEWNET
            | syscalls.CLONE_NEWCGROUP
        )
        syscalls.join_new_session_keyring()
        ready_r, ready_w = os.pipe()
        zygote = os.fork()
        if zygote == 0:
            os.close(ready_r)
            os.close(told)
            os.close(mapped)
            _zygote(plan, ready_w)
        os.close(ready_w)
        failure = b""
        while chunk := os.read(ready_r, 4096):  # closed by a successful exec
            failure += chunk
        message = {"error": failure.decode()} if failure else {"pid": zygote}
    except OSError as error:
        message = {"error": str(error)}
    os.write(told, json.dumps(message).encode())
    os._exit(0)


def _zygote(plan: Plan, failed: int) -> None:
    """Process 1 of the new pid namespace: show the template, and become its Python."""
    try:
        os.dup2(2, 1)  # the launcher's standard output is for its report alone
        _build_view(plan)
        os.chdir(_VIEW)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        keep = {plan.control_fd, failed, *plan.keep_fds, 0, 1, 2}
        for fd in keep - {failed}:
            os.set_inheritable(fd, True)
        os.set_inheritable(failed, False)
        _close_all_but(keep)
        config = {"control_fd": plan.control_fd, "warm_modules": plan.warm_modules}
        code = (
            f"import sys; sys.path.insert(0, {plan.archive!r})\n"
            "from glovebox_guest import at_fork\nat_fork.put_off()\n"
            "from glovebox_server.runtimes.namespace import zygote\nzygote.main()"
        )
        environment = {"PATH": plan.path, "HOME": "/root", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
        # Safety: the environment is made here; nothing of the server's (keys, tokens, paths) can be in it.
        os.execve(plan.python, [plan.python, "-I", "-c", code, json.dumps(config)], environment)
    except OSError as error:
        os.write(failed, str(error).encode()[:4000])
    os._exit(1)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the directory's own descriptor


def _build_view(plan: Plan) -> None:
    """Mount the template at `_VIEW`: layers, /proc, /dev, /sys, and a place to work in at /mnt."""
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    # All sources first: a mount on `_VIEW` may hide one. Root's folders are closed to us, who are nobody on the host:
    # for these the server gives descriptors.
    mounts = plan.layer_fds or [syscalls.open_tree(source, recursive=True) for source, _ in plan.layers]
    for fd, (_, target) in zip(mounts, plan.layers):
        syscalls.move_mount(fd, _VIEW if target == "/" else _VIEW + target)
    _build_dev(f"{_VIEW}/dev")
    _build_sys(f"{_VIEW}/sys")
    fd = os.open(_VIEW, os.O_PATH | os.O_CLOEXEC)
    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID, recursive=True)
    os.close(fd)
    safe = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", f"{_VIEW}/proc", "proc", safe)
    syscalls.mount("tmpfs", f"{_VIEW}/mnt", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=0755")
    os.mkdir(f"{_VIEW}/mnt/sandbox")
    os.mkdir(f"{_VIEW}/mnt/empty")
    syscalls.mount("tmpfs", f"{_VIEW}/mnt/empty", "tmpfs", safe | syscalls.MS_RDONLY, "size=4k,mode=0755")


def _build_dev(dev: str) -> None:
    syscalls.mount("tmpfs", dev, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "size=64k,mode=0755")
    for name in DEVICES:
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        syscalls.mount(f"/dev/{name}", f"{dev}/{name}", None, syscalls.MS_BIND)
    for name in DEV_FOLDERS:
        os.mkdir(f"{dev}/{name}")
    for name, target in DEV_LINKS.items():
        os.symlink(target, f"{dev}/{name}")


def _build_sys(sys_: str) -> None:
    """Only the processors: programs read them to choose their number of threads. No devices, no kernel, no cgroups."""
    syscalls.mount(
        "tmpfs", sys_, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, "size=64k,mode=0755"
    )
    cpu = "/devices/system/cpu"
    os.makedirs(sys_ + cpu)
    if stat.S_ISDIR(os.stat("/sys" + cpu).st_mode):
        syscalls.mount("/sys" + cpu, sys_ + cpu, None, syscalls.MS_BIND | syscalls.MS_REC)


if __name__ == "__main__":
    main()
