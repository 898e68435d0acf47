"""The default template's own Python environment: a virtual environment that is built here and used at /opt/glovebox.

It is made with a Python of the host's /usr, which is there inside too, from locked requirements with hashes. Built
outside of its place, it must not tell of it: scripts, pyvenv.cfg and compiled files name the path inside.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from glovebox import errors
from glovebox_server.images import skeleton, tree

Progress = Callable[[str], None]

_GENERATION = 1  # of what this module makes: a new number makes new environments
_OLDEST = (3, 9)
_UMASK = 0o022  # everybody inside may read it, whatever the umask of who builds it
_CANDIDATES = ("/usr/bin/python3", "/usr/local/bin/python3")
_FACTS = "import json, os, sys; print(json.dumps([os.path.realpath(sys.executable), list(sys.version_info[:3])]))"
_INSTALL_PYTHON = "install a Python of the system, on Debian or Ubuntu: apt-get install python3"
# Fonts are looked for when matplotlib is first imported, which takes seconds: done once here. The file then goes to
# where each user's matplotlib looks for it.
_FONTS = "import matplotlib.font_manager"
_FONTS_INSIDE = "share/matplotlib"


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """A Python of the host that is at the same path inside."""

    path: str
    version: tuple[int, int, int]


def find_python(wanted: str | None = None) -> Interpreter:
    """The Python that the environment is made with. Raises UnsupportedError when none fits, with what to install."""
    refused = []
    for path in (wanted,) if wanted else _CANDIDATES:
        try:
            answer = _run([path, "-I", "-c", _FACTS], {"PATH": os.defpath}, f"look at {path}")
            real, (major, minor, micro) = json.loads(answer)
        except (errors.UnsupportedError, ValueError):
            refused.append(f"{path} does not start")
            continue
        if not real.startswith("/usr/"):
            refused.append(f"{path} is {real}, outside of /usr")
        elif (major, minor) < _OLDEST:
            refused.append(f"{path} is {major}.{minor}")
        else:
            return Interpreter(path, (major, minor, micro))
    raise errors.UnsupportedError(
        f"the default template needs a Python {_OLDEST[0]}.{_OLDEST[1]} or newer under /usr "
        f"({'; '.join(refused)}): {_INSTALL_PYTHON}"
    )


def key(python: Interpreter) -> str:
    """A hash of all that the environment depends on."""
    parts = (_GENERATION, dataclasses.astuple(python), platform.machine(), platform.libc_ver()[0], _lock())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def build(target: pathlib.Path, python: Interpreter, report: Progress) -> None:
    """Make the environment at `target`, which must not exist; half of one may be left there when this fails."""
    report(f"making a Python {'.'.join(map(str, python.version))} environment")
    # Seeing the operator's settings is meant: which index, which proxy, which certificates.
    _uv(["venv", "--quiet", "--no-project", "--python", python.path, str(target)])
    executable = target / "bin/python"
    report("installing IPython, NumPy, pandas, matplotlib, Pillow and requests")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write(_lock())
        lock.flush()
        # Copies, not links into uv's cache: nothing else may ever change a file that sandboxes see.
        _uv(["pip", "install", "--quiet", "--require-hashes", "--no-deps", "--link-mode", "copy",
             "--python", str(executable), "--requirements", lock.name])  # fmt: skip
    _move_inside(target, python)
    report("compiling, and looking for fonts")
    _compile(target)
    _find_fonts(target)


def homes(environment: pathlib.Path) -> list[tree.Entry]:
    """The entries that give every user of the template this environment's font list."""
    fonts = sorted((environment / _FONTS_INSIDE).glob("fontlist-*.json"))
    return [
        entry
        for home, owner in (("root", 0), ("home/user", skeleton.USER_ID))
        for entry in (
            tree.directory(f"{home}/.cache", 0o700, owner),
            tree.directory(f"{home}/.cache/matplotlib", 0o755, owner),
            *(tree.file(f"{home}/.cache/matplotlib/{path.name}", path.read_bytes(), 0o644, owner) for path in fonts),
        )
    ]


def _lock() -> str:
    return importlib.resources.files("glovebox_server.images").joinpath("base-requirements.lock").read_text()


def _move_inside(target: pathlib.Path, python: Interpreter) -> None:
    """Let everything name the path inside, and take away what is of no use there."""
    for name in (".gitignore", ".lock", "CACHEDIR.TAG"):
        (target / name).unlink(missing_ok=True)
    version = ".".join(map(str, python.version))
    (target / "pyvenv.cfg").write_text(
        f"home = {os.path.dirname(python.path)}\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    outside, inside = os.fsencode(target), skeleton.ENVIRONMENT.encode()
    for script in (target / "bin").iterdir():
        if script.suffix in (".bat", ".ps1", ".nu", ".xsh"):
            script.unlink()
        elif not script.is_symlink():
            content = script.read_bytes()
            if outside in content:
                script.write_bytes(content.replace(outside, inside))


def _compile(target: pathlib.Path) -> None:
    # The packages' own tests hold files that do not compile, on purpose: the exit status tells nothing. `_find_fonts`
    # imports what matters.
    subprocess.run(
        [str(target / "bin/python"), "-I", "-m", "compileall", "-qq", "-j0",
         "-s", str(target), "-p", skeleton.ENVIRONMENT, str(target / "lib")],
        check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath}, umask=_UMASK,
    )  # fmt: skip


def _find_fonts(target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        variables = {
            "PATH": os.defpath,
            "HOME": home,
            "MPLCONFIGDIR": home,
        }  # the builder's own fonts are not the template's
        _run([str(target / "bin/python"), "-I", "-c", _FONTS], variables, "import matplotlib in the new environment")
        place = target / _FONTS_INSIDE
        place.mkdir(parents=True, exist_ok=True)
        for path in pathlib.Path(home).glob("fontlist-*.json"):
            shutil.copyfile(path, place / path.name)


def _uv(arguments: Sequence[str]) -> None:
    _run([sys.executable, "-m", "uv", *arguments], os.environ, f"uv {arguments[0]}")


def _run(command: Sequence[str], variables: Mapping[str, str], what: str) -> str:
    """Run to the end; what it said on stderr is in the UnsupportedError when it fails."""
    try:
        done = subprocess.run(
            command,
            env=variables,
            umask=_UMASK,
            # Not in whatever folder we were started in: it need not be readable, and uv takes settings from it.
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.UnsupportedError(f"cannot {what}") from error
    if done.returncode:
        raise errors.UnsupportedError(f"cannot {what}: {done.stderr.strip()[-2000:]}")
    return done.stdout
