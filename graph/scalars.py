"""Scalars of our own, and DateTime as we write it."""

import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NewType

import orjson
import strawberry
from graphql import GraphQLError
from strawberry.scalars import JSON
from strawberry.types.scalar import ScalarDefinition

from models.errors import Invalid
from models.journal import Position

BigInt = NewType("BigInt", int)
ByteSize = NewType("ByteSize", int)
Cursor = NewType("Cursor", Position)
Duration = NewType("Duration", timedelta)
EmailAddress = NewType("EmailAddress", str)
CIDR = NewType("CIDR", str)
IPAddress = NewType("IPAddress", str)
URL = NewType("URL", str)
Upload = NewType("Upload", str)

POSITION = re.compile(r"1(\.[0-9]{1,19}\.[0-9]{1,19}){1,100}")  # the form, stream, number, …
SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
UNITS = {"k": 1, "m": 2, "g": 3, "t": 4}
DURATION = re.compile(
    r"P(?:(?P<years>\d{1,4})Y)?(?:(?P<months>\d{1,5})M)?(?:(?P<weeks>\d{1,5})W)?"
    r"(?:(?P<days>\d{1,6})D)?(?:T(?:(?P<hours>\d{1,7})H)?(?:(?P<minutes>\d{1,8})M)?"
    r"(?:(?P<seconds>\d{1,9}(?:\.\d{1,6})?)S)?)?"
)
DAYS = {"years": 365, "months": 30, "weeks": 7, "days": 1}
RFC_3339 = "https://www.rfc-editor.org/rfc/rfc3339"
WHOLE = 2**53
FREE_DATA = 1 << 20  # bytes


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,16}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < WHOLE:
        return value
    raise GraphQLError("not a whole number below 2^53")


def _size(value: object) -> int:
    if isinstance(value, str) and (match := SIZE.fullmatch(value.strip())):
        number, unit = match.groups()
        base = 1024 if unit and unit[1:] else 1000
        value = int(float(number) * base ** (UNITS[unit[0].lower()] if unit else 0))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < WHOLE:
        return value
    raise GraphQLError('not a size: give bytes, or text such as "3 GiB"')


def _instant(value: datetime) -> str:
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)[1:-1].decode()  # a third of isoformat()


def _moment(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise GraphQLError("not an RFC 3339 instant with an offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError as problem:
        raise GraphQLError("an instant beyond the calendar") from problem


def _long(value: timedelta) -> str:
    days, seconds = value.days, value.seconds + value.microseconds / 1_000_000
    text = f"P{days}D" if days else "P"
    if seconds or not days:
        text += f"T{seconds:.6f}".rstrip("0").rstrip(".") + "S"
    return text


def _duration(text: object) -> timedelta:
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    given = {name: value for name, value in (match.groupdict() if match else {}).items() if value}
    if not given or str(text).endswith("T"):
        raise GraphQLError("not an ISO 8601 duration such as P30D or PT20M")
    days = sum(int(given.pop(name, 0)) * length for name, length in DAYS.items())
    return timedelta(days=days, **{name: float(value) for name, value in given.items()})


def free_data(value: object, path: str) -> dict[str, Any] | None:
    """Free data of an application: an object of at most 1 MiB. Invalid where it is not."""
    if value is None or value is strawberry.UNSET:
        return None
    if not isinstance(value, dict):
        raise Invalid("free data is a JSON object", constraint="object", path=[path])
    try:
        small = len(orjson.dumps(value)) <= FREE_DATA
    except (TypeError, ValueError, RecursionError):
        small = False
    if not small:
        raise Invalid("free data has at most 1 MiB", constraint="max", path=[path])
    return value


def cursor(position: Position) -> str:
    """The text of a cursor of the journal."""
    return "1" + "".join(f".{stream}.{number}" for stream, number in sorted(position.items()))


def position(text: object) -> Position:
    """What a cursor says. Raises GraphQLError, with the code BAD_CURSOR."""
    if isinstance(text, str) and POSITION.fullmatch(text):
        numbers = [int(number) for number in text.split(".")[1:]]
        if max(numbers) < 1 << 63:
            return dict(zip(numbers[::2], numbers[1::2], strict=True))
    raise GraphQLError("not a cursor of the journal", extensions={"code": "BAD_CURSOR"})


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise GraphQLError("not text")


def _ip(value: object) -> str:
    try:
        return str(ipaddress.ip_address(_text(value).strip()))
    except ValueError as problem:
        raise GraphQLError("not an IPv4 or IPv6 address") from problem


def _cidr(value: object) -> str:
    try:
        return str(ipaddress.ip_network(_text(value).strip(), strict=False))
    except ValueError as problem:
        raise GraphQLError("not a network") from problem


def _scalar(
    name: str,
    description: str,
    write: Callable[[Any], Any],
    read: Callable[[Any], Any],
    url: str | None = None,
) -> ScalarDefinition:
    return strawberry.scalar(
        name=name, description=description, serialize=write, parse_value=read, specified_by_url=url
    )


def _same(value: Any) -> Any:
    return value


RFC = "https://www.rfc-editor.org/rfc/rfc"
SCALARS: dict[object, ScalarDefinition] = {
    BigInt: _scalar(
        "BigInt", "Whole number up to 2^53-1 as JSON number; strings accepted.", _whole, _whole
    ),
    ByteSize: _scalar(
        "ByteSize", 'Bytes as BigInt; inputs also take strings such as "3 GiB".', _whole, _size
    ),
    Cursor: _scalar("Cursor", "Opaque position in the change journal.", cursor, position),
    datetime: _scalar(
        "DateTime", "RFC 3339 instant with offset, answered in UTC.", _instant, _moment, RFC_3339
    ),
    Duration: _scalar(
        "Duration",
        "ISO 8601 duration such as P30D or PT20M.",
        _long,
        _duration,
        f"{RFC_3339}#appendix-A",
    ),
    EmailAddress: _scalar(
        "EmailAddress",
        "Address in Unicode form; dots and case kept for display, normalized for comparison.",
        _text,
        _text,
        f"{RFC}6531",
    ),
    CIDR: _scalar("CIDR", "Network or single address.", _text, _cidr, f"{RFC}4632"),
    IPAddress: _scalar("IPAddress", "IPv4 or IPv6 address.", _text, _ip, f"{RFC}4291"),
    JSON: _scalar("JSON", "Any JSON value.", _same, _same, f"{RFC}8259"),
    Upload: _scalar("Upload", "Id of bytes sent before to POST /rest/uploads.", _text, _text),
    URL: _scalar("URL", "Absolute URL.", _text, _text, f"{RFC}3986"),
}
