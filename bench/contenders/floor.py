"""The kernel's floor: `floor.c`, compiled here. It does what a sandbox costs the kernel, and nothing else."""

import pathlib
import subprocess

from bench import bounded
from bench.contenders import contract

SOURCE = pathlib.Path(__file__).resolve().parent.parent / "floor.c"


class Floor(contract.Contender):
    key = "floor"
    name = "kernel floor (C)"
    how = "the same namespaces, id map, overlays, proc and cgroups, made by a static C program; no sandbox software"
    metrics = (contract.READY,)

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._cgroups = ""

    def missing(self) -> str | None:
        return contract.not_installed(gcc="gcc libc6-dev")

    def version(self) -> str:
        return f"cgroups joined: {self._cgroups}" if self._cgroups else ""

    def prepare(self, work: pathlib.Path) -> None:
        binary = compile_floor(work)
        self._process = subprocess.Popen(
            [str(binary), str(work), "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._cgroups = self._line().removeprefix("cgroups:").strip()

    def measure(self, metric: str) -> int:
        process = self._process
        if process is None or process.stdin is None:
            raise contract.MeasureError("floor is not running")
        try:
            process.stdin.write("go\n")
        except BrokenPipeError as error:
            raise contract.MeasureError(f"floor ended with {process.poll()}") from error
        line = self._line()
        if not line.isdigit():
            raise contract.MeasureError(f"floor said {line!r}")
        return int(line)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            bounded.close_input_and_wait(process)

    def _line(self) -> str:
        if self._process is None or self._process.stdout is None:
            raise contract.MeasureError("floor is not running")
        return bounded.read_line(self._process.stdout)


def compile_floor(work: pathlib.Path) -> pathlib.Path:
    """The program, static, with the lower directory of its root beside it."""
    binary = work / "floor"
    argv = [contract.path_of("gcc"), "-O2", "-static", "-Wall", "-Wextra", "-o", str(binary), str(SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise contract.PrepareError(f"floor.c does not compile here: {done.stderr.strip()[:400]}")
    # 0755 up to here: inside its user namespace, root is nobody to these directories.
    work.chmod(0o755)
    for name in ("usr", "proc", "etc", "dev"):
        (work / "lower" / name).mkdir(parents=True)
    return binary
