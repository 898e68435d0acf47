"""The results of one benchmark, as they are kept in JSON: all samples, and all that is needed to judge them."""

import dataclasses
import datetime
import json
import pathlib
from typing import Any

from bench import footprint, machine, series

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender as it was measured; `missing` says why it was not."""

    key: str
    name: str
    how: str
    version: str
    missing: str | None


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that rendering needs, and nothing that it computes."""

    date: str
    commit: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    contenders: list[Entry]
    measured: list[series.Series]
    memory: footprint.Footprint | None = None
    memory_missing: str | None = None
    server_startup: dict[str, float] | None = None
    leaks: list[str] = dataclasses.field(default_factory=list)
    schema: int = SCHEMA

    def of(self, key: str, metric: str) -> series.Series | None:
        """One contender's series for one metric."""
        return next((s for s in self.measured if (s.contender, s.metric) == (key, metric)), None)

    def save(self, path: pathlib.Path) -> None:
        """Write it, atomically: a run that is stopped keeps the last result."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text(_dumps(dataclasses.asdict(self)))
        fresh.replace(path)


def _dumps(value: dict[str, Any]) -> str:
    """One line for each member, and for each series: diffs stay readable, and the file short."""
    members = []
    for key, member in value.items():
        if isinstance(member, list) and member:
            lines = ",\n    ".join(json.dumps(item) for item in member)
            members.append(f'  "{key}": [\n    {lines}\n  ]')
        else:
            members.append(f'  "{key}": {json.dumps(member)}')
    return "{\n" + ",\n".join(members) + "\n}\n"


def load(path: pathlib.Path) -> Results:
    """What `save` wrote; ValueError for a file of another schema."""
    raw = json.loads(path.read_text())
    if raw.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {raw.get('schema')}, this program reads {SCHEMA}")
    raw["contenders"] = [Entry(**entry) for entry in raw["contenders"]]
    raw["measured"] = [series.Series(**entry) for entry in raw["measured"]]
    raw["memory"] = footprint.Footprint(**raw["memory"]) if raw["memory"] else None
    return Results(**raw)


def begin() -> tuple[str, str, dict[str, Any]]:
    """Date, commit and machine, taken before the run."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return now, machine.commit(), machine.describe()
