"""Two sandboxes, and the host, share nothing by which they could meet. Each thing is first seen to work within one sandbox."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers

_HOLD = """
import socket, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
one = socket.socket(socket.AF_UNIX); one.bind("\\0glovebox-meeting"); one.listen()
path = socket.socket(socket.AF_UNIX); path.bind("/tmp/meeting.sock"); path.listen()
tcp = socket.create_server(("127.0.0.1", 4242))
shm = libc.shmget(0x6d656574, ctypes.c_size_t(4096), 0o1666)
sem = libc.semget(0x6d656574, 1, 0o1666)
msg = libc.msgget(0x6d656574, 0o1666)
mq = libc.mq_open(b"/meeting", 0o102, 0o666, None)
assert min(shm, sem, msg, mq) >= 0
for file in ("/dev/shm/meeting", "/tmp/meeting", "/run/meeting", "/var/tmp/meeting"):
    open(file, "w").write("here")
print("held", flush=True)
time.sleep(60)
"""

_MEET = """
import socket
libc = ctypes.CDLL(None, use_errno=True)
def connects(family, address):
    with socket.socket(family) as one:
        return tried(one.connect, address) == "done"
print(json.dumps({
    "abstract socket": connects(socket.AF_UNIX, "\\0glovebox-meeting"),
    "socket in /tmp": connects(socket.AF_UNIX, "/tmp/meeting.sock"),
    "port": connects(socket.AF_INET, ("127.0.0.1", 4242)),
    "shared memory": libc.shmget(0x6d656574, ctypes.c_size_t(0), 0) >= 0,
    "semaphores": libc.semget(0x6d656574, 0, 0) >= 0,
    "messages": libc.msgget(0x6d656574, 0) >= 0,
    "message queue": libc.mq_open(b"/meeting", 0) >= 0,
    "/dev/shm": os.path.exists("/dev/shm/meeting"),
    "/tmp": os.path.exists("/tmp/meeting"),
    "/run": os.path.exists("/run/meeting"),
    "/var/tmp": os.path.exists("/var/tmp/meeting"),
}))
"""


@contextlib.contextmanager
def holding(box: Sandbox) -> Iterator[None]:
    """Everything by which two programs may meet, held open inside."""
    box.files.write("/tmp/hold.py", inside.CALL + _HOLD, user="root")
    command = "exec python3 /tmp/hold.py > /tmp/hold.log 2>&1"
    handle = box.commands.run(command, background=True, user="root", timeout=120)
    servers.wait_until(lambda: "held" in inside.run(box, "cat /tmp/hold.log").stdout, 30)
    yield
    handle.kill()


def test_nothing_is_shared_between_two_sandboxes(sandbox: Sandbox, neighbour: Sandbox) -> None:
    with holding(sandbox):
        within = inside.python(sandbox, _MEET)
        assert all(within.values()), within
        beside = inside.python(neighbour, _MEET)
        assert not any(beside.values()), beside
        on_host = inside.on_host(_MEET)
        assert not any(on_host.values()), on_host


def test_sockets_of_the_host_are_not_reached(sandbox: Sandbox) -> None:
    """The host's abstract sockets (D-Bus, X, containerd-shim once) are of its network namespace."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0glovebox-host-{os.getpid()}")
        listener.listen()
        source = f"""
import socket
with socket.socket(socket.AF_UNIX) as one:
    print(json.dumps(tried(one.connect, "\\0glovebox-host-{os.getpid()}")))
"""
        assert inside.on_host(source) == "done"
        assert inside.python(sandbox, source) == "ECONNREFUSED"


