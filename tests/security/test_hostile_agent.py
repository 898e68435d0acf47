"""A guest agent taken over, or replaced: what root inside can do to process 1, and what process 1 could do to the rest.

What a hostile agent can send is covered where the link is spoken: tests/unit/glovebox_server/node/test_guest_link_hostile.py.
Here: that it cannot be reached into from inside, and that one that dies, hangs or is stopped harms its own sandbox only.
"""

import os
import pathlib
import signal

import pytest
from e2b import SandboxException
from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers

_TRIALS = {
    "PTRACE_ATTACH": "call(101, 16, {pid}, 0, 0)",
    "PTRACE_SEIZE": "call(101, 0x4206, {pid}, 0, 0)",
    "process_vm_readv": "call(310, {pid}, local, 1, remote, 1, 0)",
    "process_vm_writev": "call(311, {pid}, local, 1, remote, 1, 0)",
    "/proc/pid/mem": "-errno_of(os.open, '/proc/{pid}/mem', os.O_RDWR)",
    "/proc/pid/environ": "-errno_of(os.open, '/proc/{pid}/environ', os.O_RDONLY)",
    "/proc/pid/fd": "-errno_of(os.listdir, '/proc/{pid}/fd')",
    "/proc/pid/exe": "-errno_of(os.open, '/proc/{pid}/exe', os.O_RDONLY)",
    "/proc/pid/root": "-errno_of(os.open, '/proc/{pid}/root/', os.O_RDONLY)",
    "/proc/pid/map_files": "-errno_of(os.listdir, '/proc/{pid}/map_files')",
}

_SET_UP = """
def errno_of(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return error.errno
    return 0
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(64)
local = ctypes.byref(iovec(ctypes.addressof(buffer), 64))
remote = ctypes.byref(iovec(ctypes.addressof(buffer), 64))
"""


@pytest.mark.parametrize("trial", _TRIALS)
def test_root_inside_cannot_reach_into_the_agent(sandbox: Sandbox, trial: str) -> None:
    """Process 1 has the same user as root inside, and could be debugged, were it dumpable. Seen with a child of one's own."""
    call = _TRIALS[trial]
    assert inside.python(sandbox, f"{_SET_UP}print({call.format(pid=1)})") in (-1, -13)
    child = f"""{_SET_UP}
import signal
child = os.fork()
if child == 0:
    signal.pause()
result = {call.replace("{pid}", "CHILD")}
os.kill(child, 9)
print(result)
""".replace("'/proc/CHILD/", "f'/proc/{child}/").replace("CHILD", "child")
    if trial != "/proc/pid/map_files":  # for CAP_CHECKPOINT_RESTORE or dumpable owners: differs between kernels
        assert inside.python(sandbox, child) >= 0


def test_a_user_cannot_debug_another(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("exec sleep 60", user="root", background=True)
    source = f"{_SET_UP}print(call(101, 16, {handle.pid}, 0, 0))"
    assert inside.python(sandbox, source, user="user") == -1
    assert inside.python(sandbox, source, user="root") == 0
    handle.kill()


@pytest.mark.parametrize("number", [1, 2, 9, 10, 11, 13, 15, 17, 19, 20, 24, 31, 34, 64])
def test_signals_from_inside_do_not_end_the_agent(sandbox: Sandbox, number: int) -> None:
    """Process 1 of a pid namespace gets only those that it handles, and SIGKILL and SIGSTOP only from outside."""
    inside.python(sandbox, f"os.kill(1, {number})\nprint(1)")
    assert inside.run(sandbox, "echo alive").stdout == "alive\n"


def test_an_agent_that_dies_ends_its_own_sandbox(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """Killed from the host, as the memory killer would."""
    agent = posture.pids_of(sandbox.sandbox_id)[0]
    handle = os.pidfd_open(agent)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
    with pytest.raises(SandboxException):
        for _ in range(100):
            sandbox.commands.run("true", timeout=30)
    assert neighbour.run_code("6 * 7").text == "42"


def test_an_agent_that_hangs_harms_nobody_else(sandbox: Sandbox, neighbour: Sandbox, server: servers.Server) -> None:
    """Stopped from outside: calls to it time out or fail; calls to others, and its own kill, do not wait for it."""
    agent = posture.pids_of(sandbox.sandbox_id)[0]
    handle = os.pidfd_open(agent)
    signal.pidfd_send_signal(handle, signal.SIGSTOP)
    try:
        with pytest.raises(Exception):  # noqa: B017 - a time-out of the SDK's, of httpx or an answer of the server's
            sandbox.commands.run("true", timeout=3, request_timeout=3)
        assert neighbour.run_code("6 * 7").text == "42"
        assert sandbox.kill()
        servers.wait_until(lambda: not pathlib.Path(f"/proc/{agent}").exists(), 30)
    finally:
        os.close(handle)
    assert "Traceback" not in server.log()[-5000:]


def test_limits_put_on_the_agent_harm_its_own_sandbox_only(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """Root inside may lower the limits of process 1, whose user it is (prlimit(2)). That is its own loss."""
    source = """
import resource
for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
    tried(resource.prlimit, 1, kind, (0, 0))
print(1)
"""
    inside.python(sandbox, source)
    try:
        inside.run(sandbox, "true", timeout=20)
    except Exception as error:  # what it says is of this sandbox
        assert "Traceback" not in str(error)
    assert neighbour.run_code("6 * 7").text == "42"
    assert neighbour.commands.run("echo on").stdout == "on\n"
    assert sandbox.kill()


def test_a_stranger_on_the_agents_side_cannot_pose_as_the_server(sandbox: Sandbox) -> None:
    """The agent's listening socket has no name inside: nothing to connect to, and no abstract address."""
    listening = inside.run(sandbox, "cat /proc/net/unix").stdout.splitlines()[1:]
    assert all("@" not in line and "/" not in line.split()[-1] for line in listening), listening


def test_a_context_taken_over_cannot_reach_the_agents_descriptors(sandbox: Sandbox) -> None:
    """A code context is a fork of the agent: it must not have kept the listener or the link."""
    code = """
import os, socket, stat
for n in range(256):
    try:
        if not stat.S_ISSOCK(os.fstat(n).st_mode): continue
    except OSError:
        continue
    one = socket.socket(fileno=os.dup(n))
    listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    print(n, listens, one.getsockname(), "" if listens else one.getpeername())
"""
    seen = "".join(sandbox.run_code(code).logs.stdout)
    assert "links" not in seen
    assert ".sock" not in seen
    assert not any(line.split()[1] == "1" for line in seen.splitlines())
