"""Contenders that are one command: a plain process, for comparison, and bubblewrap."""

from bench import machine, spawn
from bench.contenders import contract

# Debian's layout: the programs are in /usr, and what points at them from / are links.
_BWRAP = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--clearenv", "--setenv", "PATH", "/usr/bin"),  # noqa: S108 (a path inside the sandbox)
)


class Process(contract.Contender):
    key = "process"
    name = "plain process (no isolation)"
    how = "`sh`, or `python3`, started on the host; what remains when all isolation is taken away"

    def missing(self) -> str | None:
        return contract.not_installed(python3="python3")

    def version(self) -> str:
        return machine.first_line([contract.path_of("python3"), "--version"])

    def measure(self, metric: str) -> int:
        argv, expected = contract.command(metric)
        return spawn.time_to_output(argv, expected)


class Bubblewrap(contract.Contender):
    key = "bubblewrap"
    name = "bubblewrap"
    how = "`bwrap --unshare-all`, the host's /usr read-only, new /proc, /dev and /tmp; no cgroup, no seccomp"

    def missing(self) -> str | None:
        return contract.not_installed(bwrap="bubblewrap", python3="python3")

    def version(self) -> str:
        return machine.first_line([contract.path_of("bwrap"), "--version"])

    def measure(self, metric: str) -> int:
        argv, expected = contract.command(metric)
        return spawn.time_to_output([contract.path_of("bwrap"), *_BWRAP, *argv], expected)
