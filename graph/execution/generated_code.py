"""Exceptions that generated code raises and functions that it calls."""

from graphql import Undefined
from graphql.pyutils import is_awaitable

SQLITE_INSTANT_LENGTH = 26  # characters of an instant in SQLite


class FallbackNeeded(Exception):
    """Generated code, or its writer, can't handle a value or field: graphql-core must.

    The text is the reason, which is counted in the metrics.
    """


class LargeValue(FallbackNeeded):
    """A value is too large to be completed at once: the executor completes it in steps."""


def is_exception_or_awaitable(value: object) -> bool:
    """True if graphql-core doesn't treat the value as a result: an exception or an awaitable."""
    return isinstance(value, Exception) or value is Undefined or is_awaitable(value)


def rfc3339_from_sqlite_text_or_fall_back(text: str) -> str:
    """Convert UTC text of SQLite (2026-01-31 12:00:00.000000) to RFC 3339 text.

    Raises FallbackNeeded if the text has another form.
    """
    if len(text) != SQLITE_INSTANT_LENGTH or text[10] != " ":
        raise FallbackNeeded("type")
    end = 19 if text.endswith(".000000") else SQLITE_INSTANT_LENGTH
    return f"{text[:10]}T{text[11:end]}Z"
