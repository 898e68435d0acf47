"""The kernel calls that Python's standard library lacks, typed, through libc. Python 3.9+: the zygote uses it inside.

Each raises OSError with the call's name. Nothing is decided here: see the man page named with each.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

_libc = ctypes.CDLL(None, use_errno=True)

# unshare(2), setns(2), clone(2)
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2), umount2(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# open_tree(2), move_mount(2), mount_setattr(2): the same numbers on every architecture (asm-generic/unistd.h)
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_MOUNT_SETATTR = 442
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

# prctl(2)
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2  # capabilities(7)

# keyctl(2): KEYCTL_JOIN_SESSION_KEYRING, by architecture
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219}


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare {flags:#x}")


def setns(fd: int, kind: int) -> None:
    """setns(2): `kind` is the CLONE_NEW* flag that the descriptor must be of."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind is not None else None,
        ctypes.c_ulong(flags),
        data.encode() if data is not None else None,
    )
    _check(result, f"mount {kind or ''} {target}")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); with "." for both, as its man page shows, the old root ends up on top of the new one."""
    _check(_libc.pivot_root(new_root.encode(), put_old.encode()), f"pivot_root {new_root}")


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a descriptor (open_tree(2) with OPEN_TREE_CLONE)."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(ctypes.c_long(_NR_OPEN_TREE), ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags))
    return _check(result, f"open_tree {path}")


def new_tmpfs(options: Mapping[str, str]) -> int:
    """A new, detached tmpfs, as a descriptor (fsopen(2), fsconfig(2), fsmount(2))."""
    context = _check(_libc.syscall(ctypes.c_long(_NR_FSOPEN), b"tmpfs", ctypes.c_uint(_CLOEXEC)), "fsopen tmpfs")
    try:
        for name, value in options.items():
            _fsconfig(context, _FSCONFIG_SET_STRING, name.encode(), value.encode())
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        made = _libc.syscall(
            ctypes.c_long(_NR_FSMOUNT), ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0)
        )
        return _check(made, "fsmount tmpfs")
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, name: bytes | None, value: bytes | None) -> None:
    result = _libc.syscall(
        ctypes.c_long(_NR_FSCONFIG), ctypes.c_int(context), ctypes.c_uint(command), name, value, ctypes.c_int(0)
    )
    _check(result, f"fsconfig {name!r}")


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def mount_setattr(fd: int, attributes: int, *, userns_fd: int = 0, recursive: bool = False) -> None:
    """Set attributes of the mount that `fd` stands for (mount_setattr(2)); MOUNT_ATTR_IDMAP takes `userns_fd`."""
    attr = _MountAttr(attributes, 0, 0, userns_fd)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(fd),
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _check(result, "mount_setattr")


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount `fd` at `target` (move_mount(2))."""
    result = _libc.syscall(
        ctypes.c_long(_NR_MOVE_MOUNT),
        ctypes.c_int(fd),
        b"",
        ctypes.c_int(_AT_FDCWD),
        target.encode(),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, f"move_mount {target}")


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one number."""
    zero = ctypes.c_ulong(0)
    return _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero), f"prctl {option}")


def drop_bounding_capability(number: int) -> bool:
    """Take one capability out of the bounding set for good; False when the kernel has none of this number."""
    if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        return True
    if ctypes.get_errno() == errno.EINVAL:
        return False
    return bool(_check(-1, f"prctl PR_CAPBSET_DROP {number}"))


def clear_ambient_capabilities() -> None:
    """prctl(2), PR_CAP_AMBIENT_CLEAR_ALL."""
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def set_seccomp_filter(program: bytes) -> None:
    """Install a compiled BPF program for this thread and all it starts (seccomp(2)).

    Needs CAP_SYS_ADMIN in the current user namespace, or no_new_privs.
    """
    instructions, rest = divmod(len(program), 8)
    if rest or not instructions:
        raise ValueError("a BPF program is a sequence of 8-byte instructions")
    fprog = _SockFprog(instructions, program)
    result = _libc.prctl(
        ctypes.c_int(PR_SET_SECCOMP), ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(fprog), None, None
    )
    _check(result, "prctl PR_SET_SECCOMP")


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


_CAPABILITY_VERSION_3 = 0x20080522


def capset(mask: int) -> None:
    """Make effective and permitted exactly `mask`, and inheritable nothing (capset(2))."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def join_new_session_keyring() -> None:
    """Leave the inherited session keyring for an empty one (keyctl(2)); nothing where keyrings are not built in."""
    number = _NR_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(f"keyctl: the number of this call is not known on {os.uname().machine}")
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(1), None)
    if result < 0 and ctypes.get_errno() != errno.ENOSYS:  # a kernel without keyrings has none to leak
        _check(result, "keyctl JOIN_SESSION_KEYRING")