def test_processes_of_others_cannot_be_seen_or_signalled(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """`kill -9 -1` as root ends everything that it can see: its own sandbox's processes, and not the guest agent."""
    neighbour.run_code("x = 1")
    theirs = posture.pids_of(neighbour.sandbox_id)
    with open("/proc/sys/kernel/pid_max") as file:
        highest = int(file.read())
    source = f"""
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
found = []
for pid in {theirs!r} + list(range(2, {min(highest, 65536)})):
    if pid in pids or os.path.exists(f"/proc/{{pid}}"): continue
    if tried(os.kill, pid, 0) != "ESRCH": found.append(pid)
print(json.dumps([len(pids), found]))
"""
    count, found = inside.python(sandbox, source)
    assert count < 20
    assert found == []
    with contextlib.suppress(Exception):
        inside.run(sandbox, "python3 -c 'import os; os.kill(-1, 9)'")
    assert posture.pids_of(neighbour.sandbox_id) == theirs
    assert neighbour.run_code("x + 1").text == "2"
    assert inside.run(sandbox, "echo alive").stdout == "alive\n"


def test_process_groups_and_priorities_stop_at_the_sandbox(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """setpriority(2) for "every process of user 0" must not be the host's user 0, nor the neighbour's."""
    handle = neighbour.commands.run("sleep 60", background=True, user="root")
    pid = max(posture.pids_of(neighbour.sandbox_id))
    before = os.getpriority(os.PRIO_PROCESS, pid), os.getpriority(os.PRIO_PROCESS, os.getpid())
    inside.python(sandbox, "os.setpriority(os.PRIO_USER, 0, 15)\nprint(os.getpriority(os.PRIO_PROCESS, 0))")
    assert (os.getpriority(os.PRIO_PROCESS, pid), os.getpriority(os.PRIO_PROCESS, os.getpid())) == before
    handle.kill()


def test_locks_on_shared_files_are_not_shared(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """Files of the template's layers are the same files for all; flock(2) on them must not carry from one to another."""
    source = """
import fcntl, time
one = open("/usr/bin/env"); fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
two = open("/etc/passwd"); fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True); time.sleep(60)
"""
    sandbox.files.write("/tmp/lock.py", source, user="root")
    handle = sandbox.commands.run("exec python3 /tmp/lock.py > /tmp/lock.log 2>&1", background=True, user="root")
    servers.wait_until(lambda: "held" in inside.run(sandbox, "cat /tmp/lock.log").stdout, 30)
    other = """
import fcntl
print(json.dumps([tried(fcntl.flock, open(p), fcntl.LOCK_EX | fcntl.LOCK_NB) for p in ("/usr/bin/env", "/etc/passwd")]))
"""
    assert inside.python(sandbox, other) == ["EAGAIN", "EAGAIN"]
    assert inside.python(neighbour, other) == ["done", "done"]
    handle.kill()


def test_what_others_open_cannot_be_watched(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """An inotify watch on a file of a layer, or on a device, tells of one's own opens and of nobody else's. (What every
    program opens, /dev/null and /etc/passwd, is left out: the watching sandbox's own guest agent does, too.)"""
    source = """
import time
fd = call(294, 0o4000)
libc = ctypes.CDLL(None, use_errno=True)
paths = ["/dev/zero", "/dev/full", "/usr/bin/env", "/etc/group", "/proc/version"]
watches = {libc.inotify_add_watch(fd, path.encode(), 0x20): path for path in paths}
print("watching", flush=True)
deadline = time.monotonic() + 60
while not os.path.exists("/tmp/enough") and time.monotonic() < deadline: time.sleep(0.05)
seen = []
try:
    events = os.read(fd, 1 << 20)
except BlockingIOError:
    events = b""
import struct
at = 0
while at < len(events):
    watch, _, _, length = struct.unpack_from("iIII", events, at)
    seen.append(watches[watch]); at += 16 + length
print(json.dumps(sorted(set(seen))), flush=True)
"""
    sandbox.files.write("/tmp/watch.py", inside.CALL + source, user="root")
    handle = sandbox.commands.run(
        "exec python3 /tmp/watch.py > /tmp/watch.log", background=True, user="root", timeout=90
    )
    servers.wait_until(lambda: "watching" in inside.run(sandbox, "cat /tmp/watch.log").stdout, 30)
    time.sleep(0.2)
    inside.run(neighbour, "cat /usr/bin/env /etc/group /proc/version > /dev/null; head -c1 /dev/zero /dev/full")
    for path in ("/dev/zero", "/dev/full", "/usr/bin/env"):
        with open(path, "rb"):
            pass
    sandbox.files.write("/tmp/enough", "", user="root")
    servers.wait_until(lambda: "]" in inside.run(sandbox, "cat /tmp/watch.log").stdout, 60)
    assert str(sandbox.files.read("/tmp/watch.log")).splitlines()[-1] == "[]"
    handle.kill()
