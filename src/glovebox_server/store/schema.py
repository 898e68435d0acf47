"""Brings a database to the tables of this version, at start; refuses one that is ahead of it."""

import pathlib

import sqlalchemy as sa
from alembic import command, config, script
from alembic.runtime import migration

from glovebox import errors

_MIGRATIONS = pathlib.Path(__file__).parent / "migrations"


def upgrade(connection: sa.Connection) -> None:
    """Apply the migrations that are missing. UnsupportedError when the database was written by a newer Glovebox."""
    settings = config.Config()
    settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    known = {revision.revision for revision in script.ScriptDirectory.from_config(settings).walk_revisions()}
    for found in migration.MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            raise errors.UnsupportedError(
                f"the database is at revision '{found}', which this version of Glovebox does not know:"
                " it was written by a newer version. Start that version, or use another data folder."
            )
    command.upgrade(settings, "head")
