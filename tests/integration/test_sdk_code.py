"""The official code-interpreter SDK for Python: state, results of every kind, errors, contexts, interrupts."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator

import e2b
import pytest
import pytest_asyncio
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support import servers


@pytest_asyncio.fixture
async def async_sandbox(server: servers.Server) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=120)
    yield made
    await made.kill()


def test_state_is_kept_and_counted(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context()
    first = sandbox.run_code("x = 41", context=context)
    assert (first.error, first.results, first.execution_count) == (None, [], 1)
    second = sandbox.run_code("x + 1", context=context)
    assert (second.text, second.execution_count) == ("42", 2)
    assert second.results[0].is_main_result


def test_output_is_streamed_in_order(sandbox: Sandbox) -> None:
    seen: list[tuple[str, float]] = []
    code = """
import sys, time
print('a')
time.sleep(0.3)
print('b', file=sys.stderr)
time.sleep(0.1)
print('c', end='')
"""
    execution = sandbox.run_code(
        code,
        on_stdout=lambda m: seen.append((m.line, time.monotonic())),
        on_stderr=lambda m: seen.append((m.line, time.monotonic())),
    )
    assert "".join(text for text, _ in seen) == "a\nb\nc"
    assert seen[-1][1] - seen[0][1] > 0.2
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("a\nc", "b\n")


def test_results_of_every_kind(sandbox: Sandbox) -> None:
    code = """
from IPython.display import HTML, Markdown, SVG, Latex, JSON, Javascript, display
display(HTML("<b>h</b>")); display(Markdown("# m")); display(SVG("<svg xmlns='http://www.w3.org/2000/svg'/>"))
display(Latex("$x$")); display(JSON({"a": [1]})); display(Javascript("1"))
"""
    results = sandbox.run_code(code).results
    assert [r.is_main_result for r in results] == [False] * 6
    assert results[0].html == "<b>h</b>"
    assert results[1].markdown == "# m"
    assert "svg" in results[2].svg
    assert results[3].latex == "$x$"
    assert results[4].json == {"a": [1]}
    assert results[5].javascript == "1"


def test_quotes_around_text_are_stripped(sandbox: Sandbox) -> None:
    assert sandbox.run_code("'plain'").text == "plain"


def test_a_chart_is_a_picture_and_data(sandbox: Sandbox) -> None:
    code = """
import matplotlib.pyplot as plt
plt.bar(["a", "b"], [3, 7]); plt.title("T"); plt.xlabel("kind"); plt.ylabel("weight (kg)")
plt.show()
"""
    (result,) = sandbox.run_code(code).results
    assert base64.b64decode(result.png).startswith(b"\x89PNG")
    assert result.chart.type.value == "bar"
    assert result.chart.title == "T"
    assert [(bar.label, bar.value) for bar in result.chart.elements] == [("a", 3), ("b", 7)]
    assert result.chart.y_unit == "kg"


def test_a_data_frame_is_data(sandbox: Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'n': [1, 2], 'd': pd.to_datetime(['2026-01-01', '2026-01-02'])})"
    (result,) = sandbox.run_code(code).results
    assert result.data["n"] == [1, 2]
    assert result.data["d"][0].startswith("2026-01-01")
    assert "<table" in result.html


def test_an_image_is_shown(sandbox: Sandbox) -> None:
    (result,) = sandbox.run_code("from PIL import Image\nImage.new('RGB', (9, 9), 'red')").results
    assert base64.b64decode(result.png).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "name", "in_traceback"),
    [
        ("1/0", "ZeroDivisionError", "1/0"),
        ("def f(:", "SyntaxError", "def f(:"),
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("import nosuchmodule", "ModuleNotFoundError", "nosuchmodule"),
    ],
)
def test_errors_are_told(sandbox: Sandbox, code: str, name: str, in_traceback: str) -> None:
    execution = sandbox.run_code(code)
    assert execution.error is not None
    assert execution.error.name == name
    assert in_traceback in execution.error.traceback
    assert sandbox.run_code("1").text == "1"


def test_environment(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import os; os.environ['GLOBAL']").text == "from create"
    assert (
        sandbox.run_code("os.environ['GLOBAL'], os.environ['ONCE']", envs={"GLOBAL": "a", "ONCE": "b"}).text
        == "('a', 'b')"
    )
    assert sandbox.run_code("os.environ['GLOBAL'], 'ONCE' in os.environ").text == "('from create', False)"


def test_contexts_are_apart(sandbox: Sandbox) -> None:
    here = sandbox.create_code_context(cwd="/tmp")
    there = sandbox.create_code_context(cwd="/home/user")
    sandbox.run_code("v = 'here'", context=here)
    assert sandbox.run_code("import os; os.getcwd()", context=here).text == "/tmp"
    assert (
        sandbox.run_code("'v' in globals(), __import__('os').getcwd()", context=there).text == "(False, '/home/user')"
    )
    assert {here.id, there.id} <= {context.id for context in sandbox.list_code_contexts()}
    sandbox.restart_code_context(here)
    assert sandbox.run_code("'v' in globals()", context=here).text == "False"
    sandbox.remove_code_context(there)
    with pytest.raises(e2b.NotFoundException):
        sandbox.run_code("1", context=there)


def test_shell_and_pip_inside_code(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("!echo from the shell\n%cd /tmp\n%pip --version")
    text = "".join(execution.logs.stdout)
    assert "from the shell" in text
    assert "pip " in text
    assert execution.error is None


PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tinypkg"
version = "1"
""",
    "backend.py": """
import zipfile

FILES = {
    "tinypkg/__init__.py": "answer = 42",
    "tinypkg-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: tinypkg\\nVersion: 1\\n",
    "tinypkg-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "tinypkg-1.dist-info/RECORD": "",
}

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(directory + "/tinypkg-1-py3-none-any.whl", "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    return "tinypkg-1-py3-none-any.whl"
""",
}


