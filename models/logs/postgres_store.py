"""The log store in PostgreSQL: a table that is partitioned by day. Days are dropped whole.

The writer has its own connection, apart from the pool of the database. A lock lets one process
write at a time, so that ids increase in the order of the commits.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from time import monotonic
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    MetaData,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    case,
    false,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import ProgrammingError

from models.logs.entries import (
    COLUMNS,
    EPOCH,
    LogConditions,
    LogRow,
    StorableLogEntry,
    microseconds_of,
)
from models.logs.store import MAX_COUNT, MAX_ID_DELAY, LogLimits, LogPageKey, LogStoreFull
from models.store.database import Database
from models.store.postgres.connection import PostgresConnector

Result = TypeVar("Result")

log = logging.getLogger(__name__)

WRITE_LOCK = 0x6D67_6C6F_6773  # key of the advisory lock of writers
LIMITS_INTERVAL = 5.0  # seconds between two checks of age and size
FAILURE_INTERVAL = 60.0  # seconds between two checks if the first one failed
DROP_LOCK_TIMEOUT = "2s"  # of PostgreSQL: readers wait behind a drop that waits for a lock
CONNECT_TIMEOUT = 10.0  # seconds
WRITE_TIMEOUT = 30.0  # seconds
DAY = timedelta(days=1)
TABLE_NAME = "log_entries"
# With the default of 100, PostgreSQL takes rare tokens for frequent ones and scans all entries.
TOKEN_STATISTICS = 500

_CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {TABLE_NAME} (id bigint PRIMARY KEY, at bigint NOT NULL,
    component text NOT NULL, level smallint NOT NULL, program text NOT NULL, message text NOT NULL,
    user_id bigint, domain_id bigint, queue_id text, message_id text, correlation_id text,
    fields text NOT NULL, tokens text[] COLLATE "C" NOT NULL) PARTITION BY RANGE (id);
CREATE INDEX IF NOT EXISTS {TABLE_NAME}_tokens ON {TABLE_NAME}
    USING gin (tokens) WITH (gin_pending_list_limit = 256);
"""
_LIST_DAYS = f"""
SELECT child.relname AS name, coalesce(pg_total_relation_size(child.oid), 0) AS bytes
FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = '{TABLE_NAME}'::regclass ORDER BY child.relname
"""  # noqa: S608 - constant text
_ENTRIES = Table(
    TABLE_NAME,
    MetaData(),
    Column("id", BigInteger),
    Column("at", BigInteger),
    Column("component", String),
    Column("level", SmallInteger),
    Column("program", String),
    Column("message", String),
    Column("user_id", BigInteger),
    Column("domain_id", BigInteger),
    Column("queue_id", String),
    Column("message_id", String),
    Column("correlation_id", String),
    Column("fields", String),
    Column("tokens", ARRAY(Text)),
)


