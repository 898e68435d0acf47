"""Long work on directory trees, in small steps: list in order, remove, copy.

Programs inside may change the tree all the while. Removal therefore walks by descriptors and never through a symlink;
and since a tree may be deeper than descriptors or path names reach, it keeps one descriptor and comes back by "..".
"""

import contextlib
import errno
import heapq
import os
import shutil
import stat
from typing import AsyncIterator, Iterator, List, NamedTuple, Tuple

from glovebox_guest import readiness

SORTED_AT_ONCE = 4096
COPY_BYTES = 1024 * 1024
#: How often a directory is emptied again because something was put into it meanwhile.
MAX_REMOVE_ATTEMPTS = 16

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def walk(path: str, depth: int, breather: readiness.Breather) -> AsyncIterator[str]:
    """Paths below a directory: pre-order, names ascending, `depth` levels; symlinks are not followed."""
    stack = [(path, await _sorted_names(path, breather))]
    while stack:
        folder, names = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
            continue
        below = os.path.join(folder, name)
        yield below
        if len(stack) < depth and _is_folder(below):
            # What has gone meanwhile, or may not be looked into, is as good as empty.
            with contextlib.suppress(OSError):
                stack.append((below, await _sorted_names(below, breather)))
        await breather.breathe()


async def _sorted_names(folder: str, breather: readiness.Breather) -> Iterator[str]:
    """The names in a folder, ascending. Sorted in runs: a million of them at once would take a second."""
    runs: List[List[str]] = [[]]
    with os.scandir(folder) as found:
        for item in found:
            runs[-1].append(item.name)
            if len(runs[-1]) >= SORTED_AT_ONCE:
                runs[-1].sort()
                runs.append([])
                await breather.breathe()
    runs[-1].sort()
    return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


class _Level(NamedTuple):
    """A directory on the way down: who it is, its name in the one above, what is still to be removed in it."""

    identity: Tuple[int, int]
    name: str
    folders: List[str]


async def remove(path: str, breather: readiness.Breather) -> None:
    """Remove a file or a whole tree. Raises OSError; a path that is not there is FileNotFoundError."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    for _ in range(MAX_REMOVE_ATTEMPTS):
        await _empty(path, breather)
        try:
            os.rmdir(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


async def _empty(path: str, breather: readiness.Breather) -> None:
    """Remove all that is in a directory. What is put there meanwhile may stay."""
    current = os.open(path, _OPEN_FOLDER)
    try:
        levels = [_Level(_identity(current), "", await _unlink_files(current, breather))]
        while levels:
            if levels[-1].folders:
                name = levels[-1].folders.pop()
                try:
                    below = os.open(name, _OPEN_FOLDER, dir_fd=current)
                except FileNotFoundError:
                    continue
                os.close(current)
                current = below
                levels.append(_Level(_identity(current), name, await _unlink_files(current, breather)))
                continue
            done = levels.pop()
            if levels:
                above = os.open("..", _OPEN_FOLDER, dir_fd=current)
                os.close(current)
                current = above
                # Moved away while it was being emptied: then ".." is somewhere else, where nothing must go.
                if _identity(current) != levels[-1].identity:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
                with contextlib.suppress(FileNotFoundError):
                    _remove_folder(done.name, current)
            await breather.breathe()
    finally:
        os.close(current)


def _remove_folder(name: str, parent: int) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        # Something was put there: the next attempt sees to it.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


async def _unlink_files(folder: int, breather: readiness.Breather) -> List[str]:
    """Remove what is not a directory; the names of what is."""
    folders = []
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                folders.append(item.name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(item.name, dir_fd=folder)
            await breather.breathe()
    return folders


def _identity(descriptor: int) -> Tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


async def copy(source: str, destination: str, breather: readiness.Breather) -> None:
    """Copy a file, link or tree with owners, modes, times and attributes, for a move that the kernel cannot make."""
    await _copy_one(source, destination, breather)
    folders = []
    if _is_folder(source):
        folders.append((source, destination))
        async for path in walk(source, 2**31, breather):
            target = os.path.join(destination, os.path.relpath(path, source))
            await _copy_one(path, target, breather)
            if _is_folder(path):
                folders.append((path, target))
    # Last, since filling a folder changes its times; the deepest first.
    for folder, target in reversed(folders):
        shutil.copystat(folder, target, follow_symlinks=False)
        await breather.breathe()


async def _copy_one(source: str, destination: str, breather: readiness.Breather) -> None:
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(destination, 0o700)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), destination)
    elif stat.S_ISREG(status.st_mode):
        await _copy_content(source, destination, breather)
    else:
        os.mknod(destination, status.st_mode, status.st_rdev)
    os.chown(destination, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        shutil.copystat(source, destination, follow_symlinks=False)


async def _copy_content(source: str, destination: str, breather: readiness.Breather) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        writer = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await copy_bytes(reader, writer, breather)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


async def copy_bytes(reader: int, writer: int, breather: readiness.Breather) -> None:
    """Copy from one regular file's position to another's, to the end."""
    while os.sendfile(writer, reader, None, COPY_BYTES):
        await breather.breathe()
