"""The guest agent as one file: a zip archive that any Python 3.9+ can run or import from.

    python glovebox-guest.pyz ...                        runs glovebox_guest.__main__
    sys.path.insert(0, ".../glovebox-guest.pyz")         what a zygote does, to import the agent once for many sandboxes

The same sources give the same bytes, so the archive's hash says what is in it.
"""

import importlib.util
import io
import pathlib
import zipfile
from collections.abc import Iterator

from glovebox import errors

# Of the server only what a zygote needs, which runs inside a template's root: kernel calls and itself.
_SERVER_PARTS = (
    "__init__.py",
    "linux/__init__.py",
    "linux/capabilities.py",
    "linux/syscalls.py",
    "runtimes/__init__.py",
    "runtimes/namespace/__init__.py",
    "runtimes/namespace/jail.py",
    "runtimes/namespace/zygote.py",
)
_MAIN = """\
import runpy

runpy.run_module("glovebox_guest", run_name="__main__", alter_sys=True)
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold: when a file was saved must not change the archive


def build(python: str) -> bytes:
    """The archive, with `python` (a path inside the sandbox) as the interpreter of its first line."""
    whole = io.BytesIO(f"#!{python}\n".encode())
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(modules().items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return whole.getvalue()


def modules() -> dict[str, bytes]:
    """What is in the archive: names and sources."""
    found = {"__main__.py": _MAIN.encode()}
    guest, server = _package("glovebox_guest"), _package("glovebox_server")
    for root, path in [*_sources(guest, ("**/*.py",)), *_sources(server, _SERVER_PARTS)]:
        found[str(path.relative_to(root.parent))] = path.read_bytes()
    return found


def _sources(root: pathlib.Path, patterns: tuple[str, ...]) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    for pattern in patterns:
        for path in root.glob(pattern):
            yield root, path


def _package(name: str) -> pathlib.Path:
    """Where a package's sources are, found without importing it: the agent has no business in the server's process."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise errors.UnsupportedError(f"the package {name} is not installed: install Glovebox again")
    return pathlib.Path(spec.origin).parent
