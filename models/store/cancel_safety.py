"""An SQLite connection that is not cut off in the middle of a unit of work.

A statement whose caller is cancelled runs on in its thread, and holds the lock of the one
writer with it. So it is waited for, and the unit goes on to its end, which is its commit or
its failure; only then does the caller hear that it was called off.
"""

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiosqlite

Outcome = TypeVar("Outcome")

# the tasks that are in a unit, and whether one was called off meanwhile
_UNITS: WeakKeyDictionary[asyncio.Task[Any], bool] = WeakKeyDictionary()


@contextmanager
def unit() -> Generator[None]:
    """What is called off inside hears of it at the end, unless the unit has failed by then."""
    task = asyncio.current_task()
    if task is None:
        yield
        return
    _UNITS[task] = False
    called_off = False
    try:
        yield
    finally:
        called_off = _UNITS.pop(task)
    if called_off:
        raise asyncio.CancelledError


def called_off() -> bool:
    """Whether our unit was called off meanwhile: who can still fail may do so."""
    task = asyncio.current_task()
    return task is not None and _UNITS.get(task, False)


async def to_the_end(future: asyncio.Future[Outcome]) -> Outcome:
    """Wait for it, also when called off; outside a unit that is heard right after."""
    called_off = False
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            called_off = True
        except Exception:  # noqa: BLE001 - the result below raises it
            break
    task = asyncio.current_task()
    if called_off and task is not None and task in _UNITS:
        _UNITS[task] = True
    elif called_off:
        raise asyncio.CancelledError
    return future.result()


class Patient(aiosqlite.Connection):
    """A connection whose statements end before anybody hears of a cancellation."""

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        statement = super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        return await to_the_end(asyncio.ensure_future(statement))


def connect(*args: Any, **kwargs: Any) -> Patient:
    """A connection for SQLAlchemy, which awaits it."""
    connection = Patient(lambda: sqlite3.connect(*args, **kwargs), 64)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy's own creator does
    return connection
