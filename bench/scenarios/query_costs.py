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

from bench.clients import DOCUMENTS, NEIGHBOURS, Account, analyze, furnished
from bench.scenarios.in_process_request import asked
from bench.servers.compared_servers import Kind
from graph.http.admission_control import Guards
from graph.http.graphql_endpoint import Endpoint
from graph.http.graphql_endpoint import Settings as Limits
from graph.http.rate_budgets import Budgets, Rates
from graph.schema import schema
from merganser.server.environment_factory import opened
from models.runtime.environment import World
from resolvers.auth import authentication
from resolvers.context import Viewer

MESSAGES = 10_000  # of the account
WARM = 8  # until documents are compiled and PostgreSQL uses generic plans
COUNTED = 5
FLUSH = 1.2  # seconds after which PostgreSQL adds what a connection has read to its counters
STEP = 100  # of SQLite's virtual machine
# statements that belong to no document
SIGN_IN = re.compile(r"\bFROM (api_keys|access_tokens|users)\b|\bcredential_changes\b")
INDEX = re.compile(r"(?:INDEX|INTEGER PRIMARY KEY) ?(\w*)")
TABLES = ("messages", "threads", "mailboxes")


@dataclass(frozen=True, slots=True)
class Cost:
    """The database cost of one request."""

    statements: int
    steps: int = 0  # of SQLite's virtual machine
    rows: int = 0  # that PostgreSQL reads
    indexes: tuple[str, ...] = ()  # of SQLite; "scan of X" or "sort" if there is none

    def __str__(self) -> str:
        read = f"{self.steps} steps" if self.indexes else f"{self.rows} rows"
        return ", ".join([f"{self.statements} statements", read, *self.indexes])


@dataclass(frozen=True, slots=True)
class Most:
    """The highest cost allowed for a request."""

    statements: int
    steps: int
    rows: int
    indexes: frozenset[str]


# A page reads its 50 rows in the order of an index, a list of folders those of the account.
_BOXES = frozenset({"ix_mailboxes_user_id", "mailboxes primary key"})
_PAGE = _BOXES | {"messages_by_age"}
_THREADS = frozenset({"ix_messages_thread_id", "messages primary key", "threads primary key"})
WANTED = {
    "page with threads": Most(3, 8_000, 250, _PAGE | _THREADS),
    "folders with parents": Most(1, 4_000, 200, _BOXES),
    "lists of different length": Most(6, 9_000, 250, _PAGE),
    "start": Most(8, 16_000, 600, _PAGE | _THREADS),
}
WITHOUT = ", without statistics"


def worse(found: Mapping[str, Cost], wanted: Mapping[str, Most]) -> list[str]:
    """Return the exceeded limits and unexpected indexes as sentences."""
    lines = []
    for name, cost in found.items():
        most = wanted[name.removesuffix(WITHOUT)]
        for what in ("statements", "steps", "rows"):
            taken, limit = getattr(cost, what), getattr(most, what)
            if taken > limit:
                lines.append(f"{name}: {taken} {what}, at most {limit} allowed")
        if others := sorted(set(cost.indexes) - most.indexes):
            lines.append(f"{name}: the plan has {', '.join(others)}")
    return lines


async def measured(
    kind: Kind, folder: Path, *, messages: int = MESSAGES, neighbours: int = NEIGHBOURS
) -> dict[str, Cost]:
    """Return the cost of each document in an account with this many messages."""
    sqlite = kind is Kind.SQLITE
    made = furnished(kind, folder, [messages], neighbours=neighbours, analyzed=not sqlite)
    found: dict[str, Cost] = {}
    async with (
        made as (server, settings, [account]),
        opened(settings) as world,
        _asking(world, account) as desk,
    ):
        bodies = {
            name: orjson.dumps(account.body(document)) for name, document in DOCUMENTS.items()
        }
        for body in bodies.values():
            await desk.ask(body, WARM)
        if not sqlite:
            return {name: await _of_postgres(world, desk, body) for name, body in bodies.items()}
        for more in (WITHOUT, ""):
            if not more:
                await analyze(world)
            for name, body in bodies.items():
                await desk.ask(body)
                found[name + more] = _of_sqlite(server.folder / "merganser.db", desk.sent[-1])
    return found


Sent = tuple[str, Sequence[Any]]


@dataclass
class _Desk:
    """Sends requests, and records the SELECT statements of each one."""

    endpoint: Endpoint
    secret: str
    sent: list[list[Sent]] = field(default_factory=list)

    async def ask(self, body: bytes, times: int = 1) -> None:
        """Send a request one or more times."""
        for _ in range(times):
            self.sent.append([])
            await asked(self.endpoint, body, self.secret)


@asynccontextmanager
async def _asking(world: World, account: Account) -> AsyncGenerator[_Desk]:
    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        return await authentication.sign_in(world, headers, params, ip=ip)

    unpaid = Limits(guards=Guards(Budgets(Rates(0, 0, 0))))
    desk = _Desk(Endpoint(schema, world, sign_in, unpaid), account.secret)

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")) and not SIGN_IN.search(statement):
            desk.sent[-1].append((statement, given))

    engines = world.database.engines
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield desk
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def _of_sqlite(file: Path, sent: Sequence[Sent]) -> Cost:
    """Explain the statements, and run them again to count steps."""
    steps = 0
    indexes: set[str] = set()

    def count() -> int:
        nonlocal steps
        steps += STEP
        return 0

    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        for statement, given in sent:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", given).fetchall()
            indexes.update(used for *_, line in plan if (used := _used(line)))
            connection.set_progress_handler(count, STEP)
            connection.execute(statement, given).fetchall()
            connection.set_progress_handler(None, 0)
    return Cost(len(sent), steps, indexes=tuple(sorted(indexes)))


def _used(line: str) -> str:
    """Return what a line of SQLite's plan uses: an index, a scan or a sort.

    Else an empty string.
    """
    if line.startswith("USE TEMP B-TREE"):
        return "sort"
    words = line.split()
    if words[0] not in ("SEARCH", "SCAN") or words[1] not in TABLES:
        return ""
    index = INDEX.search(line)
    if index is None:
        return f"scan of {words[1]}"
    return index[1] if "PRIMARY KEY" not in line else f"{words[1]} primary key"


async def _of_postgres(world: World, desk: _Desk, body: bytes) -> Cost:
    """Count the rows that PostgreSQL reads for a request."""
    await _flushed(desk, body)
    before = await _counters(world)
    await desk.ask(body, COUNTED - 1)
    sent = len(desk.sent[-1])  # the next one checks the credential again
    await _flushed(desk, body)
    return Cost(sent, rows=round((await _counters(world) - before) / COUNTED))


async def _flushed(desk: _Desk, body: bytes) -> None:
    """Send a request when PostgreSQL adds the reads of the connection to its counters."""
    await asyncio.sleep(FLUSH)
    await desk.ask(body)


async def _counters(world: World) -> int:
    async with world.database.engine.connect() as connection:
        sums = text(
            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) "
            "FROM pg_stat_user_tables WHERE relname IN ('messages', 'threads', 'mailboxes')"
        )
        return int((await connection.execute(sums)).scalar_one())
