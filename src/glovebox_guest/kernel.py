"""The process of a code context: IPython, warm from the fork, running one piece of code after the other.

`warm` is called once, in the process that sandboxes are forked of; where nobody has, each context does it for itself, and
is slower by that. `run` is called in a child of the agent and never returns. The agent's side is `context_process`; what is
said between the two is in `context_link`.

    started ──▶ idle ──request──▶ running ──end──▶ idle        SIGINT: ignored while idle, KeyboardInterrupt while running
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import importlib.util
import io
import os
import signal
import socket
import sys
import threading
import traceback
from typing import (
    TYPE_CHECKING,
    Any,
    Coroutine,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
)

from glovebox_guest import at_fork, child, context_link, users

if TYPE_CHECKING:  # it imports IPython
    from glovebox_guest import kernel_shell

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
#: What OpenBLAS calls this function, depending on how it was built (the last two: in wheels of numpy and scipy).
_BLAS_SETTERS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
)
#: Each of these leaves something hot: the compiler and hooks, pretty printing, tracebacks, await, magics.
_WARM_CELLS = ("_x = 1 + 1\n_x", "[{'a': 1.5}]", "def _f():\n    raise ValueError(1)\n_f()", "await _g()", "%time 1")

_blas_setters: List[Any] = []
_shell: "Optional[kernel_shell.Shell]" = None
_libc = ctypes.CDLL(None)


def warm(modules: Sequence[str] = ()) -> None:
    """Import IPython and `modules`, make the shell, and run a little code so that all of it is hot.

    Called once, before any fork. Leaves no thread and no open descriptor behind: RuntimeError when a module has.
    """
    global _shell
    if _shell is not None:
        return
    descriptors = _descriptors()
    main_module = sys.modules.get("__main__")
    with _single_blas_thread(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in modules:
            importlib.import_module(name)
        shell = importlib.import_module("glovebox_guest.kernel_shell").make()
        _run_warm_cells(shell)
    _blas_setters[:] = _find_blas_setters()
    if main_module is not None:
        sys.modules["__main__"] = main_module
    left = _descriptors() - descriptors
    if left or threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(
            f"warming {', '.join(modules) or 'IPython'} left threads or descriptors {sorted(left)} behind"
        )
    _shell = shell
    gc.collect()
    # What is here now is never garbage: the collectors of the children need not touch, and so copy, its pages.
    gc.freeze()


def _run_warm_cells(shell: "kernel_shell.Shell") -> None:
    runner = _LoopRunner()
    shell.loop_runner = runner
    for code in _WARM_CELLS:
        shell.run_cell(code, store_history=False)
    shell.run_cell("1", store_history=True)
    runner.close()
    shell.reset()
    # The reset takes it away, and multiprocessing asks for it: None is what the __main__ of a `python -c` has.
    shell.user_module.__spec__ = None
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)


@contextlib.contextmanager
def _single_blas_thread() -> Iterator[None]:
    """OpenBLAS starts its threads when it is loaded; a process with threads cannot be forked safely."""
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BLAS_THREADS]
        else:
            os.environ[BLAS_THREADS] = before


def _descriptors() -> "set[str]":
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is closed by now.
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(name)
    return found


def is_installed() -> bool:
    """Whether this Python has IPython, so that there can be contexts at all."""
    return _shell is not None or importlib.util.find_spec("IPython") is not None


class Start(NamedTuple):
    """What a context's process starts with."""

    control: socket.socket
    stdout_fd: int
    stderr_fd: int
    cwd: str
    environment: Mapping[str, str]


def run(start: Start) -> NoReturn:
    """Be a context. Called in a fresh fork of the agent; ends the process when the agent's end closes."""
    try:
        at_fork.take_up()
        _leave_agent(start)
        warm()
        _Kernel(start.control).serve()
        os._exit(0)
    except BaseException:
        # The last resort of a process that must not return into the agent: all it can do is say why.
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(70)


def _leave_agent(start: Start) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((null, 0), (start.stdout_fd, 1), (start.stderr_fd, 2)):
        os.dup2(descriptor, standard)
    child.enter(users.find("root"), keep_fds=(start.control.fileno(),))
    # The agent's objects live on in this process; no collection may end them, for their descriptors are others' now.
    gc.freeze()
    asyncio._set_running_loop(None)
    # `enter` gave every signal its default; Python's own choices for these two are others.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _ignore)
    os.environ.clear()
    os.environ.update(start.environment)
    try:
        os.chdir(start.cwd)
    except OSError:
        os.chdir("/")
    _open_standard_streams()
    faulthandler.enable(file=2)
    _differ()


def _ignore(number: int, frame: object) -> None:
    """For SIGINT while idle. Not SIG_IGN: that would be inherited by programs."""


#: The agent's own streams: closing them would write out what it has buffered.
_kept_streams: List[Any] = []


