"""Parse the values of options that several commands have."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.units import (
    parse_duration_if_text,
    parse_size_if_text,
)
from resolvers.users.selection import UserSelector

Value = TypeVar("Value", bound=StrEnum)


def parse_bytes(option: str, text: str | None) -> int | None:
    """Parse a number of bytes, such as 5 GiB. Raises CommandError if it is invalid."""
    try:
        count = parse_size_if_text(text)
    except ValueError as problem:
        raise CommandError(f"{option}: {problem}", exit_code=EXIT_USAGE) from problem
    return count if isinstance(count, int) else None


def parse_date_or_duration_from_now(option: str, text: str | None) -> datetime | None:
    """Parse a date, or a duration from now. Raises CommandError if it is invalid."""
    if text is None:
        return None
    try:
        end_time = datetime.fromisoformat(text)
        return end_time if end_time.tzinfo else end_time.astimezone()
    except ValueError:
        pass
    try:
        time = parse_duration_if_text(text)
    except ValueError as problem:
        raise CommandError(
            f'{option}: Must be a duration such as "30 days", or a date such as 2031-12-24.',
            exit_code=EXIT_USAGE,
        ) from problem
    return datetime.now(UTC) + time if isinstance(time, timedelta) else None


def parse_duration(option: str, text: str | None) -> timedelta | None:
    """Parse a duration, such as 30 days. Raises CommandError if it is invalid."""
    try:
        duration = parse_duration_if_text(text)
    except ValueError as problem:
        raise CommandError(f"{option}: {problem}", exit_code=EXIT_USAGE) from problem
    return duration if isinstance(duration, timedelta) else None


def parse_values(
    option: str, kind: type[Value], texts: list[str] | None
) -> tuple[Value, ...] | None:
    """Parse the values of an enum, in any case. None without an option. Raises CommandError."""
    try:
        return tuple(kind(text.upper()) for text in texts) if texts else None
    except ValueError:
        text = f"{option} must be one of {', '.join(kind)}."
        raise CommandError(text, exit_code=EXIT_USAGE) from None


def user_selector(user: list[str] | None, pattern: list[str] | None) -> UserSelector | None:
    """Return the selection of users by name and pattern; None without an option."""
    if not user and not pattern:
        return None
    return UserSelector(was_sent=True, usernames=tuple(user or ()), patterns=tuple(pattern or ()))
