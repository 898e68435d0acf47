"""The command `python -m bench`: chooses contenders, runs the rounds, keeps, renders and prints the results."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from types import FrameType
from typing import Annotated

import typer
from rich import console, progress, table

from bench import footprint, leaks, machine, plots, render, results, rounds, series, server, startup
from bench.contenders import command, contract, docker, floor, glovebox, oci

PUBLISHED_RUNS = 200
_PAGE = machine.ROOT / "docs/performance.md"
_README = machine.ROOT / "README.md"
_PUBLISHED = machine.ROOT / "docs/performance"
_TRIED = machine.ROOT / "build/bench"
_PACKAGES = ("bubblewrap", "containerd", "docker.io", "gcc", "libc6-dev", "runc", "runsc")

# Where no one looks (a log), a table is as wide as it must be.
out = console.Console() if sys.stdout.isatty() else console.Console(width=120)
app = typer.Typer(add_completion=False)


@app.command()
def main(
    runs: Annotated[int, typer.Option(min=1, help="Rounds; a table is published from 200 on.")] = PUBLISHED_RUNS,
    only: Annotated[str, typer.Option(help="Contenders to measure, by key, with commas between.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, few sandboxes: to see that it works.")] = False,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before, that do not count.")] = 3,
    settle_ms: Annotated[int, typer.Option(min=0, help="Pause before each run.")] = 20,
    sandboxes: Annotated[int, typer.Option(min=0, help="How many at once for memory; 0: leave it out.")] = 100,
    setup: Annotated[bool, typer.Option("--setup", help="As root: install the others' Debian packages.")] = False,
    only_render: Annotated[bool, typer.Option("--render", help="Only render what was last published.")] = False,
) -> None:
    """Measure sandboxes, here and elsewhere, until they are ready and until their first result."""
    if only_render:
        publish(results.load(_PUBLISHED / "latest.json"))
        return
    if setup:
        install()
    if quick:
        runs, sandboxes, warmup = min(runs, 5), min(sandboxes, 5), min(warmup, 1)
    signal.signal(signal.SIGTERM, _interrupt)
    data = measure(runs, only, warmup, settle_ms, sandboxes)
    show(data)
    own_measured = all(render.p50(data, key, metric) for metric, key in render.BASELINE.items())
    if runs >= PUBLISHED_RUNS and not only and own_measured:
        data.save(_PUBLISHED / "latest.json")
        publish(data)
    else:
        data.save(_TRIED / "latest.json")
        plots.write(data, _TRIED)
        out.print(
            f"Kept in {_TRIED}; docs/ is written by {PUBLISHED_RUNS} rounds or more, of all, Glovebox among them."
        )
    if data.leaks:
        raise typer.Exit(1)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def install() -> None:
    """The Debian packages of the others; nothing where apt or root is missing: their rows will say so."""
    if os.geteuid() or shutil.which("apt-get") is None:
        out.print("--setup needs root and apt-get; what is missing stays missing")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *_PACKAGES]):
        subprocess.run(["apt-get", *arguments], env=environment, stdout=subprocess.DEVNULL, check=False)


def every(subject: server.Server) -> list[contract.Contender]:
    """All contenders, in the order of the README's table."""
    return [
        floor.Floor(),
        glovebox.Http(subject),
        glovebox.Sdk(subject),
        command.Process(),
        command.Bubblewrap(),
        oci.Runc(),
        docker.Docker(),
        oci.Runsc(),
    ]


def chosen(contenders: list[contract.Contender], only: str) -> list[contract.Contender]:
    """Those that were asked for, all by default."""
    wanted = {key for key in only.split(",") if key}
    known = {contender.key for contender in contenders}
    if unknown := wanted - known:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(sorted(known))}")
    return [contender for contender in contenders if not wanted or contender.key in wanted]


