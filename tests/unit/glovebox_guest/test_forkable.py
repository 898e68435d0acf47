"""A loop made before a fork works after it, on both sides, and nothing passes between them."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable

import pytest

from glovebox_guest import forkable


def in_child(work: Callable[[], object]) -> str:
    """What `work` returned in a fork of this process, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


async def _exchange() -> bytes:
    """Uses readers, and waking by a signal: all that `renew` makes anew."""
    loop = asyncio.get_running_loop()
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.setblocking(False)
        woken = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, woken.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(woken.wait(), 5)
        loop.remove_signal_handler(signal.SIGUSR1)
        theirs.send(b"heard")
        return await asyncio.wait_for(loop.sock_recv(mine, 100), 5)


def test_it_works_in_every_child_and_still_in_the_parent() -> None:
    loop = forkable.Loop()
    try:
        for _ in range(2):
            assert in_child(lambda: loop.run_until_complete(_exchange())) == "b'heard'"
            loop.renew()
        assert loop.run_until_complete(_exchange()) == b"heard"
    finally:
        loop.close()


def _sockets(loop: forkable.Loop) -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in loop.descriptors()} - {"anon_inode:[eventpoll]"}


@pytest.mark.parametrize("what", ["selectors.EpollSelector", "socket.socketpair"])
def test_a_renewal_that_fails_changes_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    loop = forkable.Loop()
    try:
        before = loop.descriptors(), _sockets(loop), len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(what, none_left)
            with pytest.raises(OSError, match="Too many"):
                loop.renew()
        assert (loop.descriptors(), _sockets(loop), len(os.listdir("/proc/self/fd"))) == before
        loop.renew()
        assert _sockets(loop).isdisjoint(before[1])
        assert loop.run_until_complete(_exchange()) == b"heard"
    finally:
        loop.close()


def test_nothing_in_the_kernel_is_shared_after_renewal() -> None:
    """Shared, one sandbox could wake or stall another's agent."""
    loop = forkable.Loop()
    try:
        seen = [_sockets(loop)]
        for _ in range(2):
            assert in_child(lambda: sorted(_sockets(loop))) == repr(sorted(seen[-1]))
            before = len(os.listdir("/proc/self/fd"))
            loop.renew()
            assert len(os.listdir("/proc/self/fd")) == before
            seen.append(_sockets(loop))
        assert all(len(sockets) == 2 for sockets in seen)
        assert len(set().union(*seen)) == 6
    finally:
        loop.close()


def test_what_a_child_waits_for_is_not_added_to_the_parents_epoll() -> None:
    loop = forkable.Loop()
    mine, theirs = socket.socketpair()
    go_r, go_w = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.read(go_r, 1)
                loop.add_reader(mine.fileno(), lambda: None)
            finally:
                os._exit(0)
        loop.renew()
        os.write(go_w, b"g")
        assert os.waitpid(pid, 0)[1] == 0
        (epoll,) = (fd for fd in loop.descriptors() if "eventpoll" in os.readlink(f"/proc/self/fd/{fd}"))
        with open(f"/proc/self/fdinfo/{epoll}") as file:
            watched = [int(line.split()[1]) for line in file if line.startswith("tfd:")]
        assert mine.fileno() not in watched
    finally:
        for fd in (go_r, go_w):
            os.close(fd)
        mine.close()
        theirs.close()
        loop.close()
