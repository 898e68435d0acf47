"""An agent's session with Glovebox, through the unmodified E2B SDK: `make demo`.

Starts a server of its own, works as an agent does, then turns hostile. Every line tells what was just measured or
seen; anything unexpected ends the demo with exit code 1.
"""

import base64
import os
import pathlib
import sys
import time

import e2b_code_interpreter as e2b
import hostile
from stage import Stage, UnexpectedError, spoken

from glovebox import control, private

_PNG = b"\x89PNG\r\n\x1a\n"
_OUTPUT = pathlib.Path("demo-output")

_CHART = """
import matplotlib.pyplot as plt
import numpy as np
x = np.linspace(0, 4 * np.pi, 400)
figure, axes = plt.subplots(figsize=(8, 4))
for damping in (0.05, 0.15, 0.3):
    axes.plot(x, np.exp(-damping * x) * np.cos(x), label=f"damping {damping}")
axes.set_title("Drawn by code in a sandbox")
axes.set_xlabel("time (s)")
axes.set_ylabel("displacement (cm)")
axes.legend()
plt.show()
"""


def main() -> int:
    """Plays the demo; its exit code."""
    stage = Stage()
    try:
        _play(stage)
    except UnexpectedError as error:
        stage.console.print(f"\nThe demo failed: {error}", style="bold red")
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        stage.console.print("\nThe demo failed:", style="bold red")
        stage.console.print_exception(width=100)
        return 1
    return 0


def _play(stage: Stage) -> None:
    stage.chapter("Glovebox: a server, started for this demo")
    started = time.perf_counter()
    with private.server() as target:
        with stage.step("Start the server") as step:
            step.seconds = time.perf_counter() - started
            step.note(f"{target.url}, in a temporary directory")
        # All that the SDK is told: it is the package from the registry, unmodified.
        os.environ.update(target.environment())
        os.environ.pop("E2B_DEBUG", None)
        sandbox = _agent_session(stage)
        _hostile_session(stage, sandbox)
        with stage.step("Kill the sandbox") as step:
            step.expect(sandbox.kill(), "kill must find the sandbox")
            step.expect(not sandbox.is_running(), "a killed sandbox must not answer")
        with control.Control(target) as client, stage.step("Look what is left") as step:
            left = list(client.sandboxes())
            step.expect(not left, f"sandboxes are left: {left}")
            step.note("no sandbox")
    _goodbye(stage)


def _agent_session(stage: Stage) -> e2b.Sandbox:
    stage.chapter("An agent at work, through the e2b_code_interpreter package")
    with stage.step("Create a sandbox") as step:
        sandbox = e2b.Sandbox.create(timeout=600)
        step.note(sandbox.sandbox_id)
    with stage.step("Run code") as step:
        execution = sandbox.run_code("answer = 41\nprint('hello from', __import__('platform').system())")
        step.expect(execution.error is None, f"the code failed: {execution.error}")
        said = "".join(execution.logs.stdout).strip()
        step.expect(said == "hello from Linux", f"it printed {said!r}")
        step.note(f"print → {said}")
    with stage.step("Run code that builds on it") as step:
        text = sandbox.run_code("answer + 1").text
        step.expect(text == "42", f"answer + 1 gave {text!r}")
        step.note(f"answer + 1 → {text}")
    _draw(stage, sandbox)
    _files(stage, sandbox)
    _stream(stage, sandbox)
    _background(stage, sandbox)
    return sandbox


def _draw(stage: Stage, sandbox: e2b.Sandbox) -> None:
    with stage.step("Draw a chart") as step:
        execution = sandbox.run_code(_CHART)
        step.expect(execution.error is None, f"the code failed: {execution.error}")
        pictures = [result.png for result in execution.results if result.png]
        step.expect(len(pictures) == 1, f"one PNG was expected, not {len(pictures)}")
        png = base64.b64decode(pictures[0])
        step.expect(png.startswith(_PNG), "it is not a PNG")
        _OUTPUT.mkdir(exist_ok=True)
        (_OUTPUT / "chart.png").write_bytes(png)
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        step.note(f"{_OUTPUT / 'chart.png'}: {width} by {height}, {len(png):,} bytes")


