"""How a store finds what is asked of it, in its own words."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from models.runtime.environment import Environment
from models.store.database import POSTGRES_READ_SETTINGS


@dataclass
class Plans:
    """The plans of the selects that were sent last, as the store tells them."""

    world: Environment
    sent: list[tuple[str, Any]] = field(default_factory=list)

    async def of(self, work: Awaitable[Any], table: str, *, asking: str = "") -> str:
        """The plan of the one select that `work` sends for this table, and that has `asking`."""
        (plan,) = await self.all_of(work, table, asking=asking)
        return plan

    async def all_of(self, work: Awaitable[Any], table: str, *, asking: str = "") -> list[str]:
        """The plans of all selects that `work` sends for this table, and that have `asking`."""
        return await self.those(work, lambda sent: asking in sent and f"FROM {table}" in sent)

    async def those(self, work: Awaitable[Any], wanted: Callable[[str], bool]) -> list[str]:
        """The plans of the statements that `work` sends and that are wanted."""
        del self.sent[:]
        await work
        found = [one for one in self.sent if wanted(one[0])]
        return [await self._plan(*one) for one in found]

    async def _plan(self, statement: str, given: Any) -> str:
        sqlite = self.world.database.dialect == "sqlite"
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        async with self.world.database.engine.connect() as connection:
            for setting in () if sqlite else POSTGRES_READ_SETTINGS:
                await connection.exec_driver_sql(f"SET LOCAL {setting}")
            found = await connection.exec_driver_sql(explain + statement, given)
            return "\n".join(str(row[-1]) for row in found)


@contextmanager
def recorded_statements(world: Environment, sent: list[tuple[str, Any]]) -> Iterator[None]:
    """Append each statement that is sent to the store, with its parameters."""

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        sent.append((statement, given))

    for engine in world.database.engines:
        event.listen(engine, "before_cursor_execute", note)
    yield
    for engine in world.database.engines:
        event.remove(engine, "before_cursor_execute", note)


@contextmanager
def explained(world: Environment) -> Iterator[Plans]:
    """Record the statements that are sent to the store, to explain their plans."""
    plans = Plans(world)
    with recorded_statements(world, plans.sent):
        yield plans
