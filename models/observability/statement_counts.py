"""The number of SQL statements that an operation has sent to the database."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine, event

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# They only mark parts of a transaction.
UNCOUNTED_STATEMENTS = ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")


@dataclass(slots=True)
class StatementCount:
    """The number of statements of one operation."""

    total: int = 0


# The count of the operation that the current task or thread works for.
current: ContextVar[StatementCount | None] = ContextVar("statement_count", default=None)


def count_statements_of_engine(engine: Engine) -> None:
    """Add each statement of an engine to the current count."""
    event.listen(engine, "before_cursor_execute", _count_statement)


def keep_count_in_thread(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a function that does the same in another thread, and adds to the current count."""
    count = current.get()
    if count is None:
        return work

    def run_with_count(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        previous = current.get()
        current.set(count)
        try:
            return work(*arguments, **options)
        finally:
            current.set(previous)

    return run_with_count


def _count_statement(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
    count = current.get()
    if count is not None and not sql.startswith(UNCOUNTED_STATEMENTS):
        count.total += 1
