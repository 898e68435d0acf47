"""Using up what the host has: bounded for one sandbox, unnoticed by its neighbour and the server, and all freed at its end.

Each attack ends in `unharmed`: the sandbox answers, or is gone with an error that says so; the neighbour and the server go on;
after the kill no process and no control group is left.
"""

import contextlib
import pathlib
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from e2b import SandboxException
from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers

_PIDS, _DISK, _SHM = 1024, 1536 << 20, 1 << 30


def groups(sandbox_id: str) -> list[pathlib.Path]:
    return list(pathlib.Path("/sys/fs/cgroup").glob(f"**/{sandbox_id}"))


@pytest.fixture
def unharmed(sandbox: Sandbox, neighbour: Sandbox, server: servers.Server) -> Iterator[None]:
    """What must be so after every attack."""
    posture.pids_of(sandbox.sandbox_id)
    held = groups(sandbox.sandbox_id)
    assert held
    yield
    assert neighbour.run_code("6 * 7", timeout=60).text == "42"
    try:
        assert inside.run(sandbox, "echo alive", timeout=60).stdout == "alive\n"
    except SandboxException as ended:
        # Either it has ended, or it says that it is too full to start anything.
        assert "sandbox" in str(ended).lower() or "cannot start" in str(ended), ended
    sandbox.kill()
    # Control groups can be removed only when no process is left in them: gone groups are gone processes.
    servers.wait_until(lambda: not groups(sandbox.sandbox_id), 60)
    with Sandbox.create(timeout=60) as fresh:
        assert fresh.run_code("1 + 1").text == "2"
    assert "Traceback" not in server.log()[-20_000:]


def attack(box: Sandbox, command: str, *, user: str = "user", timeout: float = 60) -> inside.Ended:
    """Run it, and let the sandbox's end be an answer, too."""
    try:
        return inside.run(box, command, user=user, timeout=timeout)
    except SandboxException as error:
        return inside.Ended(-1, "", str(error))


@pytest.mark.usefixtures("unharmed")
def test_fork_bomb(sandbox: Sandbox) -> None:
    """Without a limit of processes the host's pids run out."""
    with contextlib.suppress(Exception):
        sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 1; bomb", background=True).disconnect()
    seen = 0
    for _ in range(40):
        with contextlib.suppress(AssertionError, OSError):
            seen = max(seen, len(posture.pids_of(sandbox.sandbox_id)))
        time.sleep(0.01)
    assert seen <= _PIDS


@pytest.mark.parametrize("user", ["user", "root"])
@pytest.mark.usefixtures("unharmed")
def test_process_limit(sandbox: Sandbox, user: str) -> None:
    """Sleepers, one after the other, until fork says no. On the host it goes on for tens of thousands."""
    source = """
pids = []
try:
    while len(pids) < 5000:
        pid = os.fork()
        if pid == 0:
            import time; time.sleep(60); os._exit(0)
        pids.append(pid)
    came = "no limit"
except OSError as error:
    came = errno.errorcode[error.errno]
print(json.dumps([len(pids), came]))
for pid in pids:
    os.kill(pid, 9)
"""
    count, came = inside.python(sandbox, source, user=user)
    assert came == "EAGAIN"
    assert 100 < count < _PIDS


@pytest.mark.usefixtures("unharmed")
def test_thread_bomb(sandbox: Sandbox) -> None:
    source = """
import threading, time
threading.stack_size(65536)
count = 0
try:
    while count < 5000:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
os._exit(0)
"""
    assert inside.python(sandbox, source) < _PIDS


_MEMORY = {
    "anonymous": "hold = []\nwhile True: hold.append(bytearray(64 << 20))",
    "shared": "import mmap\nhold = []\nwhile True:\n  m = mmap.mmap(-1, 64 << 20); m.write(b'x' * (64 << 20)); hold.append(m)",
    "memfd": "fd = os.memfd_create('bomb')\nwhile True: os.write(fd, b'x' * (16 << 20))",
    "pipes": """
import fcntl
while True:
    r, w = os.pipe()
    try: fcntl.fcntl(w, 1031, 1 << 20)
    except OSError: pass
    os.set_blocking(w, False)
    try:
        while True: os.write(w, b'x' * 65536)
    except BlockingIOError: pass
""",
    "sockets": """
import socket
hold = []
while True:
    a, b = socket.socketpair()
    a.setblocking(False)
    hold += [a, b]
    try:
        while True: a.send(b'x' * 65536)
    except BlockingIOError: pass
""",
    "sysv": """
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
while True:
    one = libc.shmget(0, ctypes.c_size_t(64 << 20), 0o1600)
    if one < 0: os._exit(9)
    at = libc.shmat(one, None, 0)
    ctypes.memset(at, 1, 64 << 20)
""",
}


