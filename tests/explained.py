"""How a store finds what is asked of it, in its own words."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from models.world import World


@dataclass
class Plans:
    """The plans of the selects that were sent last, as the store tells them."""

    world: World
    sent: list[tuple[str, Any]] = field(default_factory=list)

    async def of(self, work: Awaitable[Any], table: str, *, asking: str = "") -> str:
        """The plan of the one select that `work` sends for this table, and that has `asking`."""
        del self.sent[:]
        await work
        sent = [one for one in self.sent if asking in one[0]]
        (statement,) = [one for one in sent if f"FROM {table}" in one[0]]
        sqlite = self.world.database.dialect == "sqlite"
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        async with self.world.database.engine.connect() as connection:
            found = await connection.exec_driver_sql(explain + statement[0], statement[1])
            return "\n".join(str(row[-1]) for row in found)


@contextmanager
def explained(world: World) -> Iterator[Plans]:
    """Hear what is sent to the store."""
    plans = Plans(world)

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        plans.sent.append((statement, given))

    for engine in world.database.engines:
        event.listen(engine, "before_cursor_execute", note)
    yield plans
    for engine in world.database.engines:
        event.remove(engine, "before_cursor_execute", note)