def _open_standard_streams() -> None:
    _kept_streams.extend((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    streams = {"stdin": open(0, encoding="utf-8", closefd=False)}  # noqa: SIM115 for the process's life
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        # Unbuffered: what is printed goes out at once, and in order with what C code and programs write.
        raw: Any = io.FileIO(descriptor, "w", closefd=False)
        streams[name] = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _differ() -> None:
    """What must not be the same in two forks of one process. Python's own `random` sees to itself, by an at-fork hook."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # from the system's entropy


def _raise_blas_threads() -> None:
    """Give OpenBLAS the threads that it would have had, had it been imported here."""
    wanted = os.environ.get(BLAS_THREADS) or os.environ.get("OMP_NUM_THREADS") or ""
    count = int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))
    if count > 1:
        for setter in _blas_setters:
            setter(ctypes.c_int(count))


def _find_blas_setters() -> List[Any]:
    """The function that sets the number of threads, of each OpenBLAS that is loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.split(None, 5)[-1].rstrip("\n") for line in maps if "openblas" in line}
    libraries = [ctypes.CDLL(path) for path in sorted(paths) if os.path.isfile(path)]
    found = [[getattr(library, name, None) for name in _BLAS_SETTERS] for library in libraries]
    return [setter for setters in found for setter in setters if setter is not None]


class _LoopRunner:
    """The event loop for top-level await; between cells it goes on with the tasks that cells have left."""

    def __init__(self) -> None:
        self.was_used = False
        self._loop = self._new()

    @staticmethod
    def _new() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell's coroutine to its end."""
        self.was_used = True
        if self._loop.is_closed():  # by user code
            self._loop = self._new()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            self._cancel(task)
            raise

    def _cancel(self, task: "asyncio.Task[Any]") -> None:
        """Let the interrupted code's finally clauses run, without reporting the cancellation as its error."""
        assert _shell is not None
        _shell.is_cancelling = True
        try:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        finally:
            _shell.is_cancelling = False

    def run_until_readable(self, descriptor: int) -> None:
        """Let the tasks that cells have left go on until there is a request."""
        if not self.was_used or self._loop.is_closed():
            return
        self._loop.add_reader(descriptor, self._loop.stop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(descriptor)

    def close(self) -> None:
        """Give up the loop's descriptors."""
        self._loop.close()
        asyncio.set_event_loop(None)


class _Kernel:
    """Takes requests and runs them, for as long as the agent's end is open."""

    def __init__(self, control: socket.socket) -> None:
        assert _shell is not None, "kernel.warm has not been called"
        self._shell = _shell
        self._control = control
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._blas_is_raised = False
        self._runner = _LoopRunner()
        self._shell.send = self._send
        self._shell.loop_runner = self._runner
        self._shell.history_manager.dir_hist[:] = [os.getcwd()]
        sys.modules["__main__"] = self._shell.user_module
        if "" not in sys.path:
            sys.path.insert(0, "")
        importlib.import_module("glovebox_guest.kernel_shell").refuse_input()

    def serve(self) -> None:
        """Until the agent's end closes."""
        while True:
            try:
                self._runner.run_until_readable(self._control.fileno())
                request = context_link.receive(self._control)
            except (KeyboardInterrupt, SystemExit):
                continue  # out of a background task of the user's
            if request is None:
                return
            self._execute(request)

    def _execute(self, request: Dict[str, Any]) -> None:
        self._set_environment(request["env"])
        if not self._blas_is_raised and "import" in request["code"]:
            # Takes a millisecond, and nobody computes with NumPy who has not imported something.
            self._blas_is_raised = True
            _raise_blas_threads()
        self._shell.begin()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._send({"event": "started", "execution_count": self._shell.execution_count})
            try:
                self._run_cell(request["code"])
            finally:
                signal.signal(signal.SIGINT, _ignore)
        except KeyboardInterrupt as interrupt:
            # It came between the user's code and ours.
            signal.signal(signal.SIGINT, _ignore)
            self._shell.report(interrupt)
        if os.getpid() != self._pid:
            # The code forked and this is the other one: it has reached its end.
            _flush()
            os._exit(0)
        self._set_environment(request["reset"])
        _flush()
        self._send({"event": "end"})

    def _run_cell(self, code: str) -> None:
        try:
            result = self._shell.run_cell(code, store_history=True)
        except (Exception, SystemExit) as error:
            # Not of the code's: code that is no text, a broken hook.
            self._shell.report(error)
            return
        # IPython would write these to its database, which there is not.
        self._shell.history_manager.db_input_cache.clear()
        raised = result.error_before_exec or result.error_in_exec
        if raised is not None:
            self._shell.report(raised)

    @staticmethod
    def _set_environment(variables: Mapping[str, Optional[str]]) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _send(self, message: Dict[str, Any]) -> None:
        """Send a message whole, whatever interrupts; not from a process that the user's code has forked."""
        if os.getpid() != self._pid:
            return
        data = context_link.encode(message)
        _flush()
        with _interrupts_put_off(), self._lock:
            self._control.sendall(data)


@contextlib.contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Half a message would be the end of the context: a KeyboardInterrupt waits until the block is over."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    arrived: List[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def _flush() -> None:
    """Send off what Python and C code have buffered."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user may have put anything there
            stream.flush()
    _libc.fflush(None)
