"""One server per data folder: a lock that the kernel lets go of with the process, however that ends."""

import fcntl
import os
import pathlib

from glovebox import errors


class FolderLock:
    """Holds a data folder for this process, from `acquire` to `release` or the end of the process."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._fd = -1

    def acquire(self) -> None:
        """Make the folder if need be (for its owner only) and take it. ConflictError when another server has it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The lock belongs to the open file and would live on in a child that inherits it: Python opens it close-on-exec.
        fd = os.open(self._folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise errors.ConflictError(
                f"data folder {self._folder} is in use by another Glovebox server (process {holder})"
            ) from None
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let go. Twice is fine. The file stays: removing it would let two servers lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
