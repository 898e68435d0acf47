"""What an operation says no with: a code of `wire.ERROR_CODES` and a sentence for the caller."""

import errno
import os
from typing import Dict

_CODES: Dict[int, str] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "invalid_argument",
    errno.EISDIR: "invalid_argument",
    errno.EINVAL: "invalid_argument",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.ELOOP: "invalid_argument",
    errno.EEXIST: "already_exists",
    errno.ENOTEMPTY: "failed_precondition",
    errno.EBUSY: "failed_precondition",
    errno.ENXIO: "failed_precondition",
    errno.ETXTBSY: "failed_precondition",
    errno.EPIPE: "failed_precondition",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.ENOMEM: "no_space",
    errno.EMFILE: "resource_exhausted",
    errno.ENFILE: "resource_exhausted",
    errno.EAGAIN: "resource_exhausted",
    errno.EFBIG: "resource_exhausted",
    errno.ENOTSUP: "unimplemented",
}


class Refused(Exception):
    """The operation is refused; the channel ends with this error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def of_os_error(error: OSError, path: str) -> Refused:
    """The refusal for what the kernel said about `path`."""
    if error.errno == errno.ENOENT:
        return Refused("not_found", f"path '{path}' does not exist")
    if error.errno == errno.EISDIR:
        return Refused("invalid_argument", f"path '{path}' is a directory")
    if error.errno == errno.ENOTDIR:
        return Refused("invalid_argument", f"path '{path}' is not a directory")
    if error.errno is None:
        return Refused("internal", f"path '{path}': {error}")
    return Refused(_CODES.get(error.errno, "internal"), f"path '{path}': {os.strerror(error.errno)}")
