"""Count SQL statements, indexes and rows that documents of mail clients need.

The real endpoint runs in this process. On SQLite each statement is explained, and run again to
count virtual machine steps: 20 to 40 per row read. This is done without and with statistics. On
PostgreSQL the server's own counters give the rows read, with the plans of warmed-up prepared
statements.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import event, text

from bench.clients import (
    DOCUMENTS,
    OTHER_ACCOUNT_COUNT,
    MeasuredAccount,
    analyze,
    create_client_server,
)
from bench.scenarios.in_process_request import endpoint_without_rate_limits, send_request
from bench.servers.compared_servers import DatabaseKind
from graph.http.graphql_endpoint import GraphqlEndpoint
from merganser.server.environment_factory import open_environment
from models.runtime.environment import Environment

MESSAGE_COUNT = 10_000  # of the account
WARM_UP_REQUESTS = 8  # until documents are compiled and PostgreSQL uses generic plans
MEASURED_REQUESTS = 5
FLUSH_SECONDS = (
    1.2  # seconds after which PostgreSQL adds what a connection has read to its counters
)
STEPS_PER_CALLBACK = 100  # of SQLite's virtual machine
# statements that belong to no document
SIGN_IN_STATEMENT = re.compile(r"\bFROM (api_keys|access_tokens|users)\b|\bcredential_changes\b")
INDEX_IN_PLAN = re.compile(r"(?:INDEX|INTEGER PRIMARY KEY) ?(\w*)")
COUNTED_TABLES = ("messages", "threads", "mailboxes")


@dataclass(frozen=True, slots=True)
class QueryCost:
    """The database cost of one request."""

    statements: int
    steps: int = 0  # of SQLite's virtual machine
    rows: int = 0  # that PostgreSQL reads
    indexes: tuple[str, ...] = ()  # of SQLite; "scan of X" or "sort" if there is none

    def __str__(self) -> str:
        read = f"{self.steps} steps" if self.indexes else f"{self.rows} rows"
        return ", ".join([f"{self.statements} statements", read, *self.indexes])


@dataclass(frozen=True, slots=True)
class QueryCostLimit:
    """The highest cost allowed for a request."""

    statements: int
    steps: int
    rows: int
    indexes: frozenset[str]


# A page reads its 50 rows in the order of an index, a list of folders those of the account.
_MAILBOX_INDEXES = frozenset({"ix_mailboxes_user_id", "mailboxes primary key"})
_PAGE_INDEXES = _MAILBOX_INDEXES | {"messages_by_age"}
_THREAD_INDEXES = frozenset(
    {"ix_messages_thread_id", "messages primary key", "threads primary key"}
)
COST_LIMITS = {
    "page with threads": QueryCostLimit(3, 8_000, 250, _PAGE_INDEXES | _THREAD_INDEXES),
    "folders with parents": QueryCostLimit(1, 4_000, 200, _MAILBOX_INDEXES),
    "lists of different length": QueryCostLimit(6, 9_000, 250, _PAGE_INDEXES),
    "start": QueryCostLimit(8, 16_000, 600, _PAGE_INDEXES | _THREAD_INDEXES),
}
WITHOUT_STATISTICS = ", without statistics"


def find_exceeded_limits(
    costs: Mapping[str, QueryCost], limits: Mapping[str, QueryCostLimit]
) -> list[str]:
    """Return the exceeded limits and unexpected indexes as sentences."""
    lines = []
    for name, cost in costs.items():
        most = limits[name.removesuffix(WITHOUT_STATISTICS)]
        for what in ("statements", "steps", "rows"):
            value, limit = getattr(cost, what), getattr(most, what)
            if value > limit:
                lines.append(f"{name}: {value} {what}, at most {limit} allowed")
        if unexpected_indexes := sorted(set(cost.indexes) - most.indexes):
            lines.append(f"{name}: the plan has {', '.join(unexpected_indexes)}")
    return lines


async def measure_query_costs(
    database_kind: DatabaseKind,
    folder: Path,
    *,
    message_count: int = MESSAGE_COUNT,
    other_account_count: int = OTHER_ACCOUNT_COUNT,
) -> dict[str, QueryCost]:
    """Return the cost of each document in an account with this many messages."""
    sqlite = database_kind is DatabaseKind.SQLITE
    costs: dict[str, QueryCost] = {}
    async with (
        create_client_server(
            database_kind,
            folder,
            [message_count],
            other_account_count=other_account_count,
            has_statistics=not sqlite,
        ) as prepared,
        open_environment(prepared.settings) as environment,
        _record_statements(environment, prepared.accounts[0]) as recorder,
    ):
        bodies = {
            name: orjson.dumps(prepared.accounts[0].request_body(document))
            for name, document in DOCUMENTS.items()
        }
        for body in bodies.values():
            await recorder.send_request(body, WARM_UP_REQUESTS)
        if not sqlite:
            return {
                name: await _cost_on_postgres(environment, recorder, body)
                for name, body in bodies.items()
            }
        for suffix in (WITHOUT_STATISTICS, ""):
            if not suffix:
                await analyze(environment)
            for name, body in bodies.items():
                await recorder.send_request(body)
                costs[name + suffix] = _cost_on_sqlite(
                    prepared.server.data_folder / "merganser.db", recorder.statements_by_request[-1]
                )
    return costs


ExecutedStatement = tuple[str, Sequence[Any]]


@dataclass
class _StatementRecorder:
    """Sends requests, and records the SELECT statements of each one."""

    endpoint: GraphqlEndpoint
    api_key: str
    statements_by_request: list[list[ExecutedStatement]] = field(default_factory=list)

    async def send_request(self, body: bytes, count: int = 1) -> None:
        """Send a request one or more times."""
        for _ in range(count):
            self.statements_by_request.append([])
            await send_request(self.endpoint, body, self.api_key)


@asynccontextmanager
async def _record_statements(
    environment: Environment, account: MeasuredAccount
) -> AsyncGenerator[_StatementRecorder]:
    desk = _StatementRecorder(endpoint_without_rate_limits(environment), account.api_key)

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")) and not SIGN_IN_STATEMENT.search(statement):
            desk.statements_by_request[-1].append((statement, given))

    engines = environment.database.engines
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield desk
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def _cost_on_sqlite(database_file: Path, statements: Sequence[ExecutedStatement]) -> QueryCost:
    """Explain the statements, and run them again to count steps."""
    steps = 0
    indexes: set[str] = set()

    def count() -> int:
        nonlocal steps
        steps += STEPS_PER_CALLBACK
        return 0

    with closing(sqlite3.connect(f"file:{database_file}?mode=ro", uri=True)) as connection:
        for statement, given in statements:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", given).fetchall()
            indexes.update(used for *_, line in plan if (used := _plan_element(line)))
            connection.set_progress_handler(count, STEPS_PER_CALLBACK)
            connection.execute(statement, given).fetchall()
            connection.set_progress_handler(None, 0)
    return QueryCost(len(statements), steps, indexes=tuple(sorted(indexes)))


def _plan_element(plan_line: str) -> str:
    """Return what a line of SQLite's plan uses: an index, a scan or a sort.

    Else an empty string.
    """
    if plan_line.startswith("USE TEMP B-TREE"):
        return "sort"
    line_parts = plan_line.split()
    if line_parts[0] not in ("SEARCH", "SCAN") or line_parts[1] not in COUNTED_TABLES:
        return ""
    index = INDEX_IN_PLAN.search(plan_line)
    if index is None:
        return f"scan of {line_parts[1]}"
    return index[1] if "PRIMARY KEY" not in plan_line else f"{line_parts[1]} primary key"


async def _cost_on_postgres(
    environment: Environment, recorder: _StatementRecorder, body: bytes
) -> QueryCost:
    """Count the rows that PostgreSQL reads for a request."""
    await _send_after_flush_interval(recorder, body)
    before = await _read_row_counters(environment)
    await recorder.send_request(body, MEASURED_REQUESTS - 1)
    # the next one checks the credential again
    statement_count = len(recorder.statements_by_request[-1])
    await _send_after_flush_interval(recorder, body)
    return QueryCost(
        statement_count,
        rows=round((await _read_row_counters(environment) - before) / MEASURED_REQUESTS),
    )


async def _send_after_flush_interval(recorder: _StatementRecorder, body: bytes) -> None:
    """Send a request when PostgreSQL adds the reads of the connection to its counters."""
    await asyncio.sleep(FLUSH_SECONDS)
    await recorder.send_request(body)


async def _read_row_counters(environment: Environment) -> int:
    async with environment.database.engine.connect() as connection:
        sums = text(
            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) "
            "FROM pg_stat_user_tables WHERE relname IN ('messages', 'threads', 'mailboxes')"
        )
        return int((await connection.execute(sums)).scalar_one())
