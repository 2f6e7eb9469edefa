"""An account with very many messages, filled by SQL; and how much of it a statement reads."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import text

from models.runtime.environment import Environment
from models.store.database import POSTGRES_READ_SETTINGS
from tests.conftest import Client
from tests.support.stores.query_plans import recorded_statements

NUMBERS = "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < {})"
AT = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', '2026-01-01', '+' || value || ' minutes')",
    "postgresql": "timestamptz '2026-01-01 00:00:00Z' + value * interval '1 minute'",
}
EACH = 100  # instructions of SQLite that are counted at once
PER_ROW = 60  # instructions for a row that is read, about


async def fill(client: Client, many: int, *, base: int) -> None:
    """Copy the one message of a client's INBOX so many times, two to a conversation."""
    world, at = client.world, AT[client.world.database.dialect]
    numbers = NUMBERS.format(many)
    box = (await client.box()).id
    own = {
        "id": f"{base} + value", "thread_id": f"{base} + value / 2", "uid": "value + 1000",
        "listed_at": at, "received_at": at, "seen": "value % 100 > 0", "indexed": "true",
    }  # fmt: skip
    async with world.database.engine.begin() as connection:
        asked = f"SELECT * FROM messages WHERE mailbox_id = {box} LIMIT 1"  # noqa: S608
        names = (await connection.execute(text(asked))).keys()
        values = ", ".join(own.get(name, f'm."{name}"') for name in names)
        quoted = ", ".join(f'"{name}"' for name in names)
        await connection.execute(text(
            f"INSERT INTO threads (id, user_id, subject, created_at, muted) {numbers} "  # noqa: S608
            f"SELECT {base} + value - 1, {client.user.id}, 'Number', {at}, false FROM n "
            f"WHERE value <= {many} / 2 + 1"
        ))  # fmt: skip
        await connection.execute(
            text(f"INSERT INTO messages ({quoted}) {numbers} SELECT {values} FROM n, ({asked}) m")  # noqa: S608
        )


@dataclass
class Effort:
    """The selects that were sent, and how many rows each has read."""

    world: Environment
    sent: list[tuple[str, Any]] = field(default_factory=list)

    async def of(self, work: Awaitable[Any]) -> dict[str, int]:
        """The rows that each select of `work` reads in the tables of messages."""
        del self.sent[:]
        await work
        asked = self.of_messages
        return {sql: await self._rows(sql, given) for sql, given in asked}

    @property
    def of_messages(self) -> list[tuple[str, Any]]:
        """The selects that were sent last in the tables of messages."""
        return [one for one in self.sent if "messages" in one[0] and "SELECT" in one[0]]

    async def _rows(self, sql: str, given: Any) -> int:
        if self.world.database.dialect == "sqlite":
            return await self._sqlite_rows(sql, given)
        async with self.world.database.engine.connect() as connection:
            for setting in POSTGRES_READ_SETTINGS:
                await connection.exec_driver_sql(f"SET LOCAL {setting}")
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
            ((plan,),) = await connection.exec_driver_sql(explain, given)
        known = orjson.loads(plan) if isinstance(plan, str) else plan
        return _read(known[0]["Plan"])

    async def _sqlite_rows(self, sql: str, given: Any) -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += EACH
            return 0

        async with self.world.database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.set_progress_handler(count, EACH)
            (await connection.exec_driver_sql(sql, given)).all()
            await raw.set_progress_handler(None, EACH)
        return steps // PER_ROW


def _read(plan: dict[str, Any]) -> int:
    below = sum(map(_read, plan.get("Plans", ())))
    if "Relation Name" not in plan and "Index Name" not in plan:
        return below
    removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
    return below + int((plan["Actual Rows"] + removed) * plan["Actual Loops"])


@contextmanager
def measured(world: Environment) -> Iterator[Effort]:
    """Record the statements that are sent to the store, to count the rows they read."""
    effort = Effort(world)
    with recorded_statements(world, effort.sent):
        yield effort