@pytest.mark.parametrize("kind", _MEMORY)
@pytest.mark.usefixtures("unharmed")
def test_memory_bomb(sandbox: Sandbox, kind: str) -> None:
    """Killed or refused at 2 GiB of its own; without a limit the host's memory goes. What a bomb held is free again."""
    watch = _Peak(sandbox.sandbox_id)
    with watch:
        ended = attack(sandbox, f"exec python3 -c {_quoted(inside.CALL + _MEMORY[kind])}", timeout=90)
    assert ended.exit_code != 0
    assert watch.peak_bytes <= (2048 << 20)


@pytest.mark.parametrize("folder", ["/home/user", "/tmp", "/usr/local", "/dev/shm"])
@pytest.mark.usefixtures("unharmed")
def test_disk_full(sandbox: Sandbox, folder: str) -> None:
    """ENOSPC for root as well; without a limit the host's disk or memory fills."""
    ended = attack(sandbox, f"dd if=/dev/zero of={folder}/big bs=1M 2>&1; stat -c %s {folder}/big", user="root")
    if ended.exit_code == 0:
        assert "No space left" in ended.stdout
        assert int(ended.stdout.split()[-1]) <= _DISK
        assert inside.run(sandbox, f"rm {folder}/big && echo again > {folder}/small && cat {folder}/small").stdout


@pytest.mark.parametrize("folder", ["/home/user", "/dev/shm"])
@pytest.mark.usefixtures("unharmed")
def test_inodes_full(sandbox: Sandbox, folder: str) -> None:
    source = f"""
os.mkdir({folder!r} + "/many")
count = 0
try:
    while count < 1_000_000:
        os.close(os.open({folder!r} + f"/many/{{count}}", os.O_CREAT | os.O_WRONLY))
        count += 1
    came = "no limit"
except OSError as error:
    came = errno.errorcode[error.errno]
print(json.dumps([count, came]))
"""
    count, came = inside.python(sandbox, source)
    assert came == "ENOSPC"
    assert count <= 262_144


@pytest.mark.usefixtures("unharmed")
def test_open_files(sandbox: Sandbox) -> None:
    source = """
count = 0
try:
    while count < 1_000_000:
        os.dup(0)
        count += 1
    came = "no limit"
except OSError as error:
    came = errno.errorcode[error.errno]
print(json.dumps([count, came]))
"""
    count, came = inside.python(sandbox, source)
    assert came == "EMFILE"
    assert count <= 65_536


_INOTIFY = """
import time
count = 0
for uid in range(0, 60000, 100):  # the quota is by user: take as many users as there are
    if os.fork() == 0:
        os.setresuid(uid, uid, uid)
        while call(294, 0) >= 0: pass
        time.sleep(20)
        os._exit(0)
    if uid > 3000: break
time.sleep(0.5)
print("taken", flush=True)
time.sleep(20)
"""


