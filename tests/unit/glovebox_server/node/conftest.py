"""A link with a peer at its other end; every test here runs on both event loops."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from glovebox_guest import wire
from glovebox_server.node import guest_link
from tests.support import link_peer


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


MakeRig = Callable[..., Awaitable[link_peer.Rig]]


@pytest.fixture
async def make_rig() -> AsyncIterator[MakeRig]:
    rigs: list[link_peer.Rig] = []

    async def make(*, hello: bool = True, **limits: float) -> link_peer.Rig:
        host, inside = socket.socketpair()
        host.setblocking(False)
        inside.setblocking(False)
        broken: list[str] = []
        link = await guest_link.GuestLink.attach(host, broken.append, **limits)
        rigs.append(link_peer.Rig(link, link_peer.Peer(inside), broken))
        if hello:
            await rigs[-1].peer.hello()
            await link.ready()
            await rigs[-1].peer.expect(wire.HELLO)
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.link.close()
        rig.peer.sock.close()


@pytest.fixture
async def rig(make_rig: MakeRig) -> link_peer.Rig:
    return await make_rig()
