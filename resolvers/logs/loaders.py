"""Read pages of the log, and follow it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from models.logs.entries import EPOCH, LEVELS, LogComponent, LogConditions, LogLevel, LogRow
from models.logs.store import LogPageKey
from models.store.keyset_pages import Cursor, Page, PageRequest
from models.users.roles import Role
from resolvers.context import Context

POLL_SECONDS = 1.0  # between two reads of a follower
FOLLOW_BATCH = 500  # entries that a follower reads at once


class LogOrder(StrEnum):
    """The order of the log: that in which the entries were stored."""

    AT_DESC = "AT_DESC"
    AT_ASC = "AT_ASC"


@dataclass(frozen=True, slots=True)
class LogEntryRecord:
    """An entry as the API shows it."""

    id: int
    at: datetime
    component: LogComponent
    level: LogLevel
    program: str
    message: str
    user_id: int | None
    queue_id: str | None
    message_id: str | None
    correlation_id: str | None
    fields: dict[str, Any]

    def cursor(self, ordering: str) -> Cursor:
        """Return the cursor of the entry in the list with this ordering name."""
        return Cursor(ordering, self.id, self.id)


async def read_visible_log_page(
    ctx: Context, conditions: LogConditions, page_request: PageRequest, order: LogOrder
) -> Page[LogEntryRecord]:
    """Read a page of entries that the viewer can see and that are within the retention.

    Raises StorageUnavailable if the log store can't be read now.
    """
    is_descending = (order is LogOrder.AT_DESC) is not page_request.is_backward
    cursor_id = page_request.cursor.id if page_request.cursor else None
    page_key = LogPageKey(
        page_request.count + 1,
        is_descending,
        above_id=None if is_descending else cursor_id,
        below_id=cursor_id if is_descending else None,
    )
    records = await _read_records(ctx, _visible_conditions(ctx, conditions), page_key)
    if page_request.is_backward:
        records.reverse()
    return page_request.page_from_rows(records)


async def count_visible_log_entries(ctx: Context, conditions: LogConditions) -> int:
    """Count entries that the viewer can see, up to 10,000."""
    store = ctx.environment.logs.store
    return await store.count_rows(_visible_conditions(ctx, conditions)) if store else 0


async def follow_visible_log_entries(
    ctx: Context, conditions: LogConditions, after_id: int | None = None
) -> AsyncGenerator[LogEntryRecord]:
    """Yield entries of all processes, within 2 seconds after they are recorded, without an end.

    Begins after the entry `after_id`; by default after the last one.
    """
    store = ctx.environment.logs.store
    last_id = after_id
    if last_id is None:
        last_id = await store.load_last_id() if store else 0
    while True:
        page_key = LogPageKey(FOLLOW_BATCH, is_descending=False, above_id=last_id)
        records = await _read_records(ctx, _visible_conditions(ctx, conditions), page_key)
        for record in records:
            last_id = record.id
            yield record
        if len(records) < FOLLOW_BATCH:
            await asyncio.sleep(POLL_SECONDS)


async def _read_records(
    ctx: Context, conditions: LogConditions, page_key: LogPageKey
) -> list[LogEntryRecord]:
    store = ctx.environment.logs.store
    rows: Sequence[LogRow] = await store.read_rows(conditions, page_key) if store else ()
    return [_record_from_row(row) for row in rows]


def _visible_conditions(ctx: Context, conditions: LogConditions) -> LogConditions:
    """Return the conditions for entries that the viewer can see.

    An ADMIN sees all, a DOMAIN_ADMIN those of the administered domains.
    """
    now, retention = ctx.environment.now(), ctx.environment.options.logs_retention
    if not ctx.viewer.role.includes(Role.ADMIN):
        is_domain_admin = ctx.viewer.role is Role.DOMAIN_ADMIN
        domain_ids = sorted(ctx.viewer.administered_domains) if is_domain_admin else ()
        conditions = replace(conditions, domain_ids=tuple(domain_ids))
    return conditions.since_retention(now - retention)


def _record_from_row(row: LogRow) -> LogEntryRecord:
    return LogEntryRecord(
        row.id,
        EPOCH + timedelta(microseconds=row.at),
        LogComponent(row.component),
        LEVELS[row.level],
        row.program,
        row.message,
        row.user_id,
        row.queue_id,
        row.message_id,
        row.correlation_id,
        json.loads(row.fields),
    )
