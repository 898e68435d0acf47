"""What of ours is on this host: processes, cgroups, mounts, namespaces, sockets, locks. After a test run: nothing."""

import os
import pathlib

_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def processes() -> set[str]:
    """Zygotes, guest agents and servers, and anything that runs under an id of our ranges."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes()
            uid = entry.stat().st_uid
        except OSError:
            continue
        if b"-m\0glovebox_server" in line or b"glovebox-guest.pyz" in line or uid >= 0x7000_0000:
            found.add(f"{entry.name}: {line[:120]!r} uid {uid}")
    return found


def cgroups() -> set[str]:
    """Control groups that bear our name."""
    return {path for path, _, _ in os.walk(_CGROUPS) if "/glovebox-" in path}


def cgroups_of_sandboxes() -> set[str]:
    """Control groups of sandboxes, of whichever server."""
    return {path for path in cgroups() if "/sandboxes/" in path}


def mounts() -> set[str]:
    """Mounts of this mount namespace that show anything of ours."""
    return {line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if "glovebox" in line}


def namespaces() -> set[str]:
    """Namespaces that some process of this host still lives in or holds open."""
    found = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            found.update(os.readlink(entry) for entry in (process / "ns").iterdir())
        except OSError:
            continue  # it has ended
    return found


def network_links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def snapshot() -> dict[str, set[str]]:
    """All of it."""
    return {
        "processes": processes(),
        "cgroups": cgroups(),
        "mounts": mounts(),
        "namespaces": namespaces(),
        "network links": network_links(),
    }


def new_since(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What has come since `before`, by kind; kinds without anything new are left out."""
    now = snapshot()
    return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}
