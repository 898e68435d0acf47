"""Commands about API keys: `key create`, `key list`, `key revoke`."""

from typing import Annotated, Any

import typer

from glovebox import connection, terminal
from glovebox.commands import options

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
_COLUMNS = ("id", "name", "mask", "createdAt", "lastUsed")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Make a key and print it; it is shown this once."""
    from glovebox import control  # here, as below: httpx is slow to import, and help must be quick

    with control.Control(connection.find(data_dir)) as client:
        created = client.create_key(name)
    if as_json:
        terminal.print_json(created)
        return
    terminal.note(f"key {created.get('id')} for {created.get('name')}; it is shown only now:")
    print(terminal.printable(created["key"]))


@app.command("list")
def list_keys(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the keys, without their secrets."""
    from glovebox import control

    with control.Control(connection.find(data_dir)) as client:
        listed = client.keys()
    if as_json:
        terminal.print_json(listed)
    else:
        _show(listed)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], data_dir: options.DataDir = None) -> None:
    """Make a key useless, at once."""
    from glovebox import control

    with control.Control(connection.find(data_dir)) as client:
        client.revoke_key(key_id)


def _show(listed: list[dict[str, Any]]) -> None:
    import rich.table
    import rich.text

    columns = [name for name in _COLUMNS if any(key.get(name) for key in listed)]
    drawn = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name.upper(), overflow="fold")
    for key in listed:
        drawn.add_row(*(rich.text.Text(_cell(key.get(name))) for name in columns))
    terminal.output().print(drawn)


def _cell(value: Any) -> str:
    if isinstance(value, dict):  # E2B's masked value: {prefix, maskedValuePrefix, maskedValueSuffix, ...}
        value = f"{value.get('maskedValuePrefix', '')}…{value.get('maskedValueSuffix', '')}"
    return terminal.printable(value, 80) if value else ""