def test_pip_installs_a_package(sandbox: Sandbox) -> None:
    for name, text in PACKAGE.items():
        sandbox.files.write(f"/tmp/pkg/{name}", text)
    execution = sandbox.run_code("%pip install --no-build-isolation --no-index /tmp/pkg")
    assert execution.error is None, execution.error
    assert sandbox.run_code("import tinypkg; tinypkg.answer").text == "42", execution.logs


def test_a_client_timeout_interrupts(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context()
    with pytest.raises(e2b.TimeoutException):
        sandbox.run_code("import time; time.sleep(300)", context=context, timeout=1)
    started = time.monotonic()
    assert sandbox.run_code("'free again'", context=context, timeout=15).text == "free again"
    assert time.monotonic() - started < 10


def test_death_of_a_context_is_told_and_healed(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context()
    sandbox.run_code("v = 1", context=context)
    died = sandbox.run_code("import os; os._exit(9)", context=context)
    assert died.error is not None
    assert died.error.name == "ContextRestarting"  # the name that clients of E2B know
    assert sandbox.run_code("'v' in globals()", context=context).text == "False"


def test_an_endless_printer_delays_nobody(sandbox: Sandbox) -> None:
    context = sandbox.create_code_context()
    with pytest.raises(e2b.TimeoutException):
        sandbox.run_code("while True: print('x' * 1000)", context=context, timeout=2)
    assert sandbox.run_code("1+1").text == "2"


async def test_async_code_in_two_contexts_at_once(async_sandbox: AsyncSandbox) -> None:
    one, two = await async_sandbox.create_code_context(), await async_sandbox.create_code_context()
    started = time.monotonic()
    both = await asyncio.gather(
        async_sandbox.run_code("import time; time.sleep(1); 1", context=one),
        async_sandbox.run_code("import time; time.sleep(1); 2", context=two),
    )
    assert [execution.text for execution in both] == ["1", "2"]
    assert time.monotonic() - started < 1.9


async def test_async_results_and_errors(async_sandbox: AsyncSandbox) -> None:
    seen: list[str] = []

    async def on_stdout(message: object) -> None:
        seen.append(str(message))

    execution = await async_sandbox.run_code("print('hi'); [1, 2]", on_stdout=on_stdout)
    assert execution.results[0].json == [1, 2] or execution.text == "[1, 2]"
    assert "".join(execution.logs.stdout) == "hi\n"
    assert seen
    failed = await async_sandbox.run_code("undefined_name")
    assert failed.error is not None
    assert failed.error.name == "NameError"


def test_two_sandboxes_have_different_random_numbers(server: servers.Server) -> None:
    code = "import random, numpy, os, uuid\n[random.random(), float(numpy.random.rand()), os.urandom(4).hex(), str(uuid.uuid4())]"
    texts = []
    for _ in range(2):
        with Sandbox.create(timeout=30) as made:
            texts.append(made.run_code(code).text)
    first, second = (text.strip("[]").split(",") for text in texts)
    assert all(one != other for one, other in zip(first, second, strict=True)), texts
