"""The checks of `/health/ready`."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Select, column, select, table

from graph.http.health import HealthCheck
from mail.smtp.spool_file import FILE_PREFIX
from merganser.server.processes.process_roles import WHOLE_SERVER, ProcessRole
from merganser.server.shutdown import GracefulShutdown
from merganser.server.store.migration import last_revision
from models.cluster.nodes import AdministrativeNodeState
from models.runtime.components import ComponentKind, ComponentState
from models.runtime.environment import Environment
from models.store.compatible_revisions import SELECT_OLDEST_REVISION, is_code_compatible
from models.store.database import Database

SELECT_VERSIONS: Select[Any] = select(column("version_num")).select_from(table("alembic_version"))


async def load_migration_versions(database: Database) -> set[str]:
    """Load the revisions that the database is migrated to."""
    return {row.version_num for row in await database.read(SELECT_VERSIONS)}


async def readiness_checks(
    environment: Environment,
    shutdown: GracefulShutdown,
    spool_folder: Path,
    process_role: ProcessRole = WHOLE_SERVER,
) -> Mapping[str, HealthCheck]:
    """Create the readiness checks, by their public names. The database must be migrated.

    A server of several processes is ready if at least one listening process is up: it answers
    until the supervisor has replaced the others.
    """
    versions_at_start = await load_migration_versions(environment.database)

    async def are_tables_compatible() -> bool:
        """True while the tables are those of the start, or newer ones that let this code run."""
        versions = await load_migration_versions(environment.database)
        if versions == versions_at_start:
            return True
        rows = await environment.database.read(SELECT_OLDEST_REVISION)
        return is_code_compatible(last_revision(), versions, rows[0].digest if rows else None)

    async def has_workers_and_none_failed() -> bool:
        """True also while workers are held, stopped or starting."""
        workers = [
            component
            for component in environment.components
            if component.kind is ComponentKind.WORKER
        ]
        return bool(workers) and not any(
            worker.state is ComponentState.FAILED for worker in workers
        )

    async def is_spool_writable() -> bool:
        return await asyncio.to_thread(_write_and_delete_test_file, spool_folder)

    async def is_not_stopping() -> bool:
        return not shutdown.is_requested

    async def is_node_up() -> bool:
        return environment.own_node.state is AdministrativeNodeState.UP

    async def is_any_process_up() -> bool:
        return (
            process_role.status_board is None
            or process_role.status_board.up_count(process_role.listening_process_count) > 0
        )

    checks_by_name = {
        "migrations": are_tables_compatible,
        "workers": has_workers_and_none_failed,
        "spool": is_spool_writable,
        "serving": is_not_stopping,
        "node": is_node_up,
    }
    return (
        checks_by_name
        if process_role.status_board is None
        else {**checks_by_name, "processes": is_any_process_up}
    )


def process_counter(process_role: ProcessRole) -> Callable[[], Mapping[str, int]]:
    """Make the function that counts the processes of this server for `/health/ready`."""

    def count_processes() -> Mapping[str, int]:
        if process_role.status_board is None:
            return {"up": 1, "configured": 1}
        size = process_role.status_board.size
        return {"up": process_role.status_board.up_count(size), "configured": size}

    return count_processes


def _write_and_delete_test_file(folder: Path) -> bool:
    """True if a file can be written in the folder. Raises OSError otherwise."""
    # a start removes it if the process dies now
    descriptor, name = tempfile.mkstemp(prefix=FILE_PREFIX, dir=folder)
    try:
        return os.write(descriptor, b"?") == 1
    finally:
        os.close(descriptor)
        Path(name).unlink()
