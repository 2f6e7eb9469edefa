"""What must be well for this server to be sent work."""

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
    """Up to where the store is migrated."""
    return {row.version_num for row in await database.read(VERSIONS)}


async def checks(
    world: World, ending: Ending, spool: Path, part: Part = ALONE
) -> Mapping[str, Check]:
    """What to ask, by the names that are told to anybody. The store must be migrated.

    A server of several processes is ready if at least one of those that listen is up: a missing
    one is replaced meanwhile, and the others answer.
    """
    ours = await versions(world.database)

    async def migrations() -> bool:
        return await versions(world.database) == ours

    async def workers() -> bool:
        return bool(ending.workers) and not any(task.done() for task in ending.workers)

    async def writable() -> bool:
        return await asyncio.to_thread(_writable, spool)

    async def serving() -> bool:
        return not ending.asked

    async def processes() -> bool:
        return part.board is None or part.board.up_count(part.many) > 0

    named = {"migrations": migrations, "workers": workers, "spool": writable, "serving": serving}
    return named if part.board is None else {**named, "processes": processes}


def process_counts(part: Part) -> Callable[[], Mapping[str, int]]:
    """Make the function that counts the processes of this server for `/health/ready`."""

    def counts() -> Mapping[str, int]:
        if part.board is None:
            return {"up": 1, "configured": 1}
        size = part.board.size
        return {"up": part.board.up_count(size), "configured": size}

    return counts


def _writable(folder: Path) -> bool:
    """Whether a file can be made there: OSError where it cannot."""
    handle, name = tempfile.mkstemp(prefix=MARK, dir=folder)  # removed at a start, if we die now
    try:
        return os.write(handle, b"?") == 1
    finally:
        os.close(handle)
        Path(name).unlink()
