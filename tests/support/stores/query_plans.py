"""Recording SQL statements and explaining their query plans."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from models.runtime.environment import Environment
from models.store.database import POSTGRES_READ_SETTINGS


@dataclass
class QueryPlanRecorder:
    """Records statements, and explains their plans."""

    environment: Environment
    statements: list[tuple[str, Any]] = field(default_factory=list)

    async def explain_select(
        self, action: Awaitable[Any], table: str, *, containing: str = ""
    ) -> str:
        """Explain the only select of this table that `action` runs, and that has the text."""
        (plan,) = await self.explain_selects(action, table, containing=containing)
        return plan

    async def explain_selects(
        self, action: Awaitable[Any], table: str, *, containing: str = ""
    ) -> list[str]:
        """Explain all selects of this table that `action` runs, and that have the text."""
        return await self.explain_statements(
            action, lambda sent: containing in sent and f"FROM {table}" in sent
        )

    async def explain_statements(
        self, action: Awaitable[Any], is_wanted: Callable[[str], bool]
    ) -> list[str]:
        """Explain the wanted statements that `action` runs."""
        del self.statements[:]
        await action
        statements = [statement for statement in self.statements if is_wanted(statement[0])]
        return [await self._explain(*statement) for statement in statements]

    async def _explain(self, statement: str, parameters: Any) -> str:
        """Explain a statement and return the plan as text."""
        is_sqlite = self.environment.database.dialect == "sqlite"
        explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
        async with self.environment.database.engine.connect() as connection:
            for setting in () if is_sqlite else POSTGRES_READ_SETTINGS:
                await connection.exec_driver_sql(f"SET LOCAL {setting}")
            plan_rows = await connection.exec_driver_sql(explain + statement, parameters)
            return "\n".join(str(row[-1]) for row in plan_rows)


@contextmanager
def record_statements(
    environment: Environment, statements: list[tuple[str, Any]]
) -> Iterator[None]:
    """Append each statement to a list, with its parameters."""

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    for engine in environment.database.engines:
        event.listen(engine, "before_cursor_execute", record)
    try:
        yield
    finally:
        for engine in environment.database.engines:
            event.remove(engine, "before_cursor_execute", record)


@contextmanager
def record_query_plans(environment: Environment) -> Iterator[QueryPlanRecorder]:
    """Record statements, to explain their plans."""
    recorder = QueryPlanRecorder(environment)
    with record_statements(environment, recorder.statements):
        yield recorder
