"""A /dev of each sandbox's own. Needs root on the host: a user namespace cannot make device nodes.

Bound from the host, /dev/null would be one file for all: an inotify watch on it tells each sandbox when the host and the
others open it, and a lock on it holds for all of them.
"""

import os
import stat

from glovebox_server.linux import syscalls
from glovebox_server.runtimes.namespace import outer

_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def make() -> int:
    """A detached, read-only mount with the nodes, links and mount points of `outer.build_dev`. Raises OSError."""
    mount = syscalls.new_tmpfs({"size": "64k", "mode": "0755"})
    try:
        for name in outer.DEVICES:
            # Safety: six harmless devices (null(4), random(4), tty(4)), in a mount that nobody else sees.
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*_NODES[name]), dir_fd=mount)
            os.chmod(name, 0o666, dir_fd=mount)  # noqa: S103 - as on any host; whatever our umask
        for name in outer.DEV_FOLDERS:
            os.mkdir(name, 0o755, dir_fd=mount)
        for name, target in outer.DEV_LINKS.items():
            os.symlink(target, name, dir_fd=mount)
        syscalls.mount_setattr(
            mount, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
        )
    except BaseException:
        os.close(mount)
        raise
    return mount


def can_be_made() -> bool:
    """Whether this host lets us: not in a container without CAP_MKNOD."""
    try:
        os.close(make())
    except OSError:
        return False
    return True
