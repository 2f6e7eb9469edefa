"""The log store in an SQLite file of its own.

Entries are in segments: a table of rows and an FTS5 table of their tokens. The newest segment
grows; the oldest one is dropped whole, which costs less than deleting its rows. All processes of a
server write to the same file.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from threading import local
from time import monotonic, sleep
from typing import TypeVar

from models.logs.entries import COLUMNS, LogConditions, LogRow, StorableLogEntry, microseconds_of
from models.logs.store import MAX_COUNT, MAX_ID_DELAY, LogLimits, LogPageKey
from models.store.outages import StorageUnavailable
from models.store.sqlite.interruptible_threads import InterruptibleRead, InterruptibleThreads

Result = TypeVar("Result")

SEGMENT_COUNT = 8  # in which the retention and the size are divided
MIN_SEGMENT_AGE = timedelta(hours=1)
BUSY_TIMEOUT = 5.0  # seconds to wait for the writer of another process
LOCK_INTERVAL = 0.01  # seconds between two attempts if SQLite does not wait
INDEX_OVERHEAD = 2  # bytes of a segment for each byte of its rows, about
READER_THREADS = 2
MAX_VARIABLES = 500  # in a statement
ROWS_IN_STATEMENT = 100  # of an insert; SQLite allows 32,766 variables

_CREATE_SEGMENT = """
CREATE TABLE entries_{number} (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, component TEXT NOT NULL,
    level INTEGER NOT NULL, program TEXT NOT NULL, message TEXT NOT NULL, user_id INTEGER,
    domain_id INTEGER, queue_id TEXT, message_id TEXT, correlation_id TEXT, fields TEXT NOT NULL);
CREATE VIRTUAL TABLE tokens_{number} USING fts5(
    tokens, content='', columnsize=0, detail=none, tokenize='ascii');
