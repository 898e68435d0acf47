"""What the owner of this host could change for the namespace runtime's good: settings of the whole host, which we leave alone."""

import pathlib

_INOTIFY_INSTANCES = 8192


def advice(cgroup_version: int | None, proc: pathlib.Path = pathlib.Path("/proc")) -> list[str]:
    """Each piece in words, with the command; empty where there is nothing to gain. `cgroup_version` None: no groups."""
    notes = []
    instances = int((proc / "sys/fs/inotify/max_user_instances").read_text())
    if instances < _INOTIFY_INSTANCES:
        notes.append(
            f"all sandboxes of one template together can have {instances} inotify instances (a watched directory takes "
            f"one): sysctl -w fs.inotify.max_user_instances={_INOTIFY_INSTANCES}"
        )
    if cgroup_version == 2 and not _moves_quickly(proc / "self/mounts"):
        notes.append(
            "a sandbox that is created after a pause waits some 10 ms for the kernel's lock over all forks: "
            "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or later, cgroups(7)) spares it that"
        )
    return notes


def _moves_quickly(mounts: pathlib.Path) -> bool:
    """Whether the v2 tree is mounted so that a process can be moved without waiting for a grace period."""
    fields = [line.split() for line in mounts.read_text().splitlines()]
    return any(kind == "cgroup2" and "favordynmods" in options.split(",") for _, _, kind, options, *_ in fields)
