"""The size and the free space of the database and the other stores."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Select, String, column, func, select, table

from mail.storage.blobs.object_stores import FolderStore
from mail.storage.blobs.tiered_store import TieredStore
from models.logs.sqlite_store import SqliteLogStore
from models.runtime.environment import Environment
from models.store.columns import BIG_INTEGER
from models.store.object_store import ObjectStoreProtocol
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.health.dependencies import address_of_store
from resolvers.health.loaders import READ_RULE

SQLITE_SUFFIXES = ("", "-wal", "-shm")  # of the files of a database
# counters that VACUUM, ANALYZE and CREATE INDEX update
_pages: Any = column("relpages", BIG_INTEGER)
_is_log_table = column("relname", String).startswith("log_entries", autoescape=True)
_SELECT_POSTGRES_PAGES: Select[*tuple[Any, ...]] = select(
    func.sum(_pages).filter(~_is_log_table).label("database_pages"),
    func.sum(_pages).filter(_is_log_table).label("log_pages"),
    func.current_setting("block_size").label("block_size"),
).select_from(table("pg_class"))


@dataclass(frozen=True, slots=True)
class StorageRow:
    """A store on one node. None: unknown for a store of this kind."""

    store: str
    address: str
    size: int | None  # bytes of its own data
    total: int | None = None  # bytes of the disk that has it
    used: int | None = None
    free: int | None = None  # bytes for the user of the server
    node: str = ""

    @property
    def used_percent(self) -> float | None:
        """The used part of the disk in percent, as `df` computes it; None if it is unknown."""
        if self.used is None or self.free is None or not self.used + self.free:
            return None
        return round(100 * self.used / (self.used + self.free), 1)


@dataclass(frozen=True, slots=True)
class StoresOfNodes:
    """The stores of all nodes, and the nodes that did not answer."""

    stores: Sequence[StorageRow]
    unresponsive_nodes: Sequence[str]


async def _list_storage_for_answer(
    environment: Environment, _arguments: Mapping[str, Any]
) -> dict[str, Any]:
    rows: list[StorageRow] = []
    if environment.database.dialect == "postgresql":
        (counts,) = await environment.database.read(_SELECT_POSTGRES_PAGES)
        block_size = int(counts.block_size)
        for name, pages in (("database", counts.database_pages), ("logs", counts.log_pages)):
            rows.append(StorageRow(name, "PostgreSQL", int(pages or 0) * block_size))
    rows += await asyncio.to_thread(_read_files_and_disks, environment)
    return {"stores": [asdict(row) for row in rows]}


LIST_STORAGE = ProcessRequestKind("STORAGE_LIST", _list_storage_for_answer)


def _read_files_and_disks(environment: Environment) -> list[StorageRow]:
    """Read the sizes of files and disks. Only a few system calls, but a disk can be slow."""
    rows = []
    log_store = environment.logs.store
    if environment.database.dialect == "sqlite":
        database_file = Path(environment.database.engine.url.database or "")
        rows.append(_row_of_file("database", database_file))
    if isinstance(log_store, SqliteLogStore):
        rows.append(_row_of_file("logs", log_store.path))
    store = environment.object_store
    if isinstance(store, TieredStore):
        rows += [_row_of_object_store("blobs", store.hot)]
        rows += [_row_of_object_store("coldBlobs", store.cold)]
    else:
        rows.append(_row_of_object_store("blobs", store))
    for name, folder in environment.server_control.folders.items():
        rows.append(_row_of_folder(name, folder))
    return rows


def _row_of_file(name: str, file: Path) -> StorageRow:
    size = sum(_file_size(file.with_name(file.name + suffix)) for suffix in SQLITE_SUFFIXES)
    return _with_disk_space(StorageRow(name, str(file), size), file.parent)


def _file_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _row_of_folder(name: str, folder: Path) -> StorageRow:
    return _with_disk_space(StorageRow(name, str(folder), None), folder)


def _row_of_object_store(name: str, store: ObjectStoreProtocol) -> StorageRow:
    if isinstance(store, FolderStore):
        return _row_of_folder(name, store.folder)
    return StorageRow(name, address_of_store(store), None)


def _with_disk_space(row: StorageRow, folder: Path) -> StorageRow:
    """Add the space of the disk that has a folder, unless the folder is missing."""
    try:
        disk = shutil.disk_usage(folder)
    except OSError:  # the component shows the failure
        return row
    return replace(row, total=disk.total, used=disk.used, free=disk.free)


async def read_storage(ctx: Context) -> StoresOfNodes:
    """Read the stores of all nodes; a store that several processes of a node use occurs once.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    answers = await ask_all_processes(ctx.environment, LIST_STORAGE, {})
    rows: dict[tuple[str, str, str], StorageRow] = {}
    for answer in answers.answers:
        for values in answer.answer["stores"]:
            row = replace(StorageRow(**values), node=answer.node)
            rows.setdefault((row.node, row.store, row.address), row)
    return StoresOfNodes([rows[key] for key in sorted(rows)], answers.unresponsive_nodes)
