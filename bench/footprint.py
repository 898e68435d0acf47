"""Memory of idle sandboxes: their share (PSS) of the pages they have, many at once, and what the cgroups were charged."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable

from bench import groups, server
from bench.contenders import contract


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Averages over all sandboxes, in bytes; `zygotes` and `server` are whole processes, counted once."""

    sandboxes: int
    processes: int
    pss_bytes: int
    pss_used_bytes: int
    cgroup_bytes: int | None
    zygotes: int
    zygotes_pss_bytes: int
    server_pss_bytes: int


def measure(subject: server.Server, count: int) -> Footprint:
    """Create `count` sandboxes, look, run 1+1 in each, look again, kill them."""
    client = server.Client(subject)
    sandboxes = []
    try:
        for _ in range(count):
            sandboxes.append(client.create())
        found = groups.find_groups({str(sandbox["sandboxID"]) for sandbox in sandboxes})
        inside = groups.members(found)
        if len(inside) < count:
            raise contract.MeasureError(f"{count} sandboxes, but {len(inside)} processes in their cgroups")
        outside = groups.descendants(subject.pid) | groups.members(_siblings(found))
        idle, processes = pss(inside), len(inside)
        charged = _charged(found)
        zygotes = outside - inside - {subject.pid}
        zygotes_pss, server_pss = pss(zygotes), pss({subject.pid})
        for sandbox in sandboxes:
            for _ in client.execute(sandbox, "1+1"):
                pass
        used = pss(groups.members(found))
        per_group = charged // count if charged is not None else None
        return Footprint(
            count, processes, idle // count, used // count, per_group, len(zygotes), zygotes_pss, server_pss
        )
    finally:
        for sandbox in sandboxes:
            with contextlib.suppress(contract.MeasureError):
                client.kill(sandbox["sandboxID"])
        client.close()


def _siblings(found: Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """The server's own root groups (`glovebox-*`): the zygotes are there, wherever in the process tree they hang."""
    return {parent for group in found for parent in group.parents if parent.name.startswith(groups.SERVER_PREFIX)}


def pss(pids: Iterable[int]) -> int:
    """Their proportional set sizes together: a page that n processes have counts 1/n for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def _charged(found: Iterable[pathlib.Path]) -> int | None:
    """What the kernel charged to the groups: own pages, page tables, kernel memory, files in tmpfs. None if unknown."""
    values = []
    for group in found:
        for name in ("memory.current", "memory.usage_in_bytes"):
            with contextlib.suppress(OSError):
                values.append(int((group / name).read_text()))
    return sum(values) if values else None
