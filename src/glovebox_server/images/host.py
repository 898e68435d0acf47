"""The default template, `base`: made from this host without a download of a system.

    layer  /     generated: links into /usr, an /etc of its own, homes, and at /opt/glovebox a Python environment
    layer  /usr  the host's own, read-only

    <data folder>/templates/base/
        .lock                     held while building or removing, by one process
        environments/<key>/       a Python environment, made once for a lock file and a Python
        <content hash>/root/      the layer "/"; its environment is hard links to the one above
        <content hash>/environment    that one's key

A tree is never changed once it has its name: what it is made of changes the name. The guest agent's archive is part of
it, at `GUEST_ARCHIVE`. Old trees may have sandboxes on them: `remove_stale` is told which to keep.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator

from glovebox import errors
from glovebox_server.images import environment, guest_archive, skeleton, tree
from glovebox_server.model import template

NAMES = ("base", "code-interpreter-v1", "python")
PYTHON = f"{skeleton.ENVIRONMENT}/bin/python"
GUEST_ARCHIVE = f"{skeleton.ENVIRONMENT}/lib/glovebox-guest.pyz"

_GENERATION = 1  # of what this module makes: a new number makes new trees
_HALF_MADE = ".new-"


def build(
    data_dir: pathlib.Path, *, python: str | None = None, report: environment.Progress = lambda step: None
) -> template.Template:
    """The default template, built when it is not there yet; `report` is told each step that takes time.

    Safe to call again, from several processes, and after one that was killed. Raises UnsupportedError.
    """
    interpreter = environment.find_python(python)
    generated = [*skeleton.entries(), _archive()]
    key = environment.key(interpreter)
    digest = tree.digest([*generated, tree.file("", f"{_GENERATION} {key}")])[:32]
    root = _folder(data_dir) / digest / "root"
    if not root.is_dir():
        with _locked(data_dir) as folder:
            source = folder / "environments" / key
            if not source.is_dir():
                _build_environment(source, interpreter, report)
            if not root.is_dir():
                report("writing the template's files")
                _build_tree(root.parent, generated, source)
    return template.Template(
        template_id=NAMES[0],
        names=NAMES,
        layers=(template.Layer(root, "/"), template.Layer(pathlib.Path("/usr"), "/usr")),
        python=PYTHON,
        path=skeleton.PATH,
        warm_modules=("numpy", "numpy.random"),
    )


def remove_stale(data_dir: pathlib.Path, keep: Collection[pathlib.Path]) -> list[pathlib.Path]:
    """Remove the trees whose root is not in `keep`, what no kept one is made of, and half-made ones; returns which."""
    removed = []
    with _locked(data_dir) as folder:
        kept = {root.parent for root in keep if root.parent.parent == folder}
        keys = {(path / "environment").read_text() for path in kept}
        for path in sorted([*folder.iterdir(), *(folder / "environments").iterdir()]):
            if path.name in (".lock", "environments") or path in kept or path.name in keys:
                continue
            # Safety: `folder` is ours alone, and rmtree follows no link out of it. A tree goes out of sight first: one
            # that is half removed must never be found under its name.
            doomed = pathlib.Path(tempfile.mkdtemp(prefix=_HALF_MADE, dir=folder)) / path.name
            path.rename(doomed)
            shutil.rmtree(doomed.parent)
            removed.append(path)
    return removed


def _folder(data_dir: pathlib.Path) -> pathlib.Path:
    return data_dir.absolute() / "templates" / "base"


def _archive() -> tree.Entry:
    return tree.file(GUEST_ARCHIVE[1:], guest_archive.build(PYTHON))


@contextlib.contextmanager
def _locked(data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder, for this process alone; the kernel lets go of the lock when the process ends, however it does."""
    folder = _folder(data_dir)
    (folder / "environments").mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextlib.contextmanager
def _half_made(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `target` that gets its name when all went well, and is removed when not."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=_HALF_MADE, dir=target.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _build_environment(
    target: pathlib.Path, interpreter: environment.Interpreter, report: environment.Progress
) -> None:
    _check_room(target.parent)
    with _half_made(target) as scratch:
        scratch.rmdir()  # `environment.build` makes it
        environment.build(scratch, interpreter, report)
        # `user` may install packages, as on any machine of one's own. This gives no power: it may become root inside.
        tree.own(scratch, skeleton.USER_ID)
        for folder, directories, files in os.walk(scratch):
            for name in (*directories, *files):
                tree.own(pathlib.Path(folder, name), skeleton.USER_ID)


def _build_tree(target: pathlib.Path, generated: list[tree.Entry], source: pathlib.Path) -> None:
    with _half_made(target) as scratch:
        (scratch / "environment").write_text(source.name)
        root = scratch / "root"
        (root / "opt").mkdir(parents=True)
        tree.clone(source, root / skeleton.ENVIRONMENT[1:])
        tree.write([*generated, *environment.homes(source)], root)


def _check_room(folder: pathlib.Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        raise errors.UnsupportedError(f"the default template needs 1 GiB of disk; {free >> 20} MiB are free there")
