"""OCI runtimes, runc and runsc (gVisor), on one bundle: what `runc spec` writes, with the host's /usr as root."""

import itertools
import json
import os
import pathlib
import subprocess
from typing import Any

from bench import machine, spawn
from bench.contenders import contract

_ENVIRONMENT = ["PATH=/usr/bin:/bin"]


class _Oci(contract.Contender):
    """Shared by both; only the command differs."""

    program: str

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._work: pathlib.Path | None = None

    def missing(self) -> str | None:
        return contract.not_installed(**{"runc": "runc", "python3": "python3", self.program: self.program})

    def version(self) -> str:
        return machine.first_line([contract.path_of(self.program), "--version"])

    def prepare(self, work: pathlib.Path) -> None:
        for metric in contract.METRICS:
            write_bundle(work / metric, contract.command(metric)[0])
        self._work = work

    def measure(self, metric: str) -> int:
        if self._work is None:
            raise contract.MeasureError(f"{self.program} has no bundle")
        # Its own id: what a run that was stopped half-way leaves must not be met by the next.
        instance = f"glovebox-bench-{os.getpid()}-{next(self._numbers)}"
        argv = [*self._command(), "run", "--bundle", str(self._work / metric), instance]
        try:
            return spawn.time_to_output(argv, contract.command(metric)[1])
        except BaseException:
            subprocess.run([*self._command(), "delete", "--force", instance], capture_output=True, timeout=30)
            raise

    def _command(self) -> list[str]:
        return [contract.path_of(self.program), "--root", str(self._work and self._work / "state"), *self._flags()]

    def _flags(self) -> list[str]:
        return []


class Runc(_Oci):
    key = "runc"
    name = "runc"
    program = "runc"
    how = (
        "`runc run` on what `runc spec` writes, plus a cgroup namespace; root is the host's /usr, read-only; no seccomp"
    )


class Runsc(_Oci):
    key = "runsc"
    name = "gVisor (runsc)"
    program = "runsc"
    how = "the bundle of runc, with `runsc --platform=ptrace --network=none --ignore-cgroups`"

    def _flags(self) -> list[str]:
        return ["--platform=ptrace", "--network=none", "--ignore-cgroups"]


def write_bundle(bundle: pathlib.Path, argv: tuple[str, ...]) -> None:
    """A directory that `run --bundle` takes: config.json, and a rootfs with the mount points and Debian's links."""
    rootfs = bundle / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (rootfs / name).symlink_to(f"usr/{name}")
    try:
        subprocess.run([contract.path_of("runc"), "spec"], cwd=bundle, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise contract.PrepareError("runc spec does not work here") from error
    path = bundle / "config.json"
    path.write_text(json.dumps(adapt(json.loads(path.read_text()), argv)))


def adapt(config: dict[str, Any], argv: tuple[str, ...]) -> dict[str, Any]:
    """What `runc spec` wrote, made to run our program in the host's /usr, in a cgroup that is easily found again."""
    process = {**config["process"], "terminal": False, "args": list(argv), "env": _ENVIRONMENT}
    usr = {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}
    tmp = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}  # noqa: S108
    namespaces = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "cgroup"]
    linux = {
        **config["linux"],
        "namespaces": [*namespaces, {"type": "cgroup"}],
        "cgroupsPath": f"/glovebox-bench-{os.getpid()}/oci",
    }
    return {**config, "process": process, "linux": linux, "mounts": [*config["mounts"], usr, tmp]}
