"""What a sandbox may use up, in plain numbers."""

import dataclasses

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Resources:
    """Limits of one sandbox. `memory_bytes` covers its processes *and* its writable files where these are kept in memory."""

    cpu_count: float = 2.0
    memory_bytes: int = 2048 * MIB
    disk_bytes: int = 1536 * MIB
    inodes: int = 262_144
    pids: int = 1024
    open_files: int = 65_536


@dataclasses.dataclass(frozen=True)
class Usage:
    """What an instance uses now, measured from outside it."""

    cpu_seconds: float
    memory_bytes: int
    memory_cache_bytes: int
    pids: int
    oom_kills: int