class PostgresLogStore:
    """A log store in the PostgreSQL database of the mail, in a table of its own."""

    def __init__(self, url: str, database: Database) -> None:
        self._connect = PostgresConnector(url).connect
        self._database = database  # reads
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread that writes
        self._writer: Any = None
        self._existing_days: set[str] = set()
        self._next_check_at = -inf  # of age and size, by the monotonic clock
        self._is_full = False

    def write_entries_unless_full(
        self, entries: Sequence[StorableLogEntry], limits: LogLimits
    ) -> None:
        """Store entries in one transaction, unless the tables are too large.

        Raises LogStoreFull or an error of the driver; then nothing is stored.
        """
        if monotonic() >= self._next_check_at:
            self._next_check_at = monotonic() + LIMITS_INTERVAL
            try:
                self._is_full = self._run_on_event_loop(
                    self._drop_old_days_and_return_is_too_large(limits)
                )
            except Exception as problem:  # noqa: BLE001 - the entries can be stored nevertheless
                self._next_check_at = monotonic() + FAILURE_INTERVAL
                log.warning(
                    "Old log entries could not be deleted",
                    extra={"problem": type(problem).__name__},
                )
        if self._is_full:
            raise LogStoreFull
        self._run_on_event_loop(self._write_entries(entries))

    def load_domain_ids_of_users(self, user_ids: Collection[int]) -> Mapping[int, int]:
        """Return the domains of users, without administrators and users without a domain."""
        return self._run_on_event_loop(self._load_domain_ids(list(user_ids)))

    def sync_to_disk(self) -> None:
        """Do nothing: a commit of PostgreSQL has waited for its disk."""

    def close_writer(self) -> None:
        """Close the connection that writes."""
        if self._loop is not None:
            self._terminate_writer()
            self._loop.close()
            self._loop = None

    def _run_on_event_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the event loop of this thread. After an error, connect again."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, WRITE_TIMEOUT))
        except BaseException:
            self._terminate_writer()
            raise

    def _terminate_writer(self) -> None:
        if self._writer is not None and self._loop is not None:
            self._writer.terminate()
            self._writer = None
            # the socket is closed in the next iteration of the event loop
            self._loop.run_until_complete(asyncio.sleep(0))

    async def _get_or_open_writer(self) -> Any:
        if self._writer is None:
            writer = await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT)
            self._writer = writer
            self._existing_days.clear()
            async with writer.transaction():
                await writer.execute("SELECT pg_advisory_xact_lock($1)", WRITE_LOCK)
                await writer.execute(_CREATE_TABLE)
        return self._writer

    async def _write_entries(self, entries: Sequence[StorableLogEntry]) -> None:
        writer = await self._get_or_open_writer()
        days: set[str] = set()
        async with writer.transaction():
            await writer.execute("SELECT pg_advisory_xact_lock($1)", WRITE_LOCK)
            last_id = await writer.fetchval(f"SELECT max(id) FROM {TABLE_NAME}") or 0  # noqa: S608
            records = []
            for entry in entries:
                last_id = max(last_id + 1, entry.row.at)
                days.add(_day_table_name(last_id))
                records.append((last_id, *entry.row[1:], entry.tokens))
            for name in sorted(days - self._existing_days):
                first, end = _id_range_of_day_table(name)
                await writer.execute(
                    f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {TABLE_NAME} "
                    f"FOR VALUES FROM ({first}) TO ({end})"
                )
                await writer.execute(
                    f"ALTER TABLE {name} ALTER COLUMN tokens SET STATISTICS {TOKEN_STATISTICS}"
                )
            await writer.copy_records_to_table(
                TABLE_NAME, records=records, columns=[*COLUMNS, "tokens"]
            )
        self._existing_days |= days

    async def _load_domain_ids(self, user_ids: list[int]) -> dict[int, int]:
        writer = await self._get_or_open_writer()
        statement = (
            "SELECT id, domain_id FROM users "
            "WHERE role = 'USER' AND domain_id IS NOT NULL AND id = ANY($1)"
        )
        return {row["id"]: row["domain_id"] for row in await writer.fetch(statement, user_ids)}

    async def _drop_old_days_and_return_is_too_large(self, limits: LogLimits) -> bool:
        """Drop the tables of the oldest days while they are too old or too large together.

        The table of today is kept. Returns True if the other tables are still too large.
        """
        writer = await self._get_or_open_writer()
        days = await writer.fetch(_LIST_DAYS)
        total = sum(day["bytes"] for day in days)
        today = _day_table_name(microseconds_of(limits.now))
        oldest_kept = microseconds_of(limits.oldest_kept)
        names = []
        for day in days:
            _, end = _id_range_of_day_table(day["name"])
            is_within_limits = end > oldest_kept and total <= limits.max_size
            if is_within_limits or day["name"] >= today:
                break
            names.append(day["name"])
            total -= day["bytes"]
        if names:
            async with writer.transaction():
                await writer.execute(f"SET LOCAL lock_timeout = '{DROP_LOCK_TIMEOUT}'")
                await writer.execute("SELECT pg_advisory_xact_lock($1)", WRITE_LOCK)
                await writer.execute(f"DROP TABLE IF EXISTS {', '.join(names)}")
            self._existing_days -= set(names)
        return bool(total > limits.max_size)

    async def read_rows(self, conditions: LogConditions, page_key: LogPageKey) -> list[LogRow]:
        """Read entries in the order of their ids, in one statement."""
        statement = _select_entries(conditions, page_key, *(_ENTRIES.c[name] for name in COLUMNS))
        return [LogRow._make(row) for row in await self._read_or_nothing(statement)]

    async def count_rows(self, conditions: LogConditions) -> int:
        """Count entries, up to MAX_COUNT."""
        entries = _select_entries(conditions, LogPageKey(MAX_COUNT), _ENTRIES.c.id).subquery()
        rows = await self._read_or_nothing(select(func.count().label("many")).select_from(entries))
        return int(rows[0].many) if rows else 0

    async def load_last_id(self) -> int:
        """Return the id of the entry that was stored last; 0 if there is none."""
        rows = await self._read_or_nothing(select(func.max(_ENTRIES.c.id).label("last")))
        return int(rows[0].last or 0) if rows else 0

    async def _read_or_nothing(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """Return rows; none if no process has written an entry yet, so there is no table."""
        try:
            return await self._database.read(statement)
        except ProgrammingError as problem:
            if _is_undefined_table(problem):
                return []
            raise

    async def close(self) -> None:
        """Close nothing: the database closes the connections that read."""


def _is_undefined_table(problem: ProgrammingError) -> bool:
    sqlstate = str(getattr(problem.orig, "sqlstate", ""))
    return sqlstate == str(asyncpg.UndefinedTableError.sqlstate)


def _day_table_name(entry_id: int) -> str:
    """Return the name of the table of the UTC day that an id belongs to."""
    return f"{TABLE_NAME}_{EPOCH + timedelta(microseconds=entry_id):%Y%m%d}"


def _id_range_of_day_table(name: str) -> tuple[int, int]:
    """Return the first id of a day's table, and the first one of the next day."""
    day = datetime.strptime(name.rpartition("_")[2], "%Y%m%d").replace(tzinfo=UTC)
    return microseconds_of(day), microseconds_of(day + DAY)


def _component_and_level_clauses(conditions: LogConditions) -> list[ColumnElement[bool]]:
    """Return the conditions on component and level, once more besides those of the tokens.

    If PostgreSQL reads entries by id, since all tokens are frequent, it evaluates conditions of
    equal cost in their order. To compare a column takes a tenth of the time to look for tokens.
    The planner expects that nearly all entries meet a comparison in this form. It would multiply
    the selectivity of a plain comparison with those of the tokens, and expect few rows.
    """
    columns = _ENTRIES.c
    clauses: list[ColumnElement[bool]] = []
    if conditions.components is not None and len(conditions.components) == 1:
        clauses.append(columns.component == conditions.components[0])
    if conditions.min_level.rank:
        clauses.append(columns.level >= conditions.min_level.rank)
    return [case((clause, 1)).is_not(None) for clause in clauses]


def _select_entries(
    conditions: LogConditions, page_key: LogPageKey, *columns: Any
) -> Select[*tuple[Any, ...]]:
    """Return the select of entries in the order of their ids."""
    entry_id = _ENTRIES.c.id
    clauses: list[ColumnElement[bool]] = []
    if conditions.matches_nothing:
        clauses.append(false())
    else:
        clauses += _component_and_level_clauses(conditions)
        groups = conditions.required_tokens()
        required = [token for group in groups for token in group if len(group) == 1]
        if required:
            clauses.append(_ENTRIES.c.tokens.contains(required))
        clauses += [_ENTRIES.c.tokens.overlap(group) for group in groups if len(group) > 1]
    if page_key.above_id is not None:
        clauses.append(entry_id > page_key.above_id)
    if page_key.below_id is not None:
        clauses.append(entry_id < page_key.below_id)
    if conditions.since is not None:
        since = microseconds_of(conditions.since)
        clauses += [entry_id >= since, _ENTRIES.c.at >= since]  # an id is never below `at`
    if conditions.before is not None:
        before = microseconds_of(conditions.before)
        delay = MAX_ID_DELAY // timedelta(microseconds=1)
        clauses += [entry_id < before + delay, _ENTRIES.c.at < before]
    order = entry_id.desc() if page_key.is_descending else entry_id.asc()
    statement = select(*columns).where(*clauses).order_by(order).limit(page_key.limit)
    if not conditions.domain_ids:
        return statement
    # Once more, independent of the tokens. In the inner select the planner would multiply the
    # selectivities of both conditions, expect few rows, and sort all entries of the domain.
    entries = statement.add_columns(_ENTRIES.c.domain_id.label("checked_domain_id")).subquery()
    order = entries.c.id.desc() if page_key.is_descending else entries.c.id.asc()
    return (
        select(*(entries.c[column.name] for column in columns))
        .where(entries.c.checked_domain_id.in_(conditions.domain_ids))
        .order_by(order)
    )
