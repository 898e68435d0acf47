"""Commands about sandboxes that exist: `ps`, `kill`, `logs`."""

import datetime as dt
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glovebox import connection, errors, outcome, terminal
from glovebox.commands import options

if TYPE_CHECKING:
    import rich.table

    from glovebox import control

_POLL_S = 1.0


def ps(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the sandboxes, newest first."""
    with _control(data_dir) as client:
        listed = list(client.sandboxes())
    if as_json:
        terminal.print_json(listed)
    elif not listed:
        terminal.note('no sandboxes; make one with: glovebox run -c "print(1)" --keep')
    else:
        terminal.output().print(table(listed, dt.datetime.now(dt.UTC)))


def kill(
    sandbox_ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="The sandboxes to end.")] = None,
    every: Annotated[bool, typer.Option("--all", help="End all of them.")] = False,
    data_dir: options.DataDir = None,
) -> None:
    """End sandboxes, and all that is in them."""
    if bool(sandbox_ids) == every:
        raise typer.BadParameter("name the sandboxes, or give --all (not both)")
    with _control(data_dir) as client:
        targets = sandbox_ids or [str(sandbox["sandboxID"]) for sandbox in client.sandboxes()]
        missing = [sandbox_id for sandbox_id in targets if not _killed(client, sandbox_id, complain=not every)]
    if missing and not every:
        raise typer.Exit(outcome.NOT_FOUND)


def logs(
    sandbox_id: options.SandboxArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
    data_dir: options.DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print what happened in a sandbox."""
    with _control(data_dir) as client:
        reader = LogReader(client, sandbox_id)
        _show_entries(reader.fresh(), as_json)
        while follow:
            time.sleep(_POLL_S)
            try:
                _show_entries(reader.fresh(), as_json)
            except errors.NotFoundError:
                return  # it was there a moment ago: it has ended


class LogReader:
    """Reads a sandbox's log on from where it stopped.

    The server's cursor is a millisecond and includes it, so entries of the last one come again: they are remembered.
    """

    def __init__(self, client: "control.Control", sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._cursor_ms: int | None = None
        self._seen: set[str] = set()

    def fresh(self) -> list[dict[str, Any]]:
        """The entries that were not returned before, oldest first."""
        fresh: list[dict[str, Any]] = []
        while True:
            page = self._client.logs(self._sandbox_id, self._cursor_ms)
            new = [entry for entry in page if repr(entry) not in self._seen]
            fresh += new
            if not new:
                return fresh
            last_ms = max(_milliseconds(entry) for entry in page)
            at_last = {repr(entry) for entry in page if _milliseconds(entry) == last_ms}
            self._seen = self._seen | at_last if last_ms == self._cursor_ms else at_last
            self._cursor_ms = last_ms


def table(listed: list[dict[str, Any]], now: dt.datetime) -> "rich.table.Table":
    """The sandboxes as a table; columns that nobody fills are left out."""
    import rich.table
    import rich.text

    rows = [_row(sandbox, now) for sandbox in listed]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    drawn = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name, no_wrap=name == "ID", overflow="fold")
    for row in rows:
        drawn.add_row(*(rich.text.Text(row[name], style=_style(name, row[name])) for name in columns))
    return drawn


def _row(sandbox: dict[str, Any], now: dt.datetime) -> dict[str, str]:
    running = sandbox["state"] == "running"
    left_s = (terminal.parse_time(sandbox["endAt"]) - now).total_seconds()
    metadata = sandbox.get("metadata") or {}
    return {
        "ID": terminal.printable(sandbox["sandboxID"]),
        "TEMPLATE": terminal.printable(sandbox.get("alias") or sandbox["templateID"], 60),
        "STATE": terminal.printable(sandbox["state"]),
        "AGE": terminal.duration((now - terminal.parse_time(sandbox["startedAt"])).total_seconds()),
        "ENDS IN": terminal.duration(left_s) if running else "",
        "METADATA": terminal.printable(" ".join(f"{name}={value}" for name, value in metadata.items()), 120),
        "BOUNDARY": terminal.printable(sandbox.get("boundary") or "", 120),
    }


def _style(column: str, value: str) -> str:
    if column == "STATE":
        return "green" if value == "running" else "yellow"
    return "dim" if column in ("METADATA", "BOUNDARY") else ""


def _killed(client: "control.Control", sandbox_id: str, complain: bool) -> bool:
    """Ends one and says so; False when it was not there (it may just have ended by itself)."""
    try:
        client.kill(sandbox_id)
    except errors.NotFoundError as error:
        if complain:
            terminal.complain(outcome.message_of(error))
        return False
    print(terminal.printable(sandbox_id))
    return True


def _show_entries(entries: list[dict[str, Any]], as_json: bool) -> None:
    import json

    for entry in entries:
        if as_json:
            print(json.dumps(entry), flush=True)
        else:
            words = (entry.get("timestamp", ""), entry.get("level", ""), entry.get("message", ""))
            fields = [f"{name}={value}" for name, value in (entry.get("fields") or {}).items()]
            print(" ".join(terminal.printable(word) for word in (*words, *fields) if word), flush=True)


def _milliseconds(entry: dict[str, Any]) -> int:
    return int(terminal.parse_time(str(entry["timestamp"])).timestamp() * 1000)


def _control(data_dir: Any) -> "control.Control":
    from glovebox import control  # here: httpx is slow to import, and help must be quick

    return control.Control(connection.find(data_dir))
