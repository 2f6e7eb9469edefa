"""Conditions that tell SQLite's planner which index not to use."""

from typing import Any

from sqlalchemy import Boolean, ColumnElement, and_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class UnindexedCondition(FunctionElement[bool]):
    """Conditions joined by AND that are tested on rows, and never use an index."""

    type = Boolean()
    name = "unindexed"
    inherit_cache = True


def without_index(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return SQL that tests these conditions on rows that another condition finds.

    Without statistics, SQLite assumes that every key of an index has as many rows. It then reads
    all messages of a user instead of those of 20 threads. PostgreSQL always has statistics, and
    gets the conditions unchanged.
    """
    return UnindexedCondition(and_(*conditions).self_group())


@compiles(UnindexedCondition)
def _compile_conditions(element: UnindexedCondition, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(UnindexedCondition, "sqlite")
def _compile_with_unary_plus(
    element: UnindexedCondition, compiler: SQLCompiler, **options: Any
) -> str:
    # an operand of unary plus is an expression, for which no index can be used
    return f"+({compiler.process(element.clauses, **options)})"
