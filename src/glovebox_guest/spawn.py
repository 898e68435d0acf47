"""Starting a program: fork, its standard descriptors, and exec the way a shell does it."""

import errno
import fcntl
import os
import pty
import struct
import termios
from typing import Dict, List, NamedTuple, NoReturn, Optional, Tuple

from glovebox_guest import child, settings, users

NOT_FOUND, NOT_EXECUTABLE = 127, 126
PTY_MODE = 0o620


class Request(NamedTuple):
    """What to start. `pty` is (columns, rows).

    `env` is whole and `cwd` absolute; `own_env` and `given_cwd` are the parts that the caller had said.
    """

    argv: List[str]
    env: Dict[str, str]
    own_env: Dict[str, str]
    cwd: str
    given_cwd: Optional[str]
    user: users.User
    stdin: bool
    pty: Optional[Tuple[int, int]]


class Started(NamedTuple):
    """A started program: the agent's ends, not blocking. `outputs` are stdout and stderr, or the terminal alone."""

    pid: int
    stdin: Optional[int]
    outputs: Tuple[int, ...]


def start(request: Request) -> Started:
    """Start a program. Raises OSError when the kernel has no process or descriptor left."""
    return _start_on_pty(request, *request.pty) if request.pty else _start_on_pipes(request)


def set_window_size(terminal: int, cols: int, rows: int) -> None:
    """Tell a terminal, and through it the program, how big it is."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _start_on_pipes(request: Request) -> Started:
    opened: List[int] = []
    try:
        opened += os.pipe2(os.O_CLOEXEC) if request.stdin else (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1)
        opened += os.pipe2(os.O_CLOEXEC)
        opened += os.pipe2(os.O_CLOEXEC)
        stdin, stdin_end, stdout_end, stdout, stderr_end, stderr = opened
        for descriptor in (stdin, stdout, stderr) if request.stdin else (stdout, stderr):
            # Or the user could not open their own /dev/stdout.
            os.fchown(descriptor, request.user.uid, request.user.gid)
        pid = child.fork()
    except OSError:
        _close(*opened)
        raise
    if pid == 0:
        _become(request, (stdin, stdout, stderr), has_tty=False)
    _close(stdin, stdout, stderr)
    for descriptor in (stdin_end, stdout_end, stderr_end):
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
    return Started(pid, stdin_end if request.stdin else None, (stdout_end, stderr_end))


def _start_on_pty(request: Request, cols: int, rows: int) -> Started:
    terminal, end = pty.openpty()
    try:
        set_window_size(terminal, cols, rows)
        os.fchown(end, request.user.uid, request.user.gid)
        os.fchmod(end, PTY_MODE)
        os.set_blocking(terminal, False)
        pid = child.fork()
    except OSError:
        _close(terminal, end)
        raise
    if pid == 0:
        _become(request, (end, end, end), has_tty=True)
    _close(end)
    return Started(pid, terminal, (terminal,))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _become(request: Request, standard: Tuple[int, int, int], *, has_tty: bool) -> NoReturn:
    """The child's side: never returns into the agent."""
    code = NOT_EXECUTABLE
    try:
        for target, descriptor in enumerate(standard):
            os.dup2(descriptor, target)
        child.enter(request.user, controlling_tty=0 if has_tty else None, dumpable=False)
        os.chdir(request.cwd)
        code = _exec(request.argv, request.env)
    except OSError as error:
        _complain(f"{request.cwd}: {os.strerror(error.errno or errno.EIO)}")
    except BaseException as error:
        _complain(f"cannot start: {type(error).__name__}")
    finally:
        os._exit(code)


def _exec(argv: List[str], env: Dict[str, str]) -> int:
    """Replace this process, or say why not on stderr and give the exit code for it."""
    name = argv[0]
    failure = errno.ENOENT
    for path in _candidates(name, env.get("PATH", settings.DEFAULT_PATH)):
        try:
            os.execve(path, argv, env)  # noqa: S606 - starting programs is what this is for
        except OSError as error:
            failure = _run_as_script(path, argv, env) if error.errno == errno.ENOEXEC else error.errno or errno.EIO
            if failure not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    if failure in (errno.ENOENT, errno.ENOTDIR):
        _complain(f"{name}: command not found")
        return NOT_FOUND
    _complain(f"{name}: {os.strerror(failure)}")
    return NOT_EXECUTABLE


def _candidates(name: str, path: str) -> List[str]:
    if "/" in name:
        return [name]
    return [os.path.join(folder or ".", name) for folder in path.split(":")] if name else []


def _run_as_script(path: str, argv: List[str], env: Dict[str, str]) -> int:
    """A file without `#!` is a script for the shell, as execvp(3) has it."""
    try:
        os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], env)  # noqa: S606 - as above
    except OSError as error:
        return error.errno or errno.EIO


def _complain(message: str) -> None:
    os.write(2, message.encode("utf-8", "backslashreplace") + b"\n")
