"""How the demo is shown: steps with what was seen and how long it took. A step that sees something else fails the demo."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import rich.console
import rich.rule
import rich.table
import rich.text

WIDTH = 100


class UnexpectedError(Exception):
    """Something was seen that must not be, or was not seen that must be."""


@dataclasses.dataclass
class Step:
    """One step while it runs: what it has to show for itself, and its time if not all of it counts."""

    title: str
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float | None = None

    def note(self, text: object) -> None:
        """A line of what was observed."""
        self.notes.append(str(text))

    def expect(self, seen: bool, what: str) -> None:
        """Fails the demo unless `seen`."""
        if not seen:
            raise UnexpectedError(what)


class Stage:
    """Prints the steps, and remembers their times."""

    def __init__(self) -> None:
        self.console = rich.console.Console(highlight=False, markup=False, emoji=False)
        self.times: list[tuple[str, float]] = []

    def chapter(self, title: str) -> None:
        """A heading."""
        self.console.print()
        self.console.print(rich.rule.Rule(title, align="left", style="cyan"), width=WIDTH)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Runs one step, and prints it with its measured time when it is over."""
        step = Step(title)
        started = time.perf_counter()
        with self.console.status(title) if self.console.is_terminal else contextlib.nullcontext():
            try:
                yield step
            except Exception:
                self._print(step, time.perf_counter() - started, "✘", "bold red")
                raise
            seconds = time.perf_counter() - started if step.seconds is None else step.seconds
        self.times.append((title, seconds))
        self._print(step, seconds, "✔", "bold green")

    def _print(self, step: Step, seconds: float, mark: str, style: str) -> None:
        line = rich.table.Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=1)
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True)
        line.add_row(
            rich.text.Text(mark, style=style),
            rich.text.Text(step.title, style="bold"),
            rich.text.Text(spoken(seconds), style="cyan"),
        )
        for note in step.notes:
            line.add_row("", rich.text.Text(note, style="dim"), "")
        self.console.print(line, width=WIDTH)


def spoken(seconds: float) -> str:
    """A duration with three digits: `4.21 ms`, `318 ms`, `2.50 s`."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
