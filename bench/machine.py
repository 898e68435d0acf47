"""What the numbers were measured on: machine, kernel, versions, commit. Without it they mean nothing."""

import os
import pathlib
import platform
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """The machine, as it is kept in the results. No host name: the results are published."""
    return {
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "virtualized": _virtualized(),
        "cgroups": "v2" if pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "harness_python": platform.python_version(),
        "load_1min_at_start": os.getloadavg()[0],
    }


def _cpu() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _virtualized() -> bool:
    flags = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    return any("hypervisor" in line.split() for line in flags)


def commit() -> str:
    """The commit measured; `-dirty` where the tree held more than that."""
    return first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])


def first_line(argv: list[str]) -> str:
    """The first line a program prints, for its version; `unknown` when it does not say."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout or done.stderr).strip().partition("\n")[0] or "unknown"
