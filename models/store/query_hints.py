"""Conditions that tell the planner of the database which index not to use."""

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


class ImpliedCondition(FunctionElement[bool]):
    """Conditions joined by AND that every row has if it has the other ones of the statement."""

    type = Boolean()
    name = "implied"
    inherit_cache = True


def without_index(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """SQL for these conditions, joined by AND, for which SQLite must not use an index.

    Use it if the index of another condition finds fewer rows, for example 20 threads instead of all
    messages of a user. SQLite can't know that without statistics. PostgreSQL gets the conditions
    unchanged.
    """
    return UnindexedCondition(and_(*conditions).self_group())


def implied_conditions(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """SQL for conditions that the others imply, such as the owner of the messages of a mailbox.

    Neither database uses an index for them. PostgreSQL takes conditions for independent: it would
    expect few messages of the owner in the mailbox, and read and sort the whole mailbox for a page.
    """
    return ImpliedCondition(and_(*conditions).self_group())


@compiles(UnindexedCondition)
def _compile_conditions(element: UnindexedCondition, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(UnindexedCondition, "sqlite")
@compiles(ImpliedCondition, "sqlite")
def _compile_with_unary_plus(
    element: UnindexedCondition | ImpliedCondition, compiler: SQLCompiler, **options: Any
) -> str:
    # an operand of unary plus is an expression, for which no index can be used
    return f"+({compiler.process(element.clauses, **options)})"


@compiles(ImpliedCondition, "postgresql")
def _compile_with_case(element: ImpliedCondition, compiler: SQLCompiler, **options: Any) -> str:
    # The planner does not look into a CASE: it expects that half of the rows meet the conditions.
    conditions = compiler.process(element.clauses, **options)
    return f"CASE WHEN {conditions} THEN true ELSE false END"
