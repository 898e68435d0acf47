"""Waiting for file descriptors in the event loop, where asyncio has no call for what is to be read."""

import asyncio
import socket


async def readable(fd: int, timeout_s: float | None = None) -> None:
    """Return when `fd` can be read (or is at its end). Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        async with asyncio.timeout(timeout_s):
            await ready
    finally:
        loop.remove_reader(fd)


async def writable(connection: socket.socket, timeout_s: float) -> None:
    """Return when `connection` takes data. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection.fileno(), _set, ready)
    try:
        async with asyncio.timeout(timeout_s):
            await ready
    finally:
        loop.remove_writer(connection.fileno())


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
