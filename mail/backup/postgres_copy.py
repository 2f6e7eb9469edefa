"""A consistent copy of a running PostgreSQL database, by pg_dump.

A transaction exports its snapshot. `pg_dump` reads this snapshot, and the transaction reads the
names of the objects in it. So the list of objects fits the dump exactly.
"""

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import text

from mail.backup.errors import BackupError
from mail.backup.object_list import NamedObject, write_line
from mail.backup.sqlite_copy import (
    INCARNATION_SQL,
    MARKS_SQL,
    NAMED_OBJECTS_SQL,
    REVISION_SQL,
    CopyFacts,
)
from models.store.database import Database
from models.store.postgres.address import ENVIRONMENT_PARAMETERS, parse_postgres_address
from models.store.postgres.limits import UNLIMITED_STATEMENTS

ERROR_LENGTH = 500  # characters of a program's last error in a message
NAMED_OBJECTS_BY_BYTES_SQL = (
    f'SELECT name, size FROM ({NAMED_OBJECTS_SQL}) AS named ORDER BY name COLLATE "C"'  # noqa: S608 - constants
)
REVISION_ITEM = re.compile(rb" TABLE DATA \S+ alembic_version ")  # in a list of pg_restore
NO_PROGRAM = (
    "The program {} is missing: install the client programs of PostgreSQL (Debian: "
    "postgresql-client), or use pg_basebackup and WAL as docs/operating/backup.md describes."
)


def require_program(name: str) -> str:
    """Return the path of a program of PostgreSQL. Raises BackupError if it is missing."""
    path = shutil.which(name)
    if path is None:
        raise BackupError(NO_PROGRAM.format(name))
    return path


async def dump_database(database: Database, url: str, copy: Path, names_path: Path) -> CopyFacts:
    """Write a dump in the custom format, and the list of the objects that it names.

    Raises BackupError if pg_dump is missing or fails, for instance since it is older than the
    server.
    """
    program = require_program("pg_dump")
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    count = 0
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    async with engine.connect() as connection, connection.begin():
        for statement in UNLIMITED_STATEMENTS:  # the dump can take hours
            await connection.execute(text(statement))
        snapshot = (await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one()
        options = ("--format=custom", f"--snapshot={snapshot}", "--no-password", "--file", copy)
        await _run_program([program, *map(str, options)], url)
        named = await connection.stream(text(NAMED_OBJECTS_BY_BYTES_SQL))
        with names_path.open("wb") as names:
            async for name, size in named:
                write_line(names, NamedObject(name, size))
                count += 1
        revision = (await connection.execute(text(REVISION_SQL))).scalar_one()
        row = (await connection.execute(text(INCARNATION_SQL))).one_or_none()
        marks = {row.name: row.digest for row in await connection.execute(text(MARKS_SQL))}
    store, incarnation, beat = row or ("", 0, 0)
    with copy.open("rb") as file:
        await asyncio.to_thread(os.fsync, file.fileno())
    await _run_program([require_program("pg_restore"), "--list", str(copy)], url)  # it is readable
    return CopyFacts(revision, store, incarnation, beat, marks, count)


async def restore_dump(copy: Path, url: str) -> None:
    """Restore a dump into an empty database in one transaction. Raises BackupError.

    The table of the revision stays empty, so that no server can use the database yet.
    """
    program = require_program("pg_restore")
    items = await _run_program([program, "--list", str(copy)], url)
    lines = items.splitlines(keepends=True)
    item_list = copy.with_name(f"{copy.name}.items")
    item_list.write_bytes(b"".join(line for line in lines if not REVISION_ITEM.search(line)))
    options = ("--no-owner", "--no-acl", "--exit-on-error", "--single-transaction", "--no-password")
    database_name = parse_postgres_address(url).get("dbname")
    command = [program, *options, "--use-list", str(item_list), "--dbname", database_name]
    await _run_program([*command, str(copy)], url)


def libpq_environment(url: str) -> dict[str, str]:
    """The environment variables that let a program of PostgreSQL connect to a database.

    A password in a command line would be visible to all users of the machine.
    """
    parameters = dict(parse_postgres_address(url).parameters)
    parameters.pop("service", None)  # its parameters are in the address
    variable_by_parameter = {name: key for key, name in ENVIRONMENT_PARAMETERS.items()}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    given = {
        variable_by_parameter[name]: value
        for name, value in parameters.items()
        if name in variable_by_parameter and value
    }
    return inherited | given


async def _run_program(command: Sequence[str], url: str) -> bytes:
    """Run a program of PostgreSQL and return its output. Raises BackupError.

    If this task is cancelled, the program is ended.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=libpq_environment(url), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        reason = errors.decode(errors="replace").strip()[-ERROR_LENGTH:]
        raise BackupError(f"{Path(command[0]).name} failed: {reason}")
    return output
