"""`sandbox.metrics`: how much of the sandbox's processor, memory and disk is used.

The cgroup's own files where they are to be seen (the host's machine is then not), else /proc.
"""

import os
import time
from typing import Any, Dict, Optional, Tuple

from glovebox_guest import channel as channels
from glovebox_guest import parameters

_CGROUP = "/sys/fs/cgroup"
MAX_FILE_BYTES = 64 * 1024


class Metrics:
    """The handler; the processor's use is since the last time it was asked for."""

    def __init__(self) -> None:
        self._before = _processor_times()

    async def metrics(self, _params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`sandbox.metrics`."""
        disk = os.statvfs("/")
        return {
            "ts": time.time(),
            "cpu_count": _processor_count(),
            "cpu_used_pct": self._processor_use(),
            **(_memory_of_cgroup() or _memory_of_machine()),
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _processor_use(self) -> float:
        now = _processor_times()
        busy, total = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        return round(max(0.0, min(100.0, 100.0 * busy / total)), 2) if total > 0 else 0.0


def _processor_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


def _processor_times() -> Tuple[int, int]:
    """Ticks of work, and of everything, of all processors together (proc_stat(5))."""
    fields = _read("/proc/stat").partition("\n")[0].split()[1:9]
    if len(fields) < 5 or not all(field.isdigit() for field in fields):
        return 0, 0
    ticks = [int(field) for field in fields]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _memory_of_cgroup() -> Optional[Dict[str, int]]:
    limit = _read(f"{_CGROUP}/memory.max").strip()
    used = _read(f"{_CGROUP}/memory.current").strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    cache = int(_fields(_read(f"{_CGROUP}/memory.stat")).get("file", 0))
    return {"mem_total": int(limit), "mem_used": max(0, int(used) - cache), "mem_cache": cache}


def _memory_of_machine() -> Dict[str, int]:
    fields = {name: size * 1024 for name, size in _fields(_read("/proc/meminfo")).items()}
    total, cache = fields.get("MemTotal", 0), fields.get("Cached", 0)
    available = fields.get("MemAvailable", fields.get("MemFree", 0) + cache)
    return {"mem_total": total, "mem_used": max(0, total - available), "mem_cache": cache}


def _fields(text: str) -> Dict[str, int]:
    """Lines of `name number` or `name: number unit`."""
    found = {}
    for line in text.splitlines():
        name, *rest = line.replace(":", " ", 1).split()[:2] or [""]
        if rest and rest[0].isdigit():
            found[name] = int(rest[0])
    return found


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
