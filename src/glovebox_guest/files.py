"""The file operations: stat, list, make, move, remove, read and write.

They are done as root and in the caller's name: what is made belongs to the calling user. Nothing waits for a FIFO or a
device: those are not opened for reading, and for writing only without blocking.
"""

import errno
import os
import stat
from typing import Any, Callable, Dict, List

from glovebox_guest import channel as channels
from glovebox_guest import entries, parameters, readiness, refusals, settings, tree, uploads, users

ENTRIES_PER_EVENT = 256
READ_BYTES = 128 * 1024
MAX_DEPTH = 2**31
MAX_OFFSET = 2**62
MAX_METADATA_ENTRIES = 256


class Files:
    """The handlers. `on_change` is called when one has made directories, before it goes on to fill them."""

    def __init__(self, config: settings.Settings, names: uploads.Names, on_change: Callable[[], None]) -> None:
        self._config = config
        self._names = names
        self._on_change = on_change

    async def stat(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.stat`."""
        return _entry_of(self._path(params, "path"))

    async def list(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`fs.list`."""
        path = self._path(params, "path")
        depth = parameters.number(params, "depth", 1, MAX_DEPTH)
        batch: List[Dict[str, Any]] = []
        users.refresh()
        try:
            async for below in tree.walk(path, depth, readiness.Breather()):
                self._add_entry(batch, below)
                if len(batch) >= ENTRIES_PER_EVENT:
                    await channel.event({"event": "entries", "entries": batch})
                    batch = []
        except OSError as error:
            raise refusals.of_os_error(error, path) from error
        if batch:
            await channel.event({"event": "entries", "entries": batch})
        return {}

    async def make_dir(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.make_dir`."""
        user = self._config.user(params)
        path = self._config.path(params, "path", user)
        if os.path.isdir(path):
            raise refusals.Refused("already_exists", f"path '{path}' already exists")
        if os.path.lexists(path):
            raise refusals.Refused("invalid_argument", f"path '{path}' is not a directory")
        self._make_folders(path, user)
        return _entry_of(path)

    async def move(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.move`."""
        user = self._config.user(params)
        source = self._config.path(params, "source", user)
        destination = self._config.path(params, "destination", user)
        if not os.path.lexists(source):
            raise refusals.Refused("not_found", f"path '{source}' does not exist")
        self._make_folders(os.path.dirname(destination), user)
        try:
            await _rename(source, destination)
        except OSError as error:
            raise refusals.of_os_error(error, destination) from error
        return _entry_of(destination)

    async def remove(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.remove`."""
        path = self._path(params, "path")
        if path == "/":
            raise refusals.Refused("invalid_argument", "path '/' cannot be removed")
        try:
            await tree.remove(path, readiness.Breather())
        except (FileNotFoundError, NotADirectoryError):
            if os.path.lexists(path):
                raise refusals.Refused("failed_precondition", f"path '{path}' changed while it was removed") from None
        except OSError as error:
            raise refusals.of_os_error(error, path) from error
        return {}

    async def read(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`fs.read`."""
        path = self._path(params, "path")
        offset = parameters.optional_number(params, "offset", 0, MAX_OFFSET) or 0
        length = parameters.optional_number(params, "length", 0, MAX_OFFSET)
        file = _open_to_read(path)
        try:
            await channel.event({"event": "entry", **_entry_of(path)})
            if offset:
                os.lseek(file, offset, os.SEEK_SET)
            await _send_content(file, MAX_OFFSET if length is None else length, channel)
        except OSError as error:
            raise refusals.of_os_error(error, path) from error
        finally:
            os.close(file)
        return {}

    async def write(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`fs.write`."""
        user = self._config.user(params)
        path = self._config.path(params, "path", user)
        upload = uploads.Upload(
            target=os.path.realpath(path),
            user=user,
            mode=parameters.optional_number(params, "mode", 0, 0o777),
            metadata=_metadata(params),
        )
        if os.path.isdir(upload.target):
            raise refusals.Refused("invalid_argument", f"path '{path}' is a directory")
        try:
            await uploads.receive(upload, channel, self._names, self._on_change)
        except OSError as error:
            raise refusals.of_os_error(error, path) from error
        return _entry_of(path)

    # Inside.

    def _path(self, params: parameters.Parameters, name: str) -> str:
        return self._config.path(params, name, self._config.user(params))

    def _make_folders(self, path: str, user: users.User) -> None:
        try:
            uploads.make_folders(path, user)
        except OSError as error:
            raise refusals.of_os_error(error, path) from error
        self._on_change()

    def _add_entry(self, batch: List[Dict[str, Any]], path: str) -> None:
        if self._names.is_known(os.path.basename(path)):
            return
        try:
            batch.append(entries.describe(path))
        except OSError:
            pass  # It has gone since its name was read.


def _entry_of(path: str) -> Dict[str, Any]:
    users.refresh()
    try:
        return {"entry": entries.describe(path)}
    except OSError as error:
        raise refusals.of_os_error(error, path) from error


def _metadata(params: parameters.Parameters) -> Dict[str, str]:
    metadata = parameters.mapping(params, "metadata")
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if len(metadata) > MAX_METADATA_ENTRIES or size > entries.MAX_METADATA_BYTES:
        raise parameters.wrong("metadata", f"must be at most {entries.MAX_METADATA_BYTES} bytes")
    if any(not key or "\0" in key for key in metadata):
        raise parameters.wrong("metadata", "must have keys without NUL")
    return metadata


async def _rename(source: str, destination: str) -> None:
    try:
        os.rename(source, destination)
    except OSError as error:
        # Another file system, or a directory of an overlay's lower layer (overlayfs, "Renaming directories").
        if error.errno != errno.EXDEV:
            raise
        breather = readiness.Breather()
        if os.path.lexists(destination):
            await tree.remove(destination, breather)
        await tree.copy(source, destination, breather)
        await tree.remove(source, breather)


def _open_to_read(path: str) -> int:
    """Open a regular file; anything else might block, or do something when it is merely opened."""
    try:
        _refuse_irregular(os.stat(path), path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise refusals.of_os_error(error, path) from error
    try:
        _refuse_irregular(os.fstat(file), path)
    except refusals.Refused:
        os.close(file)
        raise
    return file


def _refuse_irregular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise refusals.Refused("invalid_argument", f"path '{path}' is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise refusals.Refused("invalid_argument", f"path '{path}' is not a regular file")


async def _send_content(file: int, left: int, channel: channels.Channel) -> None:
    """Send until the end, which is where a read says so: the sizes in /proc are all 0."""
    while left and channel.is_open:
        await channel.wait_room()
        room = min(channel.room(), READ_BYTES, left)
        if not room:
            return
        try:
            data = os.read(file, room)
        except BlockingIOError:
            return
        if not data:
            return
        channel.send_now(0, data)
        left -= len(data)
