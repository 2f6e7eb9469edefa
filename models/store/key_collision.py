"""Collisions of generated primary keys: told from conflicts of user data, and retried."""

import re
from functools import cache
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlmodel import SQLModel

TRIES = 3  # of a unit of work whose generated key was taken
_POSTGRES = re.compile(r'unique constraint "pk_(\w+)"')
_SQLITE = re.compile(r"UNIQUE constraint failed: (\w+)\.id\b(?!,)")


class KeyCollision(Exception):
    """Another process made the same primary key in the same millisecond. Nothing was stored."""


@cache
def _generated() -> frozenset[str]:
    """Names of the tables whose primary key is a generated id."""
    tables = SQLModel.metadata.tables.values()
    return frozenset(
        table.name for table in tables if [column.name for column in table.primary_key] == ["id"]
    )


def is_key_collision(problem: BaseException | None) -> bool:
    """True if a generated primary key was taken; False for any other constraint."""
    if problem is None or isinstance(problem, KeyCollision):
        return problem is not None
    text = str(getattr(problem, "orig", None) or problem)
    found = _POSTGRES.search(text) or _SQLITE.search(text)
    return found is not None and found[1] in _generated()


def _translate(context: ExceptionContext) -> None:
    original: Any = context.original_exception
    if is_key_collision(original):
        raise KeyCollision(str(original)) from original


def raise_key_collisions(engine: Engine) -> None:
    """Let the statements of this engine raise KeyCollision in place of IntegrityError.

    Code that answers CONFLICT for an IntegrityError then never sees a collision of keys.
    """
    event.listen(engine, "handle_error", _translate)