def measure(runs: int, only: str, warmup: int, settle_ms: int, sandboxes: int) -> results.Results:
    """The whole run, from a clean start to a clean end, however it ends."""
    subject = server.Server()
    contenders = chosen(every(subject), only)
    date, commit, host = results.begin()
    leaks.adopt_orphans()
    work = pathlib.Path(tempfile.mkdtemp(prefix="glovebox-bench-"))
    work.chmod(0o711)  # root inside a user namespace is nobody here, and must get through to its lower directories
    left: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: left.extend(_clean(work, subject)))
            missing = prepare(contenders, work, stack)
            ready = [contender for contender in contenders if missing[contender.key] is None]
            versions = {contender.key: contender.version() for contender in ready}
            before = startup.read(subject)
            measured = _rounds(ready, runs, warmup, settle_ms)
            histogram = startup.between(before, startup.read(subject))
            used, not_measured = _memory(subject, sandboxes)
    except KeyboardInterrupt:
        out.print("[red]interrupted[/]; nothing is kept")
        for line in left:
            out.print(f"left behind: {line}")
        raise typer.Exit(130) from None
    return results.Results(
        date,
        commit,
        host,
        {"runs": runs, "warmup": warmup, "settle_ms": settle_ms, "sandboxes": sandboxes},
        [results.Entry(c.key, c.name, c.how, versions.get(c.key, ""), missing[c.key]) for c in contenders],
        measured,
        used,
        not_measured,
        histogram,
        left,
    )


def prepare(
    contenders: list[contract.Contender], work: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, str | None]:
    """Make them ready; for those that cannot be, why."""
    missing: dict[str, str | None] = {}
    for contender in contenders:
        missing[contender.key] = contender.missing()
        if missing[contender.key] is None:
            stack.callback(contender.close)
            own = work / contender.key
            own.mkdir(0o711)
            try:
                contender.prepare(own)
            except (contract.PrepareError, contract.MeasureError) as error:
                missing[contender.key] = str(error)
        state = missing[contender.key]
        out.print(f"{contender.name}: {'ready' if state is None else f'[yellow]{state}[/]'}", highlight=False)
    return missing


def _rounds(ready: list[contract.Contender], runs: int, warmup: int, settle_ms: int) -> list[series.Series]:
    total = (runs + warmup) * sum(len(contender.metrics) for contender in ready)
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=out) as bar:
        task = bar.add_task("rounds", total=total)

        def step(number: str, current: series.Series) -> None:
            bar.update(task, advance=1, description=f"{number} {current.contender} {current.metric}")

        return rounds.run(ready, runs, warmup, settle_ms / 1000, step)


def _memory(subject: server.Server, count: int) -> tuple[footprint.Footprint | None, str | None]:
    if not subject.url or not count:
        return None, "not asked for" if not count else "the server was not running"
    try:
        return footprint.measure(subject, count), None
    except contract.MeasureError as error:
        return None, str(error)


def _clean(work: pathlib.Path, subject: server.Server) -> list[str]:
    """The last thing, after every contender was closed."""
    found = leaks.sweep(work, subject)
    shutil.rmtree(work, ignore_errors=True)
    return found + ([f"directory {work}"] if work.exists() else [])


def show(data: results.Results) -> None:
    """The tables, on the console."""
    for metric in contract.METRICS:
        shown = table.Table(title=render.TITLES[metric].replace("`", ""), title_justify="left")
        for name in ("", "p50 ms", "p90 ms", "p99 ms", "runs", "failures", "to Glovebox", "to floor"):
            shown.add_column(
                name, justify="right" if name else "left", no_wrap=bool(name), max_width=None if name else 46
            )
        for row in render.rows(data, metric):
            shown.add_row(*row)
        out.print(shown)
    out.print(render.memory_text(data).replace("**", ""), markup=False, highlight=False)
    for line in data.leaks:
        out.print(f"[red]left behind, removed now:[/] {line}")


def publish(data: results.Results) -> None:
    """Figures, page and README, all from the results."""
    plots.write(data, _PUBLISHED)
    for path, text in ((_PAGE, render.section(data)), (_README, render.snippet(data))):
        done = render.update(path, text)
        out.print(f"{path.name}: {'updated' if done else f'no {render.BEGIN} … {render.END} in it, left as it is'}")


if __name__ == "__main__":
    sys.exit(app())
