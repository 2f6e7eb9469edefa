"""What generated code uses: the exceptions that it raises and the functions that it calls."""

from graphql import Undefined
from graphql.pyutils import is_awaitable

INSTANT = 26  # characters of an instant in SQLite


class Bail(Exception):
    """Something that generated code, or the one who writes it, leaves to graphql-core: why."""


class LargeValue(Bail):
    """A value takes too long to be completed at once: the executor completes it in steps."""


def odd(value: object) -> bool:
    """Say whether graphql-core would take a value for something else than a result."""
    return isinstance(value, Exception) or value is Undefined or is_awaitable(value)


def told(text: str) -> str:
    """An instant in UTC, as SQLite keeps it (2026-01-31 12:00:00.000000), as RFC 3339 has it."""
    if len(text) != INSTANT or text[10] != " ":
        raise Bail("type")
    end = 19 if text.endswith(".000000") else INSTANT
    return f"{text[:10]}T{text[11:end]}Z"
