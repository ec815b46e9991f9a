"""Prefect's SQLite tables: made once per machine, checked cheaply, migrated under the caller's lock."""

import json
import shutil
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from core.artifacts import atomic_path, write_json


def seed_of(cache: Path) -> Path:
    """Return where an empty database with the current tables is kept."""
    return cache / f"prefect-{version('prefect')}.db"


def is_current(database: Path) -> bool:
    """Tell whether the tables are those that this version of Prefect last made here.

    Asking the migration tool instead costs a second of imports.
    """
    marker = _marker(database)
    if not marker.is_file() or not database.is_file():
        return False
    with suppress(ValueError):
        return bool(json.loads(marker.read_text(encoding="utf-8")) == _schema(database))
    return False


async def prepare(database: Path, seed: Path) -> None:
    """Bring the tables up to date; a new database starts as a copy of ``seed``.

    Running all migrations takes six seconds, and their outcome is always the same.

    Args:
        database: Prefect's database; made if it does not exist.
        seed: An empty database, used if it exists and made if it does not.
    """
    new = not database.exists()
    if new and seed.is_file():
        with atomic_path(database) as part:
            shutil.copyfile(seed, part)
    await _migrate()
    if new and not seed.is_file():
        # A cache that cannot be written only costs the next new home its head start.
        with suppress(OSError):
            _keep(database, seed)
    write_json(_marker(database), _schema(database))


async def _migrate() -> None:
    from prefect.server.database import provide_database_interface

    await provide_database_interface().create_db()


def _keep(database: Path, seed: Path) -> None:
    with (
        atomic_path(seed) as part,
        closing(sqlite3.connect(part)) as copy,
        closing(sqlite3.connect(database)) as full,
    ):
        full.backup(copy)


def _marker(database: Path) -> Path:
    return database.with_name("schema.json")


def _schema(database: Path) -> dict[str, str]:
    with closing(sqlite3.connect(database)) as tables:
        try:
            row = tables.execute("select version_num from alembic_version").fetchone()
        except sqlite3.DatabaseError:
            row = None
    return {"prefect": version("prefect"), "revision": row[0] if row else "unknown"}
