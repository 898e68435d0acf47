"""Dialling ports inside, with a real agent."""

import asyncio
import os
import socket

import pytest

from tests.support import agent_client

guest = agent_client.guest
Guest = agent_client.Guest


async def test_bytes_go_both_ways_and_ends_are_told(guest: Guest) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.write_eof()
        writer.close()

    for host in ("127.0.0.1", "::1"):
        server = await asyncio.start_server(echo, host, 0)
        async with server:
            channel = guest.open("net.dial", port=server.sockets[0].getsockname()[1])
            assert await channel.event() == {"event": "connected"}
            text = os.urandom(2_000_000)
            await channel.send(text)
            channel.eof()
            items = []
            while not items or items[-1][0] != "end":
                items.append(await channel.next())
            assert b"".join(item[2] for item in items[:-2]) == text
            assert items[-2:] == [("eof",), ("end", {"ok": {}})]


async def test_nothing_listens(guest: Guest) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(agent_client.Refused, match="unavailable"):
            await guest.call("net.dial", port=unused.getsockname()[1])
    for port in (0, 65536, "80", True):
        with pytest.raises(agent_client.Refused, match="invalid_argument"):
            await guest.call("net.dial", port=port)


async def test_cancelling_closes_the_connection(guest: Guest) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        channel = guest.open("net.dial", port=server.sockets[0].getsockname()[1])
        await channel.event()
        await channel.send(b"x")
        channel.cancel()
        with pytest.raises(agent_client.Refused, match="canceled"):
            await channel.rest()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_service_that_floods_waits_for_the_host(guest: Guest) -> None:
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with pytest.raises(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                written += 65536
        writer.close()

    async with await asyncio.start_server(flood, "127.0.0.1", 0) as server:
        channel = guest.open("net.dial", port=server.sockets[0].getsockname()[1])
        channel.generous = False
        await channel.event()
        before = -1
        while written != before:
            before = written
            for _ in range(20):
                await guest.ping()
        # Our window, and the kernel's buffers of the connection.
        assert written < 20_000_000
        channel.cancel()
        with pytest.raises(agent_client.Refused, match="canceled"):
            await channel.rest()


async def test_a_connection_that_breaks_is_unavailable(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        channel = guest.open("net.dial", port=server.getsockname()[1])
        await channel.event()
        connection, _ = await asyncio.to_thread(server.accept)
        # SO_LINGER of 0: a reset instead of an end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        with pytest.raises(agent_client.Refused, match="unavailable"):
            await channel.rest()