def _files(stage: Stage, sandbox: e2b.Sandbox) -> None:
    table = "city,degrees\n" + "".join(f"city{number},{number % 40}\n" for number in range(1000))
    expected = sum(number % 40 for number in range(1000))
    with stage.step("Upload a file, let code change it, download the result") as step:
        sandbox.files.write("data.csv", table)
        program = (
            "import csv, json\n"
            "rows = list(csv.DictReader(open('/home/user/data.csv')))\n"
            "total = sum(int(row['degrees']) for row in rows)\n"
            "json.dump({'rows': len(rows), 'total': total}, open('/home/user/total.json', 'w'))"
        )
        execution = sandbox.run_code(program)
        step.expect(execution.error is None, f"the code failed: {execution.error}")
        result = sandbox.files.read("total.json")
        step.expect(result == f'{{"rows": 1000, "total": {expected}}}', f"total.json holds {result!r}")
        step.note(f"{len(table):,} bytes up, total.json down: {result}")


def _stream(stage: Stage, sandbox: e2b.Sandbox) -> None:
    with stage.step("A shell command, its output streamed") as step:
        started = time.perf_counter()
        arrivals: list[tuple[float, str]] = []
        result = sandbox.commands.run(
            "for n in 1 2 3; do echo line $n; sleep 0.3; done",
            on_stdout=lambda text: arrivals.append((time.perf_counter() - started, text)),
        )
        total = time.perf_counter() - started
        step.expect(result.stdout == "line 1\nline 2\nline 3\n", f"it printed {result.stdout!r}")
        step.expect(total - arrivals[0][0] > 0.6, "the first line must arrive long before the end")
        for moment, text in arrivals:
            step.note(f"after {spoken(moment):>7}  {text.strip()}")


def _background(stage: Stage, sandbox: e2b.Sandbox) -> None:
    with stage.step("A web server in the background") as step:
        server = sandbox.commands.run("python3 -m http.server 8000", background=True, timeout=0)
        # The first attempts may come before it listens.
        fetch = (
            "import time, urllib.request\n"
            "for attempt in range(200):\n"
            "    try:\n"
            "        page = urllib.request.urlopen('http://127.0.0.1:8000/', timeout=5).read().decode(); break\n"
            "    except OSError: time.sleep(0.02)\n"
            "'data.csv' in page, len(page)"
        )
        text = sandbox.run_code(fetch).text or ""
        step.expect(text.startswith("(True, "), f"fetching its page gave {text!r}")
        step.expect(server.pid in [process.pid for process in sandbox.commands.list()], "it must be listed")
        step.note(f"pid {server.pid} lists the uploaded files; the page was fetched from inside")
        step.expect(server.kill(), "kill must find it")


def _hostile_session(stage: Stage, sandbox: e2b.Sandbox) -> None:
    stage.chapter("The same agent turns hostile")
    hostile.fork_bomb(stage, sandbox)
    hostile.memory_bomb(stage, sandbox)
    hostile.read_host_files(stage, sandbox)
    hostile.dial_out(stage, sandbox)


def _goodbye(stage: Stage) -> None:
    stage.chapter("Go on")
    stage.console.print("The demo's server and all it made are gone. To have one of your own:\n")
    for command, why in (
        ("glovebox serve", "start a server (in another terminal)"),
        ('eval "$(glovebox env)"', "point the E2B SDKs and CLI at it"),
        ("python your_agent.py", "any program that uses the SDK"),
        ('glovebox run -c "print(1 + 1)"', "or just run some code"),
    ):
        stage.console.print(f"    {command:<34}{why}")


if __name__ == "__main__":
    sys.exit(main())