@pytest.mark.usefixtures("unharmed")
def test_inotify_instances(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """The kernel charges them also to whoever made the namespaces. Made as the host's root, one sandbox would leave none to
    the host's own programs and to all other sandboxes (seen so, before `outer._be_nobody`)."""
    with _background(sandbox, _INOTIFY, "taken"):
        source = "print(json.dumps(call(294, 0)))"
        assert inside.on_host(source) >= 0
        assert inside.python(neighbour, source) >= 0


@pytest.mark.usefixtures("unharmed")
def test_terminals(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """kernel.pty.max is one number for the host: without `max=` on its devpts one sandbox took all 3071 (seen so)."""
    source = """
import time
held = []
try:
    while len(held) < 5000: held.append(os.openpty())
except OSError: pass
print("taken", len(held), flush=True)
time.sleep(20)
"""
    with _background(sandbox, source, "taken") as taken:
        assert int(taken().split()[1]) <= 128
        assert inside.python(neighbour, "a, b = os.openpty()\nprint(json.dumps(os.ttyname(b)))").startswith("/dev/pts/")


def test_asynchronous_io(sandbox: Sandbox) -> None:
    """fs.aio-max-nr is one number for the host: one sandbox took all 65536 (seen so). The calls are refused."""
    assert inside.python(sandbox, "c = ctypes.c_ulong(0)\nprint(call(206, 4096, ctypes.byref(c)))") == -38


@pytest.mark.usefixtures("unharmed")
def test_message_queues(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """RLIMIT_MSGQUEUE counts by user, and for whoever made the namespaces: a neighbour must still get one."""
    source = """
import time
libc = ctypes.CDLL(None, use_errno=True)
count = 0
while count < 500 and libc.mq_open(f"/q{count}".encode(), 0o102, 0o600, None) >= 0: count += 1
print("taken", count, flush=True)
time.sleep(20)
"""
    one = 'print(json.dumps(ctypes.CDLL(None).mq_open(b"/q", 0o102, 0o600, None)))'
    with _background(sandbox, source, "taken") as taken:
        assert int(taken().split()[1]) < 500
        assert inside.python(neighbour, one) >= 0
        assert inside.on_host(one + '\nctypes.CDLL(None).mq_unlink(b"/q")') >= 0


@pytest.mark.usefixtures("unharmed")
def test_pending_signals(sandbox: Sandbox, neighbour: Sandbox) -> None:
    source = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
libc = ctypes.CDLL(None, use_errno=True)
count = 0
while count < 200000 and libc.sigqueue(os.getpid(), 40, 0) == 0: count += 1
print("taken", count, flush=True)
time.sleep(20)
"""
    one = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [40]); "
    one += "print(json.dumps(ctypes.CDLL(None).sigqueue(os.getpid(), 40, 0)))"
    with _background(sandbox, source, "taken") as taken:
        assert int(taken().split()[1]) <= 4096
        assert inside.python(neighbour, one) == 0
        assert inside.on_host(one) == 0


@pytest.mark.usefixtures("unharmed")
def test_pending_signals_of_many_users(sandbox: Sandbox) -> None:
    """Root inside can be 65,536 users, and the kernel counts by user: what they take together must be bounded, too."""
    source = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
libc = ctypes.CDLL(None, use_errno=True)
total, users = 0, []
for uid in range(5):
    count, told = os.pipe()
    users.append(os.fork())
    if users[-1] == 0:
        os.setresuid(uid, uid, uid)
        taken = 0
        while taken < 20_000 and libc.sigqueue(os.getpid(), 40, 0) == 0: taken += 1
        os.write(told, str(taken).encode())
        signal.pause()
    total += int(os.read(count, 100))
for user in users: os.kill(user, signal.SIGKILL)
print(json.dumps(total))
"""
    assert 0 < inside.python(sandbox, source) <= 4096
    assert inside.on_host(source) > 4096, "the host has no such limit: the attack would work there"


@pytest.mark.usefixtures("unharmed")
def test_long_argument_lists(sandbox: Sandbox) -> None:
    """A megabyte of arguments, and one argument longer than the kernel takes: the command's own failure."""
    many = inside.python(
        sandbox,
        "import subprocess\nprint(len(subprocess.run(['echo', *['x' * 1000] * 1000], capture_output=True).stdout))",
    )
    assert many == 1_001_000
    ended = attack(sandbox, f"echo {'x' * (1 << 20)} | wc -c")
    assert ended.exit_code != 0 or int(ended.stdout) == (1 << 20) + 1


@pytest.mark.usefixtures("unharmed")
def test_spinning_on_all_processors(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """With 64 spinners at the best priority they may ask for, the neighbour has its share of the processors."""
    neighbour.run_code("1")
    spin = "import os\nfor _ in range(64):\n  if os.fork() == 0: break\ntry: os.nice(-20)\nexcept OSError: pass\nwhile True: pass"
    sandbox.commands.run(f"exec python3 -c {_quoted(spin)}", background=True, user="root").disconnect()
    servers.wait_until(lambda: len(posture.pids_of(sandbox.sandbox_id)) > 60, 30)
    times = []
    for _ in range(5):
        start = time.monotonic()
        assert neighbour.run_code("6 * 7").text == "42"
        times.append(time.monotonic() - start)
    assert min(times) < 2, times


def test_real_time_priority_is_refused(sandbox: Sandbox) -> None:
    """A real-time spinner starves its processor; root on the host may be one."""
    source = "print(json.dumps([tried(os.sched_setscheduler, 0, p, os.sched_param(1)) for p in (os.SCHED_FIFO, os.SCHED_RR)]))"
    assert inside.python(sandbox, source) == ["EPERM", "EPERM"]


@pytest.mark.usefixtures("unharmed")
def test_processes_that_ignore_everything_end_with_the_sandbox(sandbox: Sandbox) -> None:
    """Double-forked, in sessions of their own, all signals ignored or blocked; `unharmed` sees that they are gone."""
    source = """
import signal, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        os.closerange(0, 3)
        for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True: time.sleep(60)
"""
    inside.run(sandbox, f"python3 -c {_quoted(inside.CALL + source)}")
    servers.wait_until(lambda: len(posture.pids_of(sandbox.sandbox_id)) >= 21, 30)
    pids = posture.pids_of(sandbox.sandbox_id)
    sandbox.kill()
    servers.wait_until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids), 30)


@pytest.mark.usefixtures("unharmed")
def test_zombies_are_reaped(sandbox: Sandbox) -> None:
    """Orphans come to process 1, which must wait for them: else dead processes fill the limit."""
    source = """
for _ in range(300):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
"""
    inside.run(sandbox, f"python3 -c {_quoted(inside.CALL + source)}")
    count = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
    servers.wait_until(lambda: inside.run(sandbox, count).stdout.strip() == "0", 30)


@pytest.mark.usefixtures("unharmed")
def test_output_without_end_or_newline(sandbox: Sandbox, server: servers.Server) -> None:
    """200 MB in one line, to a client that takes it as it comes: the server does not keep it."""
    before = _resident_kib(server.pid)
    command = "head -c 200000000 /dev/zero | tr '\\0' x"
    seen = 0

    def count(chunk: str) -> None:
        nonlocal seen
        seen += len(chunk)

    peak = _PeakResident(server.pid)
    with peak:
        handle = sandbox.commands.run(command, background=True, timeout=120)
        with contextlib.suppress(SandboxException):
            for stdout, _, _ in handle:
                count(stdout or "")
                if seen > 60_000_000:
                    break
        handle.kill()
    assert seen > 60_000_000
    assert peak.kib - before < 150_000


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_stops_reading(sandbox: Sandbox, server: servers.Server) -> None:
    """Output waits inside, in the pipe, and not in the server's memory."""
    before = _resident_kib(server.pid)
    handle = sandbox.commands.run("head -c 200000000 /dev/zero | tr '\\0' x", background=True, timeout=60)
    assert inside.run(sandbox, "echo on").stdout == "on\n"
    assert inside.run(sandbox, "sleep 1; echo on").stdout == "on\n"
    assert _resident_kib(server.pid) - before < 150_000
    handle.kill()


def _quoted(source: str) -> str:
    return "'" + source.replace("'", "'\"'\"'") + "'"


def _resident_kib(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout)


@contextlib.contextmanager
def _background(box: Sandbox, source: str, word: str) -> Iterator[object]:
    """Run Python inside as root until the block is left; entered when it has said `word`."""
    log = "/tmp/attack.log"
    command = f"exec python3 -c {_quoted(inside.CALL + source)} > {log} 2>&1"
    handle = box.commands.run(command, background=True, user="root", timeout=90)
    try:
        servers.wait_until(lambda: word in inside.run(box, f"cat {log}").stdout, 40)
        yield lambda: inside.run(box, f"cat {log}").stdout
    finally:
        handle.kill()


class _Watch:
    """Looks at a number again and again, in a thread, and keeps the highest."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.highest = 0

    def look(self) -> int:
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            with contextlib.suppress(OSError, ValueError):
                self.highest = max(self.highest, self.look())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _Peak(_Watch):
    """Memory of a sandbox's control group."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__()
        names = ("memory.usage_in_bytes", "memory.current")
        found = [group / name for group in groups(sandbox_id) for name in names if (group / name).exists()]
        assert found
        self._path = found[0]

    def look(self) -> int:
        return int(self._path.read_text())

    @property
    def peak_bytes(self) -> int:
        assert self.highest > 0
        return self.highest


class _PeakResident(_Watch):
    """Memory of a process of the host."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid

    def look(self) -> int:
        return _resident_kib(self._pid)

    @property
    def kib(self) -> int:
        return self.highest
