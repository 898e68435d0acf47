import pytest

from tests.support import manager_fakes


@pytest.fixture
def world():
    return manager_fakes.World()


@pytest.fixture
async def server(world):
    server = world.server()
    await server.start()
    yield server
    if world.node.hold:
        world.node.hold.set()  # a test that failed half-way must not hang
    await server.close(destroy=False)
