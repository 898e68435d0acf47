"""The zygote: process 1 of the outer namespaces, warm with the guest agent and the interpreter; each sandbox is one fork of it.

Runs the template's Python inside the template's root (see `outer.py`), holds no privilege on the host, and obeys one
control socket. Messages on it are JSON, one to a packet; descriptors ride along:

    {"op": "ping"}                                     ▶ {"ok": true, "sandboxes": [ids]}
    {"op": "userns", "map": "0 65536 65536", "owner": 65536, "pids": 1024}
                                                       ▶ {"ok": true} and a descriptor: a user namespace with that map
    {"op": "netns"}                                    ▶ {"ok": true} and a descriptor: a network namespace, loopback up
    {"op": "seccomp", "program": base64}               ▶ {"ok": true}: the filter of every sandbox from now on
    {"op": "spawn", "sandbox_id", ...} and two descriptors: report, listener
                       ▶ nothing; the new process itself says {"ready": true} or {"error": ...} on `report`, where it
                         is handed the other descriptors: control groups, layers, /dev, network, user namespace
    {"op": "kill", "sandbox_id"}                       ▶ {"ok": true}

It runs one thread and one loop, forks, and never waits for what it forked. Python 3.9+, standard library.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

from glovebox_guest import agent, contexts, kernel
from glovebox_server.linux import syscalls
from glovebox_server.runtimes.namespace import jail

_MAX_MESSAGE_BYTES = 128 * 1024
_MAX_DESCRIPTORS = 32
#: The host's default for all sandboxes of a zygote together is 128 instances (fs.inotify.max_user_instances).
_QUOTAS = {"max_inotify_instances": 32, "max_inotify_watches": 65_536}


class Zygote:
    """The loop."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._control: socket.socket | None = None
        self._children: dict[int, str] = {}  # pid in our namespace -> sandbox id
        self._covers = jail.covered("/proc")
        self._seccomp = b""
        # Contexts are imported here, not in each sandbox on first use.
        self._ready = agent.Ready(contexts.Contexts, prepare_code=True)
        self._is_renewed = True
        _bound_quotas()
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._wakeup, wakeup = socket.socketpair()
        for end in (self._wakeup, wakeup):
            end.setblocking(False)
        self._signal_end = wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._reap)

    def run(self) -> None:
        """For ever."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        """A server, new or restarted: the newest one is obeyed."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has left again, or there is no descriptor free for it now
        self._drop_control()
        self._control = connection
        self._selector.register(connection, selectors.EVENT_READ, self._obey)

    def _drop_control(self) -> None:
        if self._control is not None:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None

    def _obey(self) -> None:
        assert self._control is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS)
        except OSError:
            data, fds = b"", []
        if not data:
            self._drop_control()
            return
        request: dict[str, Any] = {}
        try:
            request = json.loads(data)
            self._dispatch(request, list(fds))
        except (OSError, ValueError, KeyError, IndexError) as error:
            self._answer(request, {"error": f"{type(error).__name__}: {error}"})
        finally:
            for fd in fds:
                _close(fd)

    def _dispatch(self, request: dict[str, Any], fds: list[int]) -> None:
        op = request["op"]
        if op == "spawn":
            self._spawn(request, fds)
        elif op == "userns":
            fd = _make_user_namespace(request["map"], int(request["owner"]), int(request["pids"]))
            self._answer(request, {"ok": True}, [fd])
            os.close(fd)
        elif op == "netns":
            fd = self._make_network_namespace()
            self._answer(request, {"ok": True}, [fd])
            os.close(fd)
        elif op == "seccomp":
            self._seccomp = base64.b64decode(request["program"])
            self._answer(request, {"ok": True})
        elif op == "kill":
            for pid, sandbox_id in self._children.items():
                if sandbox_id == request["sandbox_id"]:
                    os.kill(pid, signal.SIGKILL)
            self._answer(request, {"ok": True})
        elif op == "ping":
            self._answer(request, {"ok": True, "sandboxes": sorted(self._children.values())})
        else:
            raise ValueError(f"unknown op {op!r}")

    def _answer(self, request: dict[str, Any], message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._control is None:
            return
        try:
            answer = {**message, "seq": request.get("seq")}
            socket.send_fds(self._control, [json.dumps(answer).encode()], fds or [])
        except OSError:
            self._drop_control()

    def _reap(self) -> None:
        try:
            while self._wakeup.recv(4096):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.pop(pid, None)

    # -- forking ----------------------------------------------------------------------------------------------------

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        report, listener = fds
        try:
            self._renew()  # when that failed after the last fork
            pid = self._fork_into_new_pid_namespace()
            if pid == 0:
                _become_sandbox(request, report, listener, self._seccomp, self._covers, self._ready)
        except OSError as error:
            try:
                os.write(report, json.dumps({"error": f"fork: {error}"}).encode())
            except OSError:
                pass  # the server waits no longer. Not `_report`: that would end us, and every sandbox with us
            return
        self._children[pid] = request["sandbox_id"]
        self._is_renewed = False
        self._renew()

    def _renew(self) -> None:
        """No two sandboxes ever get the same loop: what one has in the kernel would be the other's too."""
        if not self._is_renewed:
            self._ready.renew()
            self._is_renewed = True

    def _fork_into_new_pid_namespace(self) -> int:
        # unshare(CLONE_NEWPID) moves only the children forked from here on; ours must go back, or the next
        # unshare would fail (pid_namespaces(7)).
        syscalls.unshare(syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                syscalls.setns(self._own_pid_namespace, syscalls.CLONE_NEWPID)
        return pid

    def _make_network_namespace(self) -> int:
        """By a step into it and back: a fork would cost more than the namespace."""
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            jail.set_up_network("/proc")
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(self._own_network, syscalls.CLONE_NEWNET)


def _make_user_namespace(id_map: str, owner: int, pids: int) -> int:
    """A user namespace that nobody lives in yet, as a descriptor: a child makes it, we write its maps, the child ends.

    It belongs to `owner`, the first id in it, whom the kernel charges for what is used up in it (see `jail.be_first_id`),
    and keeps the limits that its maker has (see `jail.limit_users`).
    """
    made, making = os.pipe()
    held, holding = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.close(holding)
                jail.limit_users(pids)
                jail.be_first_id(owner)
                syscalls.unshare(syscalls.CLONE_NEWUSER)
                os.write(making, b"u")
                os.read(held, 1)  # until we are closed
            finally:
                os._exit(0)
        os.close(making)
        making = -1
        if not os.read(made, 1):
            raise OSError("a user namespace could not be made (see /proc/sys/user)")
        _write_maps(pid, id_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (made, making, held, holding):
            _close(fd)


def _bound_quotas() -> None:
    """What each sandbox may take of quotas that the host gives to all of them together (see `jail.be_first_id`)."""
    for name, most in _QUOTAS.items():
        # Safety: limits of our own user namespace only (namespaces(7), /proc/sys/user).
        fd = os.open(f"/proc/sys/user/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(most).encode())
        finally:
            os.close(fd)


def _write_maps(pid: int, id_map: str) -> None:
    # Safety: `pid` is our own child and has not been reaped, so the number is still its. The map's ids are ours: the
    # kernel refuses any that our own user namespace does not have.
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, id_map.encode())
        finally:
            os.close(fd)


def _become_sandbox(
    request: dict[str, Any], report: int, listener: int, seccomp: bytes, covers: dict[str, str], ready: agent.Ready
) -> None:
    """In the child: enter the jail, say so, and be the guest agent. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        _close_all_but({report, listener, *ready.descriptors()})
        jail.enter(request, jail.Descriptors(report), seccomp, covers)
        _report(report, {"ready": True})
        os.close(report)
        report = -1
        gc.enable()
        ready.serve(socket.socket(fileno=listener))
    except BaseException as error:
        # Work ends here: whatever it was, this process must not go on as a second zygote.
        _report(report, {"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(1)


def _report(fd: int, message: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(message).encode())
    except OSError:
        os._exit(1)  # nobody is there to know of this sandbox: it must not live


def _close_all_but(keep: set[int]) -> None:
    """Close every descriptor but these, and have nothing on 0, 1 and 2."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    start = 3
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def main() -> None:
    """Started by `outer.py`: warm up, then obey."""
    config = json.loads(sys.argv[1])
    kernel.warm(config["warm_modules"])
    agent.rehearse()
    agent.ignore_signals()
    listener = socket.socket(fileno=config["control_fd"])
    zygote = Zygote(listener)
    gc.collect()
    # The objects made so far are never looked at by the collector again, so that forks go on sharing their pages.
    gc.freeze()
    gc.disable()
    zygote.run()
