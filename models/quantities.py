"""Conversion of sizes and durations from and to the text that clients use."""

import re
from datetime import timedelta

SIZE_PATTERN = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)\s*([KMGT]i?)?B?", re.IGNORECASE | re.ASCII)
BINARY_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
UNIT_EXPONENTS = {"k": 1, "m": 2, "g": 3, "t": 4}
DURATION_PATTERN = re.compile(
    r"P(?:(?P<years>\d{1,4})Y)?(?:(?P<months>\d{1,5})M)?(?:(?P<weeks>\d{1,5})W)?"
    r"(?:(?P<days>\d{1,8})D)?(?:T(?:(?P<hours>\d{1,7})H)?(?:(?P<minutes>\d{1,8})M)?"
    r"(?:(?P<seconds>\d{1,9}(?:\.\d{1,6})?)S)?)?",
    re.ASCII,
)
DAYS_PER_UNIT = {"years": 365, "months": 30, "weeks": 7, "days": 1}
INTEGER_LIMIT = 2**53  # JSON numbers below it are exact everywhere


def parse_integer(value: object) -> int:
    """Convert an integer or its text. Raises ValueError if it is not an integer below 2^53."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,16}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGER_LIMIT:
        return value
    raise ValueError("Must be an integer below 2^53.")


def parse_byte_count(value: object) -> int:
    """Convert a number of bytes, or text such as "3 GiB". Raises ValueError for anything else."""
    if isinstance(value, str) and (match := SIZE_PATTERN.fullmatch(value.strip())):
        number, unit = match.groups()
        base = 1024 if unit and unit[1:] else 1000
        value = int(float(number) * base ** (UNIT_EXPONENTS[unit[0].lower()] if unit else 0))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < INTEGER_LIMIT:
        return value
    raise ValueError('Must be a size: bytes, or text such as "3 GiB".')


def parse_iso_duration(text: object) -> timedelta:
    """Convert an ISO 8601 duration. A year has 365 days, a month 30.

    Raises ValueError if the text is no duration.
    """
    match = DURATION_PATTERN.fullmatch(text) if isinstance(text, str) else None
    values_by_name = {
        name: value for name, value in (match.groupdict() if match else {}).items() if value
    }
    if not values_by_name or str(text).endswith("T"):
        raise ValueError("Must be an ISO 8601 duration such as P30D or PT20M.")
    days = sum(int(values_by_name.pop(name, 0)) * length for name, length in DAYS_PER_UNIT.items())
    return timedelta(days=days, **{name: float(value) for name, value in values_by_name.items()})


def format_iso_duration(value: timedelta) -> str:
    """Format a duration as ISO 8601, in days and seconds."""
    days, seconds = value.days, value.seconds + value.microseconds / 1_000_000
    text = f"P{days}D" if days else "P"
    if seconds or not days:
        text += f"T{seconds:.6f}".rstrip("0").rstrip(".") + "S"
    return text


def describe_duration(value: timedelta) -> str:
    """Format a duration of whole seconds as ISO 8601 for people, in the largest units: PT4M."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    units = ((hours, "H"), (minutes, "M"), (seconds, "S"))
    time_text = "".join(f"{number}{unit}" for number, unit in units if number)
    days_text = f"{value.days}D" if value.days else ""
    if not days_text and not time_text:
        return "PT0S"
    return f"P{days_text}T{time_text}" if time_text else f"P{days_text}"


def format_size(byte_count: int) -> str:
    """Format bytes for people, with one decimal: 1.4 GiB."""
    for name, unit in BINARY_UNITS:
        if byte_count >= unit:
            return f"{byte_count / unit:.1f} {name}"
    return f"{byte_count} bytes"
