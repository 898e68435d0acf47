"""`run`: what it reads, prints and saves; the sandbox itself is in the integration tests."""

import base64
import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import e2b
import pytest
from e2b_code_interpreter import models

from glovebox import lease

_PNG = base64.b64encode(b"\x89PNG picture").decode()


class FakeSandbox:
    sandbox_id = "ifake"

    def __init__(self, execution: models.Execution, fails: Exception | None = None) -> None:
        self.execution = execution
        self.fails = fails
        self.code = ""

    def run_code(self, code: str, timeout: float, on_stdout: Any = None, on_stderr: Any = None) -> models.Execution:
        self.code = code
        if self.fails:
            raise self.fails
        for handler, lines in ((on_stdout, self.execution.logs.stdout), (on_stderr, self.execution.logs.stderr)):
            for line in lines:
                if handler:
                    handler(models.OutputMessage(line, 0, error=handler is on_stderr))
        return self.execution


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> FakeSandbox:
    fake = FakeSandbox(models.Execution(logs=models.Logs(stdout=["out\n"], stderr=["err\n"])))

    @contextlib.contextmanager
    def fresh(*_: Any) -> Iterator[FakeSandbox]:
        yield fake

    monkeypatch.setattr(lease, "fresh", fresh)
    return fake


def test_streams_and_the_main_result(glovebox: Any, sandbox: FakeSandbox) -> None:
    sandbox.execution.results = [models.Result(text="side"), models.Result(text="42", is_main_result=True)]

    result = glovebox("run", "-c", "6 * 7")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n42\n", "err\n")
    assert sandbox.code == "6 * 7"


def test_code_comes_from_a_file_or_from_standard_input(
    glovebox: Any, sandbox: FakeSandbox, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text("print('é')")
    glovebox("run", str(path))
    assert sandbox.code == "print('é')"
    glovebox("run", "-", input="piped")
    assert sandbox.code == "piped"


def test_code_that_raises_ends_with_1_and_plain_text(glovebox: Any, sandbox: FakeSandbox) -> None:
    sandbox.execution.error = models.ExecutionError("ValueError", "no", "\x1b[31mValueError\x1b[0m: no")

    result = glovebox("run", "-c", "x")

    assert result.exit_code == 1
    assert result.stderr.endswith("ValueError: no\n")
    assert "\x1b" not in result.stderr


def test_code_that_takes_too_long_ends_with_124(glovebox: Any, sandbox: FakeSandbox) -> None:
    sandbox.fails = e2b.TimeoutException("Execution timed out")

    assert glovebox("run", "-c", "x", "--timeout", "1").exit_code == 124


def test_results_are_saved(glovebox: Any, sandbox: FakeSandbox, tmp_path: pathlib.Path) -> None:
    sandbox.execution.results = [
        models.Result(png=_PNG, text="<Figure>"),
        models.Result(html="<b>x</b>", json={"a": 1}),
        models.Result(png="not base64!"),
    ]

    result = glovebox("run", "-c", "x", "--save-dir", str(tmp_path / "new" / "out"))

    files = {path.name: path.read_bytes() for path in (tmp_path / "new" / "out").iterdir()}
    assert files == {
        "result-1.png": b"\x89PNG picture",
        "result-2.html": b"<b>x</b>",
        "result-2.json": b'{"a": 1}',
    }
    assert "not valid base64" in result.stderr


def test_as_json(glovebox: Any, sandbox: FakeSandbox) -> None:
    sandbox.execution.results = [models.Result(text="42", is_main_result=True)]

    shown = json.loads(glovebox("run", "-c", "x", "--json").stdout)

    assert shown == {
        "sandbox_id": "ifake",
        "stdout": "out\n",
        "stderr": "err\n",
        "text": "42",
        "results": [{"text": "42"}],
        "error": None,
        "saved": [],
    }
