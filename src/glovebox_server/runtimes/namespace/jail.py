"""From a fresh fork of the zygote to a jailed process 1: the steps, in the only order in which they work.

Runs in the zygote's child, as root of the zygote's user namespace (never the host's). Python 3.9+, standard library.

    1. join the sandbox's control groups       while still allowed to move: the descriptors were opened by the server
    2. enter mount, net, ipc, uts, cgroup       they belong to the *zygote's* user namespace: later, root inside has no
                                                power over them, cannot mount, cannot configure the network
    3. mount the root                           a tmpfs of limited size for what is written, overlays over the layers
    4. hide                                     what /proc would tell of the host
    5. host name
    6. pivot into the root                      the zygote's view is gone
    7. limits, then enter user                  as its own first id, so that quotas count for it alone; made ahead, limits
                                                and maps in it; from here on, powerless outside
    8. bounding set, seccomp, capabilities      what is left is a root that can only be root inside
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import stat
import struct
import uuid
from collections.abc import Sequence
from typing import Any

from glovebox_server.linux import capabilities, syscalls

#: Docker's default set without mknod and net_raw, which mean nothing here.
CAPABILITIES = tuple(
    "chown dac_override fsetid fowner setgid setuid setfcap setpcap net_bind_service sys_chroot kill audit_write"
    .split()
)  # fmt: skip

_MAX_DESCRIPTORS = 32
_WORK = "/mnt/sandbox"
_ROOT = f"{_WORK}/root"
_SAFE = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC

#: What of /proc says something of the host. Only what others than root may read is covered: the rest belongs to the
#: host's root, who has no id inside, so that the kernel itself keeps it from everybody there.
_TELLING = (
    "acpi asound buddyinfo bus cmdline config.gz consoles diskstats driver dynamic_debug fs interrupts iomem ioports irq "
    "kallsyms kcore key-users keys kmsg kpagecgroup kpagecount kpageflags latency_stats modules mtrr pagetypeinfo "
    "partitions pressure sched_debug schedstat scsi slabinfo softirqs sysrq-trigger timer_list tty "
    "vmallocinfo zoneinfo".split()
)

#: See `_copy_owned`.
_OWNED = "etc home root run srv tmp var".split()
_SMALL_BYTES = 64 * 1024
_USER = 1000

_MAX_TERMINALS = 128

#: Limits that hold for all sandboxes of a zygote together, too, where the server could not lift them (outer.py): none gets
#: more than this part of them.
_COUNTED_TOGETHER = (resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE)
_SHARERS = 8

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


class Descriptors:
    """What the server hands in, on the socket `report`, while we are being forked: see `NamespaceRuntime._hand_in`."""

    def __init__(self, report: int) -> None:
        with socket.socket(fileno=os.dup(report)) as connection:
            data, rest, _, _ = socket.recv_fds(connection, 4096, _MAX_DESCRIPTORS)
        if not data:
            raise OSError("the server has given this sandbox up")
        message = json.loads(data)
        self.joins = [rest.pop(0) for _ in range(message["joins"])]
        self.users = rest.pop(0)
        self.network = rest.pop() if message["network"] else -1
        self.devices = rest.pop() if message["devices"] else -1
        self.layers = rest


def enter(request: dict[str, Any], fds: Descriptors, seccomp: bytes, covers: dict[str, str]) -> None:
    """All steps. Raises OSError naming the call that failed; the process must not go on then.

    `request["base"]` is the first id of the sandbox's range, in the zygote's user namespace; `seccomp` is a compiled filter;
    `covers` is what `covered()` said.
    """
    base = int(request["base"])
    for fd in fds.joins:
        os.write(fd, b"0")
        os.close(fd)
    # Safety: only takes away. The new namespaces' owner is the zygote's user namespace, which has no power on the host.
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP)
    _enter_network(fds.network)
    _mount_root(request, fds.layers, base)
    _mount_system(base, int(request["memory_bytes"]), fds.devices)
    _hide(covers)
    _set_host_name(request["hostname"])
    os.chdir(_ROOT)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    _limit(request)
    limit_users(int(request["pids"]))
    be_first_id(base)
    # Safety: gives up all power over the zygote's user namespace, and so over the namespaces above. Allowed, though
    # nothing is left of root, because this one belongs to the id that we have just become (user_namespaces(7)).
    syscalls.setns(fds.users, syscalls.CLONE_NEWUSER)
    os.close(fds.users)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    # Only now: keys are counted by user, and before this all sandboxes of a zygote were the same one (keyrings(7)).
    syscalls.join_new_session_keyring()
    _give_up(seccomp)


def _mount_root(request: dict[str, Any], layers: Sequence[int], base: int) -> None:
    """A tmpfs bounds everything that is ever written; each layer gets an overlay whose upper side lies in it.

    Layers come as descriptors of mounts whose ids are mapped to the sandbox's. A server that is not root cannot make
    these: then the zygote's own view is what lies below, and what the sandbox must own is copied above it.
    """
    size = f"size={int(request['disk_bytes'])},nr_inodes={int(request['inodes'])},mode=0755"
    syscalls.mount("tmpfs", _WORK, "tmpfs", syscalls.MS_NODEV, size)
    os.mkdir(_ROOT)
    for number, target in enumerate(request["layers"]):
        lower, upper, work = (f"{_WORK}/{name}{number}" for name in ("lower", "upper", "work"))
        for path in (upper, work):
            os.mkdir(path)
        os.chown(upper, base, base)
        if layers:
            os.mkdir(lower)
            syscalls.move_mount(layers[number], lower)
            os.close(layers[number])
        else:
            lower = target
        if target == "/":
            if not layers:
                _copy_owned(upper, base)
            _write_etc(upper, request["hostname"], base)
        # nodev: no device node in a layer works. Not nosuid: sudo must, and gains nothing outside (step 7).
        options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
        syscalls.mount("overlay", _ROOT if target == "/" else _ROOT + target, "overlay", syscalls.MS_NODEV, options)


def _copy_owned(upper: str, base: int) -> None:
    """Copy what root and `user` must own inside: their homes, and the directories that programs write to."""
    for top in _OWNED:
        if not os.path.isdir(f"/{top}"):
            continue
        for path, _, names in os.walk(f"/{top}"):
            owner = base + (_USER if path.startswith("/home/user") else 0)
            os.makedirs(upper + path, exist_ok=True)
            os.chmod(upper + path, stat.S_IMODE(os.stat(path).st_mode))
            os.chown(upper + path, owner, owner)
            for name in names:
                _copy_file(f"{path}/{name}", f"{upper}{path}/{name}", owner)


def _copy_file(source: str, target: str, owner: int) -> None:
    about = os.lstat(source)
    if not stat.S_ISREG(about.st_mode) or about.st_size > _SMALL_BYTES:
        return
    with open(source, "rb") as file, open(target, "wb") as copy:
        copy.write(file.read())
    os.chmod(target, stat.S_IMODE(about.st_mode))
    os.chown(target, owner, owner)


def _write_etc(upper: str, hostname: str, base: int) -> None:
    """The two files of /etc that differ from sandbox to sandbox, written below the overlay before it is mounted."""
    os.makedirs(f"{upper}/etc", exist_ok=True)
    hosts = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    for name, text in (("hostname", hostname + "\n"), ("hosts", hosts)):
        with open(f"{upper}/etc/{name}", "w") as file:
            file.write(text)
        os.chown(f"{upper}/etc/{name}", base, base)
    os.chown(f"{upper}/etc", base, base)


def _mount_system(base: int, memory_bytes: int, devices: int) -> None:
    syscalls.mount("proc", f"{_ROOT}/proc", "proc", _SAFE)
    # The zygote's own, read-only, shared by all; so is /dev where the server could not make one for each sandbox.
    for name in ("sys",) if devices >= 0 else ("dev", "sys"):
        syscalls.mount(f"/{name}", f"{_ROOT}/{name}", None, syscalls.MS_BIND | syscalls.MS_REC)
    if devices >= 0:
        syscalls.move_mount(devices, f"{_ROOT}/dev")
        os.close(devices)
    # max: terminals are counted for the whole host (kernel.pty.max), and one sandbox must leave the others some.
    pts = f"newinstance,ptmxmode=0666,mode=0620,gid={base + 5},max={_MAX_TERMINALS}"
    syscalls.mount("devpts", f"{_ROOT}/dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, pts)
    shm = f"size={memory_bytes // 2},nr_inodes=65536,mode=1777,uid={base},gid={base}"
    syscalls.mount("tmpfs", f"{_ROOT}/dev/shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, shm)


def covered(proc: str) -> dict[str, str]:
    """What to mount over which entry of /proc on this kernel. The zygote asks once."""
    covers = {}
    for name in _TELLING:
        try:
            mode = os.stat(f"{proc}/{name}").st_mode
        except FileNotFoundError:
            continue
        if mode & 0o007:
            covers[name] = "/mnt/empty" if stat.S_ISDIR(mode) else "/dev/null"
    return covers


def _hide(covers: dict[str, str]) -> None:
    """Cover what /proc tells of the host; give the sandbox a boot of its own."""
    proc = f"{_ROOT}/proc"
    for name, cover in covers.items():
        syscalls.mount(cover, f"{proc}/{name}", None, syscalls.MS_BIND)
    boot_id = f"{_WORK}/boot_id"
    with open(boot_id, "w") as file:
        file.write(f"{uuid.uuid4()}\n")
    syscalls.mount(boot_id, f"{proc}/sys/kernel/random/boot_id", None, syscalls.MS_BIND)


def _enter_network(made: int) -> None:
    """Into a network namespace that nobody else is ever in: the one made ahead, or a new one."""
    if made < 0:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        set_up_network("/proc")
    else:
        syscalls.setns(made, syscalls.CLONE_NEWNET)
        os.close(made)


def set_up_network(proc: str) -> None:
    """Loopback only. Ports below 1024 are for everybody: root inside owns no network to be privileged in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        query = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(probe, _SIOCGIFFLAGS, query))[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | _IFF_UP, b""))
    fd = os.open(f"{proc}/sys/net/ipv4/ip_unprivileged_port_start", os.O_WRONLY)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _set_host_name(hostname: str) -> None:
    socket.sethostname(hostname)
    # Only now that its last setting is written can /proc/sys become read-only.
    sys_ = f"{_ROOT}/proc/sys"
    syscalls.mount(sys_, sys_, None, syscalls.MS_BIND | syscalls.MS_REC)
    fd = os.open(sys_, os.O_PATH | os.O_CLOEXEC)
    syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
    os.close(fd)


