import pytest

from tests.support import server


@pytest.fixture
async def world(tmp_path):
    async with server.world(tmp_path) as world:
        yield world


@pytest.fixture
async def box(world):
    return await world.create()
