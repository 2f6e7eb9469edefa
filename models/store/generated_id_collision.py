"""Collisions of generated primary keys, which are retried, unlike conflicts of user data."""

import re
from functools import cache
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlmodel import SQLModel

MAX_TRIES = 3  # of a transaction whose generated id was in use
_POSTGRES_COLLISION = re.compile(r'unique constraint "pk_(\w+)"')
_SQLITE_COLLISION = re.compile(r"UNIQUE constraint failed: (\w+)\.id\b(?!,)")


class GeneratedIdCollision(Exception):
    """Another process generated the same id in the same millisecond. Nothing was stored."""


@cache
def _tables_with_generated_id() -> frozenset[str]:
    """Return the names of the tables with a generated id as primary key."""
    tables = SQLModel.metadata.tables.values()
    return frozenset(
        table.name for table in tables if [column.name for column in table.primary_key] == ["id"]
    )


def is_generated_id_collision(problem: BaseException | None) -> bool:
    """True if a generated id is in use; False for any other constraint."""
    if problem is None or isinstance(problem, GeneratedIdCollision):
        return problem is not None
    text = str(getattr(problem, "orig", None) or problem)
    match = _POSTGRES_COLLISION.search(text) or _SQLITE_COLLISION.search(text)
    return match is not None and match[1] in _tables_with_generated_id()


def _raise_key_collision(context: ExceptionContext) -> None:
    original: Any = context.original_exception
    if is_generated_id_collision(original):
        raise GeneratedIdCollision(str(original)) from original


def make_engine_raise_generated_id_collisions(engine: Engine) -> None:
    """Let the statements of this engine raise GeneratedIdCollision instead of IntegrityError.

    Code that reports a conflict for an IntegrityError then never sees a collision of ids.
    """
    event.listen(engine, "handle_error", _raise_key_collision)
