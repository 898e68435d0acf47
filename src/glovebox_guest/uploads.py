"""Writing a file: aside, then in its place in one step, so that nobody ever sees half of it.

The content goes to a temporary name beside the target, which takes the target's place at the host's EOF; a write that
is cancelled before leaves nothing. The watchers know the temporary names (`Names`) and tell the whole as what it means:
create, chmod, write for a new file, write for one that was there. What cannot be replaced is written in place:
a file mounted there, a file where nothing may be created (/proc), a FIFO, a terminal, a device.
"""

import collections
import contextlib
import errno
import os
import secrets
import stat
from typing import Callable, Dict, List, NamedTuple, Optional

from glovebox_guest import channel as channels
from glovebox_guest import entries, readiness, refusals, tree, users

TEMPORARY_PREFIX = ".glovebox-upload-"
NEW_FILE_MODE = 0o644
NEW_FOLDER_MODE = 0o755
MAX_KNOWN_NAMES = 4096
#: writev(2) takes no more.
MAX_PIECES = 1024

_NOT_HERE = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTSUP, errno.EINVAL))


class Names:
    """The temporary names of this agent's own, for those who must not show them."""

    def __init__(self) -> None:
        # Kept for a while after the upload: the watchers read what has happened a moment later.
        self._replaces: "collections.OrderedDict[str, bool]" = collections.OrderedDict()

    def new(self) -> str:
        """A name nobody has used."""
        name = TEMPORARY_PREFIX + secrets.token_hex(16)
        self._replaces[name] = False
        if len(self._replaces) > MAX_KNOWN_NAMES:
            self._replaces.popitem(last=False)
        return name

    def replaces(self, name: str) -> None:
        """Note that this upload takes the place of a file that was there."""
        self._replaces[name] = True

    def is_known(self, name: str) -> bool:
        """Whether this is an upload's temporary name."""
        return name.startswith(TEMPORARY_PREFIX) and name in self._replaces

    def has_replaced(self, name: str) -> bool:
        """Whether the upload of this temporary name took the place of another file."""
        return self._replaces.get(name, False)


class Upload(NamedTuple):
    """What is to be written where: `target` has no symlink in it; `mode` is for a new file."""

    target: str
    user: users.User
    mode: Optional[int]
    metadata: Dict[str, str]


async def receive(upload: Upload, channel: channels.Channel, names: Names, on_new_folders: Callable[[], None]) -> None:
    """Write what the host sends until its EOF. Raises OSError and Refused."""
    before = _status_of(upload.target)
    if before is None:
        make_folders(os.path.dirname(upload.target), upload.user)
        on_new_folders()
    if before is None or stat.S_ISREG(before.st_mode):
        await _replace(upload, before, channel, names)
    elif stat.S_ISDIR(before.st_mode):
        raise refusals.Refused("invalid_argument", f"path '{upload.target}' is a directory")
    elif stat.S_ISBLK(before.st_mode):
        raise refusals.Refused("permission_denied", f"path '{upload.target}' is a disk")
    else:
        await _write_in_place(upload, channel)


def make_folders(path: str, user: users.User) -> None:
    """Make a directory and its missing parents, each owned by `user`. Raises OSError."""
    current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.split("/"):
            if part:
                below = _enter_or_make(part, current, user)
                os.close(current)
                current = below
    finally:
        os.close(current)


def _enter_or_make(name: str, parent: int, user: users.User) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.mkdir(name, NEW_FOLDER_MODE, dir_fd=parent)
    except FileExistsError:
        # Made by somebody else just now (then it is theirs), or a dangling link (then this fails).
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    # Safety: by descriptor and without following, so that what is given away is a directory, whatever is swapped in.
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    os.fchown(descriptor, user.uid, user.gid)
    return descriptor


async def _replace(upload: Upload, before: Optional[os.stat_result], channel: channels.Channel, names: Names) -> None:
    folder_path, name = os.path.split(upload.target)
    folder = os.open(folder_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = names.new()
    try:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(temporary, flags, 0o600, dir_fd=folder)
        except OSError as error:
            if before is None or error.errno not in _NOT_HERE:
                raise
            await _write_in_place(upload, channel)
            return
        try:
            await _receive_into(file, channel)
            # Looked at again: much may have happened since the first byte.
            before = _status_of(upload.target)
            if before is not None:
                names.replaces(temporary)
            _dress(file, upload, before)
            await _put_in_place(file, temporary, name, folder, upload)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(file)
    finally:
        os.close(folder)


def _dress(file: int, upload: Upload, before: Optional[os.stat_result]) -> None:
    """Give the new file its owner, mode and attributes: those of the file it replaces, or the user's."""
    if before is None:
        os.fchown(file, upload.user.uid, upload.user.gid)
        os.fchmod(file, NEW_FILE_MODE if upload.mode is None else upload.mode)
    else:
        os.fchown(file, before.st_uid, before.st_gid)
        # Not setuid and setgid: the kernel too takes them from a file that is written.
        os.fchmod(file, (before.st_mode if upload.mode is None else upload.mode) & 0o1777)
        _copy_attributes(upload.target, file)
    _set_metadata(file, upload)


def _copy_attributes(source: str, file: int) -> None:
    """Access lists and the users' own attributes go over; metadata is replaced, and capabilities are not for new content."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            if not name.startswith((entries.METADATA_PREFIX, "security.", "trusted.")):
                os.setxattr(file, name, os.getxattr(source, name))


def _set_metadata(file: int, upload: Upload) -> None:
    for key, value in upload.metadata.items():
        try:
            os.setxattr(file, entries.METADATA_PREFIX + key, value.encode("utf-8", "surrogateescape"))
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise refusals.Refused(
                    "unimplemented", f"path '{upload.target}': its file system keeps no metadata"
                ) from error
            raise


async def _put_in_place(file: int, temporary: str, name: str, folder: int, upload: Upload) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        # Something is mounted on the target. Its content can be replaced, though not in one step.
        os.lseek(file, 0, os.SEEK_SET)
        target = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            await tree.copy_bytes(file, target, readiness.Breather())
            _replace_metadata(target, upload)
        finally:
            os.close(target)
        os.unlink(temporary, dir_fd=folder)


async def _write_in_place(upload: Upload, channel: channels.Channel) -> None:
    file = os.open(upload.target, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        await _receive_into(file, channel)
        if stat.S_ISREG(os.fstat(file).st_mode):
            _replace_metadata(file, upload)
    finally:
        os.close(file)


def _replace_metadata(file: int, upload: Upload) -> None:
    with contextlib.suppress(OSError):
        for name in os.listxattr(file):
            if name.startswith(entries.METADATA_PREFIX):
                os.removexattr(file, name)
    _set_metadata(file, upload)


async def _receive_into(file: int, channel: channels.Channel) -> None:
    waiter = readiness.Waiter()
    while True:
        pieces = await channel.receive_all()
        if pieces is None:
            return
        if len(pieces) > MAX_PIECES:
            pieces = [b"".join(pieces)]
        rest: List[memoryview] = [memoryview(piece) for piece in pieces]
        while rest:
            try:
                _drop_written(rest, os.writev(file, rest))
            except BlockingIOError:
                await waiter.writable(file)


def _drop_written(rest: List[memoryview], count: int) -> None:
    done = 0
    while done < len(rest) and count >= len(rest[done]):
        count -= len(rest[done])
        done += 1
    del rest[:done]
    if count:
        rest[0] = rest[0][count:]


def _status_of(path: str) -> Optional[os.stat_result]:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
