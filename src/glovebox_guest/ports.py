"""`net.dial`: a TCP connection to a port inside, carried over a channel."""

import asyncio
import contextlib
import socket
from typing import Any, Dict, Optional

from glovebox_guest import channel as channels
from glovebox_guest import parameters, refusals

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 2048
_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Ports:
    """The handler, and how many connections it carries."""

    def __init__(self) -> None:
        self._connections = 0

    async def dial(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`net.dial`."""
        port = parameters.number(params, "port", 1, 65535)
        if self._connections >= MAX_CONNECTIONS:
            raise refusals.Refused("resource_exhausted", f"at most {MAX_CONNECTIONS} connections can be open at once")
        self._connections += 1
        try:
            with await _connect(port) as connection:
                await channel.event({"event": "connected"})
                await _carry(connection, channel)
        finally:
            self._connections -= 1
        return {}


async def _connect(port: int) -> socket.socket:
    for family, address in _ADDRESSES:
        connection: Optional[socket.socket] = None
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # An address in figures: the loop has nothing to look up, which it would do in a thread.
            connecting = asyncio.get_running_loop().sock_connect(connection, (address, port))
            await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
            return connection
        except (OSError, asyncio.TimeoutError):
            if connection is not None:
                connection.close()
        except BaseException:
            if connection is not None:
                connection.close()
            raise
    raise refusals.Refused("unavailable", f"nothing listens on port {port}")


async def _carry(connection: socket.socket, channel: channels.Channel) -> None:
    """Both directions, until both are done; when one breaks, both are."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_carry_out(connection, channel)), loop.create_task(_carry_in(connection, channel))]
    try:
        await asyncio.gather(*tasks)
    except OSError as error:
        raise refusals.Refused("unavailable", "the connection broke") from error
    finally:
        for task in tasks:
            task.cancel()
        # The socket must not be closed under a task that still waits for it.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry_out(connection: socket.socket, channel: channels.Channel) -> None:
    loop = asyncio.get_running_loop()
    while True:
        # Read only what there is room for: the rest waits in the kernel, and the program with it.
        await channel.wait_room()
        data = await loop.sock_recv(connection, min(channel.room() or 1, CHUNK_BYTES))
        if not data:
            channel.send_eof()
            return
        await channel.data(0, data)


async def _carry_in(connection: socket.socket, channel: channels.Channel) -> None:
    loop = asyncio.get_running_loop()
    while True:
        data = await channel.receive()
        if data is None:
            # The program has closed already, perhaps.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            return
        await loop.sock_sendall(connection, data)
