"""SQLite connections that end a statement before a cancellation takes effect.

If the caller of a statement is cancelled, the statement continues in its thread, and keeps the
lock of the only writer. So the statement is awaited, and the transaction goes on to its commit or
failure. Then CancelledError is raised.
"""

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiosqlite

Result = TypeVar("Result")

# the tasks that are inside `delay_cancellation`, and whether they were cancelled since
_CANCELLED_BY_TASK: WeakKeyDictionary[asyncio.Task[Any], bool] = WeakKeyDictionary()


@contextmanager
def delay_cancellation() -> Generator[None]:
    """Delay a cancellation that arrives during a database statement to the end of the block.

    The cancellation then takes effect after the block, but not if the block raises an error. Other
    awaits in the block (those without `await_to_end`) are cancelled at once.
    """
    task = asyncio.current_task()
    if task is None:
        yield
        return
    _CANCELLED_BY_TASK[task] = False
    called_off = False
    try:
        yield
    finally:
        called_off = _CANCELLED_BY_TASK.pop(task)
    if called_off:
        raise asyncio.CancelledError


def is_cancelled() -> bool:
    """True if the current `delay_cancellation` block was cancelled: it can still fail."""
    task = asyncio.current_task()
    return task is not None and _CANCELLED_BY_TASK.get(task, False)


async def await_to_end(future: asyncio.Future[Result]) -> Result:
    """Await a future, also if the caller is cancelled, and return its result.

    CancelledError is raised afterwards, or at the end of a `delay_cancellation` block.
    """
    called_off = False
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            called_off = True
        except Exception:  # noqa: BLE001 - the result below raises it
            break
    task = asyncio.current_task()
    if called_off and task is not None and task in _CANCELLED_BY_TASK:
        _CANCELLED_BY_TASK[task] = True
    elif called_off:
        raise asyncio.CancelledError
    return future.result()


class UncancelledConnection(aiosqlite.Connection):
    """A connection that ends a statement before a cancellation is raised."""

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        statement = super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        return await await_to_end(asyncio.ensure_future(statement))


def open_uncancelled_sqlite_connection(*args: Any, **kwargs: Any) -> UncancelledConnection:
    """Return a connection for SQLAlchemy, which awaits it. The arguments are those of sqlite3."""
    connection = UncancelledConnection(lambda: sqlite3.connect(*args, **kwargs), 64)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy's own creator does
    return connection
