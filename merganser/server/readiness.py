"""The checks of `/health/ready`."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Select, column, select, table

from graph.http.health import Check
from mail.smtp.spool_file import MARK
from merganser.server.processes.process_roles import ALONE, Part
from merganser.server.shutdown import Ending
from models.runtime.environment import World
from models.store.database import Database

VERSIONS: Select[Any] = select(column("version_num")).select_from(table("alembic_version"))


async def versions(database: Database) -> set[str]:
    """Load the revisions that the database is migrated to."""
    return {row.version_num for row in await database.read(VERSIONS)}


async def checks(
    environment: World, shutdown: Ending, spool: Path, process_role: Part = ALONE
) -> Mapping[str, Check]:
    """Make the readiness checks, by their public names. The database must be migrated.

    A server of several processes is ready if at least one of those that listen is up: a missing
    one is replaced meanwhile, and the others answer.
    """
    ours = await versions(environment.database)

    async def migrations() -> bool:
        return await versions(environment.database) == ours

    async def workers() -> bool:
        return bool(shutdown.workers) and not any(task.done() for task in shutdown.workers)

    async def writable() -> bool:
        return await asyncio.to_thread(_writable, spool)

    async def serving() -> bool:
        return not shutdown.asked

    async def processes() -> bool:
        return process_role.board is None or process_role.board.up_count(process_role.many) > 0

    checks_by_name = {
        "migrations": migrations,
        "workers": workers,
        "spool": writable,
        "serving": serving,
    }
    return (
        checks_by_name if process_role.board is None else {**checks_by_name, "processes": processes}
    )


def process_counts(process_role: Part) -> Callable[[], Mapping[str, int]]:
    """Make the function that counts the processes of this server for `/health/ready`."""

    def counts() -> Mapping[str, int]:
        if process_role.board is None:
            return {"up": 1, "configured": 1}
        size = process_role.board.size
        return {"up": process_role.board.up_count(size), "configured": size}

    return counts


def _writable(folder: Path) -> bool:
    """True if a file can be written in the folder. Raises OSError otherwise."""
    descriptor, name = tempfile.mkstemp(
        prefix=MARK, dir=folder
    )  # a start removes it if the process dies now
    try:
        return os.write(descriptor, b"?") == 1
    finally:
        os.close(descriptor)
        Path(name).unlink()
