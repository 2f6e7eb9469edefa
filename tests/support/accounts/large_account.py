"""An account with many messages, inserted by SQL, and the number of rows that a query reads."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import text

from models.runtime.environment import Environment
from models.store.database import POSTGRES_READ_SETTINGS
from tests.conftest import GraphQLClient
from tests.support.stores.query_plans import record_statements

NUMBER_SERIES = (
    "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < {})"
)
TIMESTAMP_SQL = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', '2026-01-01', '+' || value || ' minutes')",
    "postgresql": "timestamptz '2026-01-01 00:00:00Z' + value * interval '1 minute'",
}
PROGRESS_INTERVAL = 100  # SQLite virtual machine instructions between two progress callbacks
INSTRUCTIONS_PER_ROW = 60  # instructions per row that SQLite reads, approximately


async def copy_message(client: GraphQLClient, count: int, *, base: int) -> None:
    """Insert copies of the only message in a client's INBOX, two per thread.

    Their sort keys are those of the message.
    """
    environment = client.environment
    timestamp_sql = TIMESTAMP_SQL[client.environment.database.dialect]
    number_series = NUMBER_SERIES.format(count)
    mailbox_id = (await client.load_mailbox()).id
    sql_by_column = {
        "id": f"{base} + value", "thread_id": f"{base} + value / 2", "uid": "value + 1000",
        "listed_at": timestamp_sql, "received_at": timestamp_sql, "seen": "value % 100 > 0",
        "indexed": "true", "message_id": "'<' || value || '@example.org>'",
    }  # fmt: skip
    async with environment.database.engine.begin() as connection:
        message_query = f"SELECT * FROM messages WHERE mailbox_id = {mailbox_id} LIMIT 1"  # noqa: S608
        column_names = (await connection.execute(text(message_query))).keys()
        values = ", ".join(sql_by_column.get(name, f'm."{name}"') for name in column_names)
        quoted_names = ", ".join(f'"{name}"' for name in column_names)
        await connection.execute(text(
            f"INSERT INTO threads (id, user_id, subject, created_at, muted) {number_series} "  # noqa: S608
            f"SELECT {base} + value - 1, {client.user.id}, 'Number', {timestamp_sql}, false FROM n "
            f"WHERE value <= {count} / 2 + 1"
        ))  # fmt: skip
        await connection.execute(text(
            f"INSERT INTO messages ({quoted_names}) {number_series} "  # noqa: S608
            f"SELECT {values} FROM n, ({message_query}) m"
        ))  # fmt: skip
        await connection.execute(text(
            "INSERT INTO message_sort_keys"  # noqa: S608
            " (id, mailbox_id, sent_at, sender_key, subject_key, size)"
            " SELECT m.id, m.mailbox_id, coalesce(m.date, m.received_at), k.sender_key,"
            " k.subject_key, m.size FROM messages m, message_sort_keys k"
            f" WHERE m.id > {base} AND m.id <= {base} + {count} AND k.id = (SELECT min(id)"
            f" FROM message_sort_keys WHERE mailbox_id = {mailbox_id})"
        ))  # fmt: skip


@dataclass
class SelectCostRecorder:
    """The recorded SELECT statements, and the number of rows that each one reads."""

    environment: Environment
    statements: list[tuple[str, Any]] = field(default_factory=list)

    async def count_rows_read(self, work: Awaitable[Any]) -> dict[str, int]:
        """Await `work`; return by SELECT how many rows of the message tables it reads."""
        del self.statements[:]
        await work
        selects = self.message_selects
        return {sql: await self._count_rows_read(sql, parameters) for sql, parameters in selects}

    @property
    def message_selects(self) -> list[tuple[str, Any]]:
        """The recorded SELECT statements on the message tables."""
        return [
            statement
            for statement in self.statements
            if "messages" in statement[0] and "SELECT" in statement[0]
        ]

    async def _count_rows_read(self, sql: str, parameters: Any) -> int:
        if self.environment.database.dialect == "sqlite":
            return await self._count_sqlite_rows_read(sql, parameters)
        async with self.environment.database.engine.connect() as connection:
            for setting in POSTGRES_READ_SETTINGS:
                await connection.exec_driver_sql(f"SET LOCAL {setting}")
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
            ((plan,),) = await connection.exec_driver_sql(explain, parameters)
        parsed_plan = orjson.loads(plan) if isinstance(plan, str) else plan
        return _rows_read_by_plan(parsed_plan[0]["Plan"])

    async def _count_sqlite_rows_read(self, sql: str, parameters: Any) -> int:
        instructions = 0

        def count_instructions() -> int:
            nonlocal instructions
            instructions += PROGRESS_INTERVAL
            return 0

        async with self.environment.database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.set_progress_handler(count_instructions, PROGRESS_INTERVAL)
            (await connection.exec_driver_sql(sql, parameters)).all()
            await raw.set_progress_handler(None, PROGRESS_INTERVAL)
        return instructions // INSTRUCTIONS_PER_ROW


def _rows_read_by_plan(plan: dict[str, Any]) -> int:
    rows_of_children = sum(map(_rows_read_by_plan, plan.get("Plans", ())))
    if "Relation Name" not in plan and "Index Name" not in plan:
        return rows_of_children
    rows_removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
    return rows_of_children + int((plan["Actual Rows"] + rows_removed) * plan["Actual Loops"])


@contextmanager
def record_select_costs(environment: Environment) -> Iterator[SelectCostRecorder]:
    """Record the SQL statements of the block, to count the rows that they read."""
    recorder = SelectCostRecorder(environment)
    with record_statements(environment, recorder.statements):
        yield recorder
