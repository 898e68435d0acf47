"""Docker, with a daemon of our own: its containerd, sockets, data and cgroups are apart from those of the host's."""

import json
import os
import pathlib
import subprocess
import tarfile

from bench import bounded, machine, spawn
from bench.contenders import contract

_IMAGE = "glovebox-bench:latest"
_START_TIMEOUT_S = 60.0

_CONTAINERD = """version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{address}"
"""


class Docker(contract.Contender):
    key = "docker"
    name = "Docker"
    how = (
        "`docker run --rm --network none`, on a dockerd of its own with runc and overlay2; "
        "an image of the host's sh and Python; Docker's default seccomp profile"
    )

    def __init__(self) -> None:
        self._work: pathlib.Path | None = None
        self._processes: list[subprocess.Popen[str]] = []

    def missing(self) -> str | None:
        if os.geteuid():
            return "dockerd needs root"
        return contract.not_installed(
            docker="docker.io", dockerd="docker.io", containerd="containerd", runc="runc", python3="python3"
        )

    def version(self) -> str:
        versions = [machine.first_line([contract.path_of(p), "--version"]) for p in ("dockerd", "docker")]
        return f"daemon: {versions[0]}; client: {versions[1]}"

    def prepare(self, work: pathlib.Path) -> None:
        self._work = work
        (work / "exec").mkdir()
        self._start_containerd(work)
        self._start_dockerd(work)
        image = work / "image.tar"
        write_image(image)
        self._docker("import", str(image), _IMAGE)
        image.unlink()

    def measure(self, metric: str) -> int:
        argv, expected = contract.command(metric)
        return spawn.time_to_output([*self._client(), "run", "--rm", "--network", "none", _IMAGE, *argv], expected)

    def close(self) -> None:
        try:
            if self._processes and self._processes[-1].poll() is None and (left := self._docker("ps", "-aq").split()):
                self._docker("rm", "--force", *left)
        except (OSError, subprocess.SubprocessError, contract.PrepareError):
            pass  # the daemon does not answer: ending it, and the search for leaks afterwards, must do
        finally:
            while self._processes:
                bounded.end(self._processes.pop())

    def _start_containerd(self, work: pathlib.Path) -> None:
        # A containerd of our own: dockerd would else take the host's, and leave its traces there.
        address = work / "containerd.sock"
        config = work / "containerd.toml"
        config.write_text(_CONTAINERD.format(root=work / "ctd", state=work / "ctd-state", address=address))
        self._start(work, "containerd", "--config", str(config))
        bounded.until(lambda: self._listens(address), "containerd listens", _START_TIMEOUT_S)

    def _start_dockerd(self, work: pathlib.Path) -> None:
        settings = work / "daemon.json"
        settings.write_text(json.dumps({}))  # not the host's /etc/docker/daemon.json
        flags = {
            "config-file": settings,
            "data-root": work / "data",
            "exec-root": work / "exec",
            "pidfile": work / "dockerd.pid",
            "host": f"unix://{work}/docker.sock",
            "containerd": work / "containerd.sock",
            "cgroup-parent": f"/glovebox-bench-{os.getpid()}",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
        }
        self._start(work, "dockerd", *(f"--{name}={value}" for name, value in flags.items()))
        bounded.until(self._answers, "dockerd answers", _START_TIMEOUT_S)

    def _start(self, work: pathlib.Path, program: str, *arguments: str) -> None:
        with (work / f"{program}.log").open("w") as log:
            argv = [contract.path_of(program), *arguments]
            # A session of its own: Ctrl-C reaches the harness, which ends it after its containers.
            process = subprocess.Popen(argv, stdout=log, stderr=log, text=True, start_new_session=True)
        self._processes.append(process)

    def _listens(self, address: pathlib.Path) -> bool:
        self._must_run()
        return address.is_socket()

    def _answers(self) -> bool:
        self._must_run()
        return subprocess.run([*self._client(), "version"], capture_output=True, timeout=20).returncode == 0

    def _must_run(self) -> None:
        for process in self._processes:
            if process.poll() is not None and self._work is not None:
                name = pathlib.Path(str(process.args[0])).name  # type: ignore[index]  # Popen was given a list
                log = (self._work / f"{name}.log").read_text(errors="replace").strip()
                raise contract.PrepareError(f"{name} ended with {process.returncode}: {log[-300:]}")

    def _client(self) -> list[str]:
        return [contract.path_of("docker"), "--host", f"unix://{self._work}/docker.sock"]

    def _docker(self, *arguments: str) -> str:
        done = subprocess.run([*self._client(), *arguments], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise contract.PrepareError(f"docker {arguments[0]} failed: {done.stderr.strip()[:300]}")
        return done.stdout


def write_image(target: pathlib.Path) -> None:
    """A root of the host's own sh and python3 with the libraries they need: no download, and the same program as
    everywhere else in the comparison."""
    python = pathlib.Path(contract.path_of("python3")).resolve()
    stdlib = pathlib.Path(
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()
    )
    with tarfile.open(target, "w") as tar:
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for program in (pathlib.Path("/usr/bin/sh").resolve(), python):
            _add(tar, program)
            for library in libraries(program):
                _add(tar, library)
        for alias, real in (("usr/bin/sh", "/bin/sh"), ("usr/bin/python3", str(python))):
            if f"/{alias}" != str(pathlib.Path(real).resolve()):
                link = tarfile.TarInfo(alias)
                link.type, link.linkname = tarfile.SYMTYPE, str(pathlib.Path(real).resolve())
                tar.addfile(link)
        tar.add(stdlib, str(stdlib).lstrip("/"), filter=_wanted)


def _add(tar: tarfile.TarFile, path: pathlib.Path) -> None:
    """Under its /usr name, as /lib and /bin are links there."""
    name = str(path).lstrip("/")
    inside = name if name.startswith("usr/") else f"usr/{name}"
    if inside not in tar.getnames():
        tar.add(path.resolve(), inside)


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = pathlib.PurePath(entry.name).parts
    return None if {"test", "tests", "dist-packages", "site-packages", "idlelib"} & set(parts) else entry


def libraries(program: pathlib.Path) -> list[pathlib.Path]:
    """The shared libraries of a program, its loader included, as ldd(1) finds them."""
    text = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True, timeout=30).stdout
    words = [word for line in text.splitlines() for word in line.split()]
    return [pathlib.Path(word) for word in words if word.startswith("/")]
