"""Sizes and durations as people write them: "64 MiB", "14 days"."""

import re
from datetime import timedelta

from models.quantities import BINARY_UNITS

_BYTES_BY_UNIT = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES_BY_UNIT |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_BYTES_BY_UNIT |= {"byte": 1, "bytes": 1}  # as sizes are printed
_SECONDS_BY_UNIT = {
    "s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400, "w": 604800, "week": 604800,
}  # fmt: skip
_NUMBER_WITH_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size_if_text(text: object) -> object:
    """Parse a size such as "1 GiB", "500 MB" or "1024" to bytes.

    Returns values that are not strings unchanged. Raises ValueError if the text is no size.
    """
    if not isinstance(text, str):
        return text
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    unit = _BYTES_BY_UNIT.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("write a size such as 64 MiB")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def parse_duration_if_text(text: object) -> object:
    """Parse a duration such as "10 min", "24 h" or "14 days" to a timedelta.

    Returns values that are not strings unchanged. Raises ValueError if the text is no duration.
    """
    if not isinstance(text, str):
        return text
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    name = match[2].lower() if match else ""
    unit = _SECONDS_BY_UNIT.get(name) or _SECONDS_BY_UNIT.get(name.removesuffix("s"))
    if match is None or unit is None:
        raise ValueError("write a time such as 10 min, 24 h or 14 days")
    try:
        return timedelta(seconds=float(match[1]) * unit)
    except OverflowError:
        raise ValueError("that is too long") from None


def format_size_in_whole_units(byte_count: int) -> str:
    """Format a size in the largest unit that divides it: "1 GiB", "1500 bytes"."""
    for name, unit in BINARY_UNITS:
        if byte_count and byte_count % unit == 0:
            return f"{byte_count // unit} {name}"
    return f"{byte_count} bytes"


def format_duration_in_whole_units(duration: timedelta) -> str:
    """Format a duration in the largest unit that divides it: "14 days", "24 h", "10 min"."""
    seconds = int(duration.total_seconds())
    for name, unit in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds > unit and seconds % unit == 0:
            return f"{seconds // unit} {name}"
    return "1 day" if seconds == _SECONDS_BY_UNIT["day"] else f"{seconds} s"