"""
_CREATE_SEGMENT_LIST = """CREATE TABLE IF NOT EXISTS segments (
    number INTEGER PRIMARY KEY, started_at INTEGER NOT NULL, bytes INTEGER NOT NULL)"""


class SqliteLogStore:
    """A log store in one SQLite file, which is created at the first write."""

    def __init__(self, path: Path, mail_database: Path) -> None:
        self.path = path
        self._mail_database = mail_database  # only read, for the domains of users
        self._writer: sqlite3.Connection | None = None
        self._readers = InterruptibleThreads(READER_THREADS, READER_THREADS, "log-reader")
        self._reader_connections: list[sqlite3.Connection] = []
        self._thread_state = local()  # has the connection of each thread that reads

    def write_entries_unless_full(
        self, entries: Sequence[StorableLogEntry], limits: LogLimits
    ) -> None:
        """Store entries in one transaction. Raises sqlite3.Error; then nothing is stored."""
        connection = self._get_or_open_writer()
        connection.execute("BEGIN IMMEDIATE")
        try:
            segment = self._find_or_create_segment_to_write(connection, limits)
            last_id = _last_id_in_segments(connection)
            byte_count = 0
            rows, tokens = [], []
            for entry in entries:
                last_id = max(last_id + 1, entry.row.at)
                rows.append((last_id, *entry.row[1:]))
                text = " ".join(entry.tokens)
                tokens.append((last_id, text))
                byte_count += len(text) + len(entry.row.message) + len(entry.row.fields)
            _insert_rows(connection, f"entries_{segment}", COLUMNS, rows)
            _insert_rows(connection, f"tokens_{segment}", ("rowid", "tokens"), tokens)
            connection.execute(
                "UPDATE segments SET bytes = bytes + ? WHERE number = ?",
                (byte_count * INDEX_OVERHEAD, segment),
            )
            _drop_segments_beyond_limits(connection, limits)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def load_domain_ids_of_users(self, user_ids: Collection[int]) -> Mapping[int, int]:
        """Return the domains of users, without administrators and users without a domain."""
        found: dict[int, int] = {}
        keys = list(user_ids)
        uri = f"{self._mail_database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as connection:
            for start in range(0, len(keys), MAX_VARIABLES):
                chunk = keys[start : start + MAX_VARIABLES]
                marks = ", ".join("?" * len(chunk))
                found |= connection.execute(
                    "SELECT id, domain_id FROM users WHERE role = 'USER' "  # noqa: S608
                    f"AND domain_id IS NOT NULL AND id IN ({marks})",
                    chunk,
                ).fetchall()
        return found

    def sync_to_disk(self) -> None:
        """Wait until what `write_entries_unless_full` has stored survives a power cut.

        The write-ahead log has what is not synced: SQLite syncs the database file before it
        overwrites the log. The database file is not opened here, since closing it would release
        all locks of this process on it (close(2) in POSIX), and with them those of SQLite.
        """
        for path in (self.path.with_name(f"{self.path.name}-wal"), self.path.parent):
            with suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def close_writer(self) -> None:
        """Close the connection that writes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _get_or_open_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            with suppress(FileExistsError):  # an existing file may have locks: see sync_to_disk
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            try:
                _switch_to_wal(connection)
                connection.execute("PRAGMA cache_size=-512")  # KiB
                connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose entries
                connection.execute("PRAGMA journal_size_limit=16777216")
                connection.execute(_CREATE_SEGMENT_LIST)
            except BaseException:
                connection.close()
                raise
            self._writer = connection
        return self._writer

    def _find_or_create_segment_to_write(
        self, connection: sqlite3.Connection, limits: LogLimits
    ) -> int:
        """Return the number of the newest segment; begin another one if that is old or large."""
        newest = connection.execute(
            "SELECT number, started_at, bytes FROM segments ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if newest is not None:
            number, started_at, byte_count = newest
            age = max(limits.retention / SEGMENT_COUNT, MIN_SEGMENT_AGE)
            is_young = started_at >= microseconds_of(limits.now - age)
            if is_young and byte_count < limits.max_size // SEGMENT_COUNT:
                return int(number)
        number = newest[0] + 1 if newest else 1
        for statement in _CREATE_SEGMENT.format(number=number).split(";")[:-1]:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO segments VALUES (?, ?, 0)", (number, microseconds_of(limits.now))
        )
        return int(number)

    async def read_rows(self, conditions: LogConditions, page_key: LogPageKey) -> list[LogRow]:
        """Read entries in the order of their ids, in one statement for each segment needed."""
        return await self._run_in_reader(lambda reader: _read_rows(reader, conditions, page_key))

    async def count_rows(self, conditions: LogConditions) -> int:
        """Count entries, up to MAX_COUNT."""
        return await self._run_in_reader(lambda reader: _count_rows(reader, conditions))

    async def load_last_id(self) -> int:
        """Return the id of the entry that was stored last; 0 if there is none."""
        return await self._run_in_reader(_last_id_in_segments)

    async def _run_in_reader(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return await self._readers.run(lambda read: self._run_read_transaction(read, work))

    def _run_read_transaction(
        self, read: InterruptibleRead, work: Callable[[sqlite3.Connection], Result]
    ) -> Result:
        """Run `work` in a transaction of this thread's connection. Raises StorageUnavailable."""
        try:
            connection = self._reader_of_thread_or_none()
            if connection is None:
                with closing(sqlite3.connect(":memory:")) as empty:
                    empty.execute(_CREATE_SEGMENT_LIST)
                    return work(empty)
            connection.execute("BEGIN")
            try:
                with read.allow_interrupt(connection):
                    return work(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as problem:
            raise StorageUnavailable("The log store can't be read: retry later.") from problem

    def _reader_of_thread_or_none(self) -> sqlite3.Connection | None:
        """Return the connection of this thread; None if no entry was stored yet."""
        connection: sqlite3.Connection | None = getattr(self._thread_state, "connection", None)
        if connection is None:
            connection = self._open_reader_or_none()
            if connection is not None:
                self._thread_state.connection = connection
                self._reader_connections.append(connection)
        return connection

    def _open_reader_or_none(self) -> sqlite3.Connection | None:
        """Open a connection that reads; None if no entry was stored yet."""
        if not self.path.exists():
            return None
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # WAL needs files beside it
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-512")  # KiB
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'segments'").fetchone():
            connection.close()
            return None
        return connection

    async def close(self) -> None:
        """Close the connections that read."""
        await asyncio.to_thread(self._readers.close)
        for connection in self._reader_connections:
            connection.close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode of the file to WAL, also if another process does so at the same time.

    SQLite does not wait for locks in this statement. Raises sqlite3.OperationalError if the file
    stays locked.
    """
    ends_at = monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > ends_at:
                raise
            sleep(LOCK_INTERVAL)
        else:
            return


def _insert_rows(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> None:
    """Insert rows, many in a statement.

    `executemany` takes the global interpreter lock once for each row, and so interrupts the event
    loop each time.
    """
    marks = f"({', '.join('?' * len(columns))})"
    insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "  # noqa: S608
    for start in range(0, len(rows), ROWS_IN_STATEMENT):
        chunk = rows[start : start + ROWS_IN_STATEMENT]
        values = [value for row in chunk for value in row]
        connection.execute(insert + ", ".join([marks] * len(chunk)), values)


def _read_rows(
    connection: sqlite3.Connection, conditions: LogConditions, page_key: LogPageKey
) -> list[LogRow]:
    rows: list[LogRow] = []
    for segment in _segment_numbers(connection, is_descending=page_key.is_descending):
        sql, values = _select_rows_sql_and_values(segment, conditions, page_key)
        values.append(page_key.limit - len(rows))
        rows += map(LogRow._make, connection.execute(f"{sql} LIMIT ?", values))
        if len(rows) >= page_key.limit:
            break
    return rows


def _count_rows(connection: sqlite3.Connection, conditions: LogConditions) -> int:
    count = 0
    for segment in _segment_numbers(connection, is_descending=True):
        sql, values = _select_rows_sql_and_values(segment, conditions, LogPageKey(MAX_COUNT), "1")
        (found,) = connection.execute(
            f"SELECT count(*) FROM ({sql} LIMIT ?)",  # noqa: S608
            [*values, MAX_COUNT - count],
        ).fetchone()
        count += found
        if count >= MAX_COUNT:
            break
    return count


def _segment_numbers(connection: sqlite3.Connection, *, is_descending: bool) -> list[int]:
    direction = "DESC" if is_descending else "ASC"
    rows = connection.execute(f"SELECT number FROM segments ORDER BY number {direction}")  # noqa: S608
    return [number for (number,) in rows]


def _last_id_in_segments(connection: sqlite3.Connection) -> int:
    for segment in _segment_numbers(connection, is_descending=True):
        (last_id,) = connection.execute(f"SELECT max(id) FROM entries_{segment}").fetchone()  # noqa: S608
        if last_id is not None:
            return int(last_id)
    return 0


def _drop_segments_beyond_limits(connection: sqlite3.Connection, limits: LogLimits) -> None:
    """Drop the oldest segments while they are too old or the file is too large; keep the newest."""
    segments = connection.execute("SELECT number, started_at FROM segments ORDER BY number")
    starts = segments.fetchall()
    oldest_kept = microseconds_of(limits.oldest_kept)
    for (number, _), (_, ended_at) in pairwise(starts):
        if ended_at >= oldest_kept and _used_bytes(connection) <= limits.max_size:
            return
        connection.execute(f"DROP TABLE tokens_{number}")
        connection.execute(f"DROP TABLE entries_{number}")
        connection.execute("DELETE FROM segments WHERE number = ?", (number,))


def _used_bytes(connection: sqlite3.Connection) -> int:
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((pages - free) * size)


def _select_rows_sql_and_values(
    segment: int, conditions: LogConditions, page_key: LogPageKey, selected: str = ""
) -> tuple[str, list[object]]:
    """Return the select of the entries of a segment in order of their ids, and its values."""
    clauses: list[str] = ["0"] if conditions.matches_nothing else []
    values: list[object] = []
    groups = [] if conditions.matches_nothing else conditions.required_tokens()
    key = "t.rowid" if groups else "e.id"
    source = f"entries_{segment} e"
    if groups:
        source = f"tokens_{segment} t CROSS JOIN entries_{segment} e ON e.id = t.rowid"
        clauses.append(f"tokens_{segment} MATCH ?")
        values.append(_match_expression(groups))
    bounds: list[tuple[str, int | None]] = [
        (f"{key} > ?", page_key.above_id),
        (f"{key} < ?", page_key.below_id),
    ]
    if conditions.since is not None:
        since = microseconds_of(conditions.since)
        bounds += [(f"{key} >= ?", since), ("e.at >= ?", since)]  # an id is never below `at`
    if conditions.before is not None:
        before = microseconds_of(conditions.before)
        bounds += [
            (f"{key} < ?", before + MAX_ID_DELAY // timedelta(microseconds=1)),
            ("e.at < ?", before),
        ]
    for clause, value in bounds:
        if value is not None:
            clauses.append(clause)
            values.append(value)
    if conditions.domain_ids:  # once more, independent of the tokens
        clauses.append(f"e.domain_id IN ({', '.join(map(str, conditions.domain_ids))})")
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    columns = selected or ", ".join(f"e.{name}" for name in COLUMNS)
    direction = "DESC" if page_key.is_descending else "ASC"
    return f"SELECT {columns} FROM {source}{where} ORDER BY {key} {direction}", values  # noqa: S608


def _match_expression(groups: Sequence[Sequence[str]]) -> str:
    """Return the FTS5 query for entries with a token of each group."""
    return " AND ".join(
        f"({' OR '.join(_quoted_fts_string(token) for token in group)})" for group in groups
    )


def _quoted_fts_string(token: str) -> str:
    return '"' + token.replace('"', '""') + '"'
