"""Parse the values of options that several commands have."""

from datetime import UTC, datetime, timedelta

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.units import parse_duration, parse_size


def parse_bytes(option: str, text: str | None) -> int | None:
    """Parse a number of bytes, such as 5 GiB. Raises CommandError if it is invalid."""
    try:
        count = parse_size(text)
    except ValueError as problem:
        raise CommandError(f"{option}: {problem}", exit_code=EXIT_USAGE) from problem
    return count if isinstance(count, int) else None


def parse_end_time(option: str, text: str | None) -> datetime | None:
    """Parse a date, or a duration from now. Raises CommandError if it is invalid."""
    if text is None:
        return None
    try:
        end_time = datetime.fromisoformat(text)
        return end_time if end_time.tzinfo else end_time.astimezone()
    except ValueError:
        pass
    try:
        time = parse_duration(text)
    except ValueError as problem:
        raise CommandError(
            f'{option}: write "30 days" or 2031-12-24', exit_code=EXIT_USAGE
        ) from problem
    return datetime.now(UTC) + time if isinstance(time, timedelta) else None
