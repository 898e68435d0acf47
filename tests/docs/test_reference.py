"""docs/reference tells of every setting, metric, error, route and audit action."""

import ast
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from glovebox import errors
from glovebox_guest import wire
from glovebox_server import config, telemetry
from glovebox_server.gateway import problems
from glovebox_server.gateway.e2b import control, envd
from glovebox_server.model import resources
from glovebox_server.policy import limits

_ROOT = pathlib.Path(__file__).parents[2]


def _page(name: str) -> str:
    return (_ROOT / "docs/reference" / name).read_text()


def _settings() -> Iterator[tuple[str, str, Any]]:
    for name, field in config.Settings.model_fields.items():
        if name not in ("limits", "resources"):
            yield name, config.PREFIX + name.upper(), field.get_default()
    for table, values in (("limits", limits.Limits()), ("resources", resources.Resources())):
        for one in dataclasses.fields(values):
            yield one.name, f"{config.PREFIX}{table}_{one.name}".upper(), getattr(values, one.name)


@pytest.mark.parametrize(("name", "variable", "default"), list(_settings()))
def test_every_setting_and_its_default(name: str, variable: str, default: Any) -> None:
    rows = [line for line in _page("settings.md").splitlines() if line.startswith(f"| `{name}` | `{variable}` |")]

    assert len(rows) == 1
    if isinstance(default, int | float | str):
        assert f"| `{default}` |" in rows[0]


@pytest.mark.parametrize("metric", [one.name for one in telemetry.Telemetry().registry.collect()])
def test_every_metric(metric: str) -> None:
    page = _page("metrics.md")

    assert f"| `{metric}` |" in page or f"| `{metric}_total` |" in page


def _classes() -> Iterator[type[errors.GloveboxError]]:
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, errors.GloveboxError):
            yield found


@pytest.mark.parametrize("error", list(_classes()))
def test_every_error_as_it_is_answered(error: type[errors.GloveboxError]) -> None:
    row = problems.PROBLEMS[next(one for one in error.__mro__ if one in problems.PROBLEMS)]

    assert f"| `{error.__name__}` | {row.status} | `{row.slug}` | `{row.code}` |" in _page("errors.md")


@pytest.mark.parametrize("code", sorted(wire.ERROR_CODES))
def test_every_code_of_the_guest_agent(code: str) -> None:
    row = problems.GUEST_PROBLEMS[code]
    lines = [line for line in _page("errors.md").splitlines() if line.startswith(f"| `{code}`")]

    assert len(lines) == 1
    assert lines[0].endswith(f"| {row.status} | `{row.slug}` | `{row.code}` |")


def _routes() -> list[tuple[str, str]]:
    nothing: Any = None  # the table is made of names alone
    return [(one.method, one.path) for one in control.Control(nothing, nothing, nothing, nothing, {}).routes()]


@pytest.mark.parametrize(("method", "path"), _routes())
def test_every_route(method: str, path: str) -> None:
    assert f"| `{method}` | `{path}` |" in _page("http-api.md")


@pytest.mark.parametrize("method", sorted(envd.METHODS))
def test_every_service_of_envd(method: str) -> None:
    assert f"- `{method}`\n" in _page("http-api.md")


def _actions() -> set[str]:
    """What is recorded, read from the calls themselves: `Record("...")`, `.record("...")`, `_note("...")`."""
    found = set()
    for path in (_ROOT / "src/glovebox_server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("Record", "record", "_note") and isinstance(node.args[0].value, str):
                    found.add(node.args[0].value)
    return found


def test_every_audit_action() -> None:
    actions = _actions()
    page = _page("metrics.md").partition("## Audit trail")[2]

    assert {"sandbox.create", "sandbox.end", "process.start", "auth.refused", "key.created"} <= actions
    assert not {action for action in actions if f"`{action}`" not in page}
