"""What a path is, as the link tells it: an entry with its type, size, mode, owner, times and metadata."""

import os
import stat
from typing import Any, Dict, Optional

from glovebox_guest import users

METADATA_PREFIX = "user.e2b."
#: More metadata than this on one file is not shown.
MAX_METADATA_BYTES = 16 * 1024


def describe(path: str) -> Dict[str, Any]:
    """The entry of `path`, an absolute path. Raises OSError. Call `users.refresh` before the first of many."""
    status = os.lstat(path)
    is_symlink = stat.S_ISLNK(status.st_mode)
    entry: Dict[str, Any] = {"name": os.path.basename(path), "path": path, "is_symlink": is_symlink}
    if is_symlink:
        entry["symlink_target"] = os.path.realpath(path)
        status = _target_of(path) or status
    mode = status.st_mode
    entry["type"] = _type_of(mode)
    entry["size"] = status.st_size
    entry["mode"] = mode & 0o777
    entry["permissions"] = stat.filemode(mode)
    entry["owner"] = users.owner_name(status.st_uid)
    entry["group"] = users.group_name(status.st_gid)
    entry["mtime_ns"] = status.st_mtime_ns
    # Only these two can have attributes of users (xattr(7)); a dangling link has none to show.
    entry["metadata"] = metadata_of(path) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else {}
    return entry


def metadata_of(path: str) -> Dict[str, str]:
    """The metadata of the file that `path` leads to; none when it cannot be read."""
    found: Dict[str, str] = {}
    left = MAX_METADATA_BYTES
    try:
        for name in os.listxattr(path):
            if name.startswith(METADATA_PREFIX):
                value = os.getxattr(path, name)
                left -= len(name) + len(value)
                if left < 0:
                    break
                found[name[len(METADATA_PREFIX) :]] = value.decode("utf-8", "replace")
    except OSError:
        pass  # No such attributes on this file system, or the file is gone: either way none to show.
    return found


def _target_of(path: str) -> Optional[os.stat_result]:
    try:
        return os.stat(path)
    except OSError:
        return None


def _type_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"
