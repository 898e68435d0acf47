import multiprocessing
import os
import pathlib
import sqlite3
import stat

import alembic.autogenerate
import pytest
import sqlalchemy as sa
from alembic.runtime import migration

from glovebox import errors
from glovebox_server.store import lock, schema, sqlite, tables


async def opened(path):
    store = sqlite.SqliteStore(path)
    await store.open()
    return store


async def test_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "glovebox.db"
    old_mask = os.umask(0)
    try:
        store = await opened(path)
        await store.list_keys()
    finally:
        os.umask(old_mask)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()
    await store.close()


async def test_database_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "glovebox.db"
    await (await opened(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(errors.UnsupportedError, match=r"revision '9999'.*newer version"):
        await opened(path)


async def test_opened_again_it_has_what_was_written(tmp_path):
    path = tmp_path / "a %20 b.db"
    store = await opened(path)
    assert await store.list_keys() == []
    await store.close()
    store = await opened(path)
    assert await store.list_keys() == []
    await store.close()


def test_migrations_lead_to_the_tables():
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        schema.upgrade(connection)
        context = migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, tables.METADATA) == []
    engine.dispose()


def _hold(folder, taken, stop):
    folder_lock = lock.FolderLock(pathlib.Path(folder))
    folder_lock.acquire()
    taken.set()
    stop.wait(30)
    os._exit(0)  # without releasing


def test_second_server_on_a_folder_is_refused(tmp_path):
    folder = tmp_path / "data"
    spawn = multiprocessing.get_context("spawn")
    taken, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(str(folder), taken, stop))
    process.start()
    assert taken.wait(30)
    mine = lock.FolderLock(folder)
    with pytest.raises(errors.ConflictError, match=f"process {process.pid}"):
        mine.acquire()
    stop.set()
    process.join(30)
    mine.acquire()
    mine.release()
    mine.release()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
