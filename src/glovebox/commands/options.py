"""Options that several commands share, and how their values are read."""

import pathlib
from typing import Annotated

import typer

DataDir = Annotated[
    pathlib.Path | None,
    typer.Option("--data-dir", help="The server's data directory (default: GLOVEBOX_DATA_DIR, else the usual one)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="K=V", help="Set a variable; may be repeated."),
]
Template = Annotated[str | None, typer.Option("--template", "-t", help="The template of a fresh sandbox.")]
SandboxArgument = Annotated[str, typer.Argument(metavar="ID", help="The sandbox's id.")]


def variables(pairs: list[str] | None) -> dict[str, str]:
    """`K=V` pairs as a mapping. Raises BadParameter (exit code 2) for one without a name or a `=`."""
    values = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{pair!r} is not K=V", param_hint="--env")
        values[name] = value
    return values
