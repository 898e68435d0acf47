"""What the harness asks of anything it measures, and the two things that are measured."""

import abc
import pathlib
import shutil

READY = "ready"
FIRST_RESULT = "first_result"
METRICS = (READY, FIRST_RESULT)

# Every contender that is a command proves the same two things with the same two programs.
READY_ARGV = ("/bin/sh", "-c", "echo ready")
READY_OUTPUT = b"ready"
FIRST_ARGV = ("/usr/bin/python3", "-c", "print(1+1)")
FIRST_OUTPUT = b"2"


class MeasureError(Exception):
    """This run failed. It is counted, shown, and the next one is tried."""


class PrepareError(Exception):
    """The contender cannot be measured on this machine; its row says why."""


class Contender(abc.ABC):
    """One way to get a sandbox. Used by one thread: `missing`, `prepare`, many `measure`, `close`."""

    key: str
    name: str
    how: str
    metrics: tuple[str, ...] = METRICS

    @abc.abstractmethod
    def missing(self) -> str | None:
        """What this host lacks and how to get it, or None."""

    def version(self) -> str:
        """The version measured, as the program says it."""
        return ""

    def prepare(self, work: pathlib.Path) -> None:  # noqa: B027 (nothing to do is the usual case)
        """Whatever is done once, for all runs; `work` is an empty directory of its own. Raises PrepareError."""

    @abc.abstractmethod
    def measure(self, metric: str) -> int:
        """Nanoseconds of one run. What it made is gone on return, and that is not in the time. Raises MeasureError."""

    def close(self) -> None:  # noqa: B027 (as above)
        """End and remove all that was started. Called always, after a half-done `prepare` too; twice does no harm."""


def not_installed(**programs: str) -> str | None:
    """For `program="package"`: the packages whose programs are not here, in words, or None."""
    packages = sorted({package for program, package in programs.items() if find(program) is None})
    return f"not installed: apt-get install {' '.join(packages)}" if packages else None


def find(program: str) -> str | None:
    """The full path of a program: the distribution's own first, so that tools of one release meet each other."""
    return shutil.which(program, path="/usr/bin:/usr/sbin:/bin:/sbin") or shutil.which(program)


def path_of(program: str) -> str:
    """The full path of a program that `missing` has already looked for."""
    found = find(program)
    if found is None:
        raise PrepareError(f"{program} was here and is gone")
    return found


def command(metric: str) -> tuple[tuple[str, ...], bytes]:
    """The program to run for this metric, and what it prints."""
    return (READY_ARGV, READY_OUTPUT) if metric == READY else (FIRST_ARGV, FIRST_OUTPUT)
