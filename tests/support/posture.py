"""The posture of a sandbox's processes, read from outside: the kernel's word on what they may do."""

import dataclasses
import os
import pathlib


@dataclasses.dataclass(frozen=True)
class Posture:
    """What /proc/<pid> says of one process."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    capabilities: dict[str, int]
    seccomp: int
    filters: int
    namespaces: dict[str, str]
    uid_map: list[tuple[int, int, int]]
    descriptors: dict[int, str]
    oom_score_adj: int
    root: str
    limits: dict[str, str]


def pids_of(sandbox_id: str) -> list[int]:
    """Host pids of a sandbox's processes, by its control group."""
    for path in pathlib.Path("/sys/fs/cgroup").glob(f"**/{sandbox_id}/cgroup.procs"):
        pids = [int(line) for line in path.read_text().split()]
        if pids:
            return sorted(pids)
    raise AssertionError(f"no control group is named for {sandbox_id}")


def read(pid: int) -> Posture:
    """The posture of a process of the host."""
    proc = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    return Posture(
        uids=tuple(int(n) for n in status["Uid"].split()),
        gids=tuple(int(n) for n in status["Gid"].split()),
        capabilities={name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        seccomp=int(status["Seccomp"]),
        filters=int(status["Seccomp_filters"]),
        namespaces={entry.name: os.readlink(entry) for entry in (proc / "ns").iterdir()},
        uid_map=[tuple(map(int, line.split())) for line in (proc / "uid_map").read_text().splitlines()],  # type: ignore[misc]
        descriptors={int(entry.name): os.readlink(entry) for entry in (proc / "fd").iterdir()},
        oom_score_adj=int((proc / "oom_score_adj").read_text()),
        root=os.readlink(proc / "root"),
        limits={line[:26].strip(): line[26:47].strip() for line in (proc / "limits").read_text().splitlines()[1:]},
    )
