"""docs/reference/cli.md tells of every command, every option and every exit code."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from glovebox import main, outcome

_TEXT = (pathlib.Path(__file__).parents[2] / "docs/reference/cli.md").read_text()


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    yield from group.commands.items()


@pytest.mark.parametrize(("name", "command"), list(_commands(typer.main.get_command(main.app))))
def test_every_command_and_option_is_documented(name: str, command: Any) -> None:
    heading = f"### `glovebox {name}`\n"
    assert heading in _TEXT
    section = _TEXT.partition(heading)[2].partition("\n##")[0]
    for verb in getattr(command, "commands", {}):
        assert f"`{name} {verb}" in section
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("-") and option not in ("--help", "-h"):
                assert f"`{option}`" in section or f"{option}`" in section, f"{name} {option}"


def test_every_exit_code_is_documented() -> None:
    codes = [value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, int)]
    table = _TEXT.partition("## Exit codes\n")[2].partition("\n## ")[0]

    assert len(codes) >= 7
    for code in codes:
        assert f"| {code} |" in table or f"{code}: " in table or f"; {code} " in table
