"""The command `run`: Python code in a fresh sandbox, its output streamed, its rich results saved."""

import base64
import binascii
import json
import pathlib
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glovebox import outcome, terminal
from glovebox.commands import options

if TYPE_CHECKING:
    from e2b_code_interpreter import code_interpreter_sync, models

_SPARE_S = 60  # the sandbox outlives the code's time limit, so that the limit is what is reported
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_BINARY = ("png", "jpeg", "pdf")
#: Each format of a result that is worth a file, and the file's extension.
_EXTENSIONS = {
    "png": "png",
    "jpeg": "jpg",
    "pdf": "pdf",
    "svg": "svg",
    "html": "html",
    "markdown": "md",
    "latex": "tex",
    "json": "json",
    "javascript": "js",
}


def run(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="A Python file; - is standard input.")] = None,
    code: Annotated[str | None, typer.Option("-c", "--code", help="The code itself; - is standard input.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until the code is given up.")] = 300.0,
    env: options.Env = None,
    template: options.Template = None,
    save_dir: Annotated[pathlib.Path | None, typer.Option(help="Where to save charts and other results.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running, and print its id.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Run Python code in a fresh sandbox (on the running server, else on a private one)."""
    from glovebox import lease  # here: it loads httpx, and help must be quick

    source = _source(file, code)
    variables = options.variables(env)
    with lease.fresh(data_dir, template, variables, int(timeout) + _SPARE_S, keep) as sandbox:
        execution = _executed(sandbox, source, timeout, quiet=as_json)
        saved = save(execution.results, save_dir) if save_dir else []
        if as_json:
            terminal.print_json(described(execution, sandbox.sandbox_id, saved))
        else:
            _show(execution, saved, save_dir)
        if keep and not as_json:
            print(f"glovebox: kept sandbox {sandbox.sandbox_id}", file=sys.stderr)
    if execution.error:
        raise typer.Exit(outcome.FAILED)


def save(results: "list[models.Result]", directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes every format of every result that is worth a file; the paths, in order."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = []
    for number, result in enumerate(results, start=1):
        for kind, extension in _EXTENSIONS.items():
            content = _content(kind, getattr(result, kind))
            if content:
                path = directory / f"result-{number}.{extension}"
                path.write_bytes(content)
                saved.append(path)
    return saved


def described(execution: "models.Execution", sandbox_id: str, saved: list[pathlib.Path]) -> dict[str, Any]:
    """What `--json` prints."""
    error = execution.error
    return {
        "sandbox_id": sandbox_id,
        "stdout": "".join(execution.logs.stdout),
        "stderr": "".join(execution.logs.stderr),
        "text": execution.text,
        "results": [
            {kind: result[kind] for kind in result.formats() if kind != "chart"} | _chart(result)
            for result in execution.results
        ],
        "error": {"name": error.name, "value": error.value, "traceback": error.traceback} if error else None,
        "saved": [str(path) for path in saved],
    }


def _executed(sandbox: "code_interpreter_sync.Sandbox", source: str, timeout: float, quiet: bool) -> "models.Execution":
    """Runs the code. Raises the SDK's TimeoutException when the limit passes first."""
    if quiet:
        return sandbox.run_code(source, timeout=timeout)
    return sandbox.run_code(
        source,
        timeout=timeout,
        on_stdout=lambda message: _pass_on(sys.stdout, message.line),
        on_stderr=lambda message: _pass_on(sys.stderr, message.line),
    )


def _pass_on(stream: Any, text: str) -> None:
    stream.write(text)
    stream.flush()


def _show(execution: "models.Execution", saved: list[pathlib.Path], save_dir: pathlib.Path | None) -> None:
    if execution.text is not None:
        print(execution.text)
    if execution.error:
        traceback = execution.error.traceback
        print(traceback if sys.stderr.isatty() else _ANSI.sub("", traceback), file=sys.stderr)
    for path in saved:
        terminal.note(f"saved {path}")
    unsaved = sum(any(getattr(result, kind) for kind in (*_BINARY, "svg")) for result in execution.results)
    if unsaved and save_dir is None:
        terminal.note(f"{unsaved} chart(s) or image(s) not saved; give --save-dir to keep them")


def _source(file: str | None, code: str | None) -> str:
    if (file is None) == (code is None):
        raise typer.BadParameter("give a file, or code with -c (one of them)")
    if "-" in (file, code):
        return sys.stdin.read()
    if code is not None:
        return code
    try:
        return pathlib.Path(str(file)).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {file}: {error}") from error


def _content(kind: str, value: Any) -> bytes | None:
    if not value:
        return None
    if kind not in _BINARY:
        return (value if isinstance(value, str) else json.dumps(value)).encode()
    try:
        return base64.b64decode(value, validate=False)
    except (binascii.Error, ValueError):
        terminal.complain(f"a {kind} result is not valid base64; it was not saved")
        return None


def _chart(result: "models.Result") -> dict[str, Any]:
    return {"chart": result.chart.to_dict()} if result.chart else {}