def _limit(request: dict[str, Any]) -> None:
    """Per-process limits, beside the control groups'. Hard limits: nothing inside can raise them."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: int(request["open_files"]),
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    if not request["limited"]:
        limits[resource.RLIMIT_AS] = int(request["memory_bytes"])  # no control group: for each process at least
    _set_limits(limits)


def limit_users(pids: int) -> None:
    """What the kernel counts by user: for each user inside, and for all of them together.

    A user namespace keeps these limits, as its maker has them, for the sum over its users (user_namespaces(7)); set again
    in each process, they could only be lower.
    """
    _set_limits(
        {
            resource.RLIMIT_NPROC: pids,
            resource.RLIMIT_MEMLOCK: 64 * 1024,
            resource.RLIMIT_MSGQUEUE: 819_200,
            resource.RLIMIT_SIGPENDING: 4096,
        }
    )


def _set_limits(limits: dict[int, int]) -> None:
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and kind in _COUNTED_TOGETHER:
            hard //= _SHARERS
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def be_first_id(base: int) -> None:
    """Become the sandbox's own first id, still in the zygote's user namespace: to make the sandbox's, and to enter it.

    The kernel charges what a namespace's users take (inotify instances, pending signals, message queues) also to whoever
    made the namespace. Made by the zygote's root, all sandboxes would share one quota, and one could take it all.
    """
    os.setgroups([])
    os.setresgid(base, base, base)
    os.setresuid(base, base, base)
    # Changing ids took away the ownership of our own /proc (proc(5)); the zygote needs it to write a namespace's maps.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


def _give_up(program: bytes) -> None:
    """The last step: after this the process has what any program in the sandbox may have, and no way back."""
    capabilities.bound(CAPABILITIES)
    syscalls.clear_ambient_capabilities()
    # Safety: installed before CAP_SYS_ADMIN is dropped, which spares no_new_privs. A setuid program inside gains only
    # what the bounding set leaves, in a user namespace that owns nothing but itself.
    syscalls.set_seccomp_filter(program)
    syscalls.capset(capabilities.mask(CAPABILITIES))
