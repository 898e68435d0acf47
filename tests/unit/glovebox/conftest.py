"""A fake server, and the command run against it in this process."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer.testing

from glovebox import main

_FAKE = pathlib.Path(__file__).with_name("fake_server.py")


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("glovebox_fake_server", _FAKE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> Any:
    return _load()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in ("GLOVEBOX_URL", "GLOVEBOX_API_KEY", "E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOVEBOX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def server(fake: Any, tmp_path: pathlib.Path) -> Iterator[Any]:
    with fake.FakeServer() as running:
        running.describe(tmp_path)
        yield running


@pytest.fixture
def glovebox() -> Callable[..., Any]:
    """Runs `glovebox ARGUMENTS`; the result has exit_code, stdout, stderr."""
    runner = typer.testing.CliRunner()
    return lambda *arguments, **options: runner.invoke(main.app, list(arguments), **options)
