"""The list of the cache entries of all processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from models.runtime.environment import Environment
from models.store.keyset_pages import EPOCH, Page, PageRequest
from resolvers.cache.entries import (
    CacheEntryRow,
    CacheKind,
    EntryConditions,
    find_blob_files,
)
from resolvers.cache.memory_values import find_memory_rows
from resolvers.cluster.process_requests import (
    AnswersOfProcesses,
    ProcessRequestKind,
    ask_all_processes,
)
from resolvers.cluster.scan_windows import ScanWindow
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders
from resolvers.pagination import page_from_rows
from resolvers.sessions.session_scope import create_visible_scope
from resolvers.users.selection import UserSelector


class CacheEntryOrder(StrEnum):
    """The order of a list of cache entries."""

    LAST_USED_AT_ASC = "LAST_USED_AT_ASC"
    LAST_USED_AT_DESC = "LAST_USED_AT_DESC"
    NAME_ASC = "NAME_ASC"
    NAME_DESC = "NAME_DESC"
    SIZE_ASC = "SIZE_ASC"
    SIZE_DESC = "SIZE_DESC"


LIST_ORDERS = list_orders(
    CacheEntryOrder,
    {
        "LAST_USED_AT": SortColumn("last_used_at", datetime),
        "NAME": SortColumn("name", str),
        "SIZE": SortColumn("size", int),
    },
)


@dataclass(frozen=True, slots=True)
class CacheConditions:
    """Conditions on cache entries. None: no condition."""

    users: UserSelector | None = None
    kinds: tuple[CacheKind, ...] | None = None
    is_dirty: bool | None = None


@dataclass(frozen=True, slots=True)
class CacheEntryPage:
    """A page of cache entries, their total number, and the nodes that did not answer."""

    page: Page[CacheEntryRow]
    total_count: int
    unresponsive_nodes: Sequence[str]


def _values_of_row(row: CacheEntryRow) -> list[Any]:
    """Return an entry as JSON values."""
    used_at = (row.last_used_at - EPOCH) // timedelta(microseconds=1)
    return [*row._replace(last_used_at=EPOCH)[:5], used_at, *row[6:]]


def _row_from_values(values: Sequence[Any]) -> CacheEntryRow:
    row = CacheEntryRow(*values)
    return row._replace(
        kind=CacheKind(row.kind), last_used_at=EPOCH + timedelta(microseconds=values[5])
    )


async def _list_cache_entries_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    conditions = EntryConditions.from_arguments(arguments)
    list_order = LIST_ORDERS[CacheEntryOrder(arguments["order"])]
    rows = await find_memory_rows(environment, conditions)
    blob_files = await find_blob_files(environment, conditions)
    blob_rows = []
    if blob_files is not None:  # in a thread, since there can be many
        blob_rows = await blob_files.cache.run_in_thread(blob_files.rows)
    window = ScanWindow.from_arguments(arguments)
    page = window.items_in_scan_order(
        [*rows, *blob_rows], lambda row: (list_order.sort_value(row), row.id)
    )
    return {
        "entries": [_values_of_row(row) for row in page],
        "memoryCount": len(rows),
        "blobCount": len(blob_rows),
        "blobFolder": blob_files.folder_id if blob_files else None,
    }


LIST_CACHE_ENTRIES = ProcessRequestKind("CACHE_LIST", _list_cache_entries_for_answer)


def _total_count(answers: AnswersOfProcesses) -> int:
    """Return the number of entries of all processes; a folder that some share counts once."""
    blob_counts: dict[str | None, int] = {}
    for answer in answers.answers:
        folder, count = answer.answer["blobFolder"], answer.answer["blobCount"]
        blob_counts[folder] = max(blob_counts.get(folder, 0), count)
    memory_count: int = sum(answer.answer["memoryCount"] for answer in answers.answers)
    return memory_count + sum(blob_counts.values())


async def read_cache_entry_page(
    ctx: Context, conditions: CacheConditions, page_request: PageRequest, order: CacheEntryOrder
) -> CacheEntryPage:
    """Read a page of the cache entries of all processes, and count them all.

    Raises InvalidInput for a cursor of another order, and the errors of `create_visible_scope`.
    """
    list_order, cursor = LIST_ORDERS[order], page_request.cursor
    sort_value = page_request.cursor_sort_value(list_order.value_type)
    window = ScanWindow.from_page_request(
        page_request,
        (sort_value, cursor.id) if cursor else None,
        is_descending=list_order.is_descending,
    )
    scope = await create_visible_scope(ctx, conditions.users)
    entry_conditions = EntryConditions(scope, conditions.kinds, conditions.is_dirty)
    arguments = {
        **entry_conditions.to_arguments(),
        **window.to_arguments(),
        "order": order.value,
    }
    answers = await ask_all_processes(ctx.environment, LIST_CACHE_ENTRIES, arguments)
    rows_by_id: dict[int, CacheEntryRow] = {}
    for answer in answers.answers:
        for values in answer.answer["entries"]:
            row = _row_from_values(values)._replace(node=answer.node)
            rows_by_id.setdefault(row.id, row)  # processes of a machine share blobs
    rows = window.items_in_scan_order(
        rows_by_id.values(), lambda row: (list_order.sort_value(row), row.id)
    )
    return CacheEntryPage(
        page_from_rows(rows, page_request), _total_count(answers), answers.unresponsive_nodes
    )
