"""Custom scalars and their conversion."""

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

from models import quantities
from models.events.journal import Position
from resolvers.users import custom_data

BigInt = NewType("BigInt", int)
ByteSize = NewType("ByteSize", int)
CIDR = NewType("CIDR", str)
Cursor = NewType("Cursor", Position)
Duration = NewType("Duration", timedelta)
EmailAddress = NewType("EmailAddress", str)
IPAddress = NewType("IPAddress", str)
URL = NewType("URL", str)
Upload = NewType("Upload", str)

STREAMS = 100
# format version, then stream and position of each stream
POSITION = re.compile(rf"1(\.[0-9]{{1,19}}\.[0-9]{{1,19}}){{1,{STREAMS}}}")
RFC_3339 = "https://www.rfc-editor.org/rfc/rfc3339"


def _said(read: Callable[[object], Any]) -> Callable[[object], Any]:
    """Return a parser that raises GraphQLError instead of ValueError."""

    def heard(value: object) -> Any:
        try:
            return read(value)
        except ValueError as problem:
            raise GraphQLError(str(problem)) from None

    return heard


_whole, _size, _duration = map(_said, (quantities.whole, quantities.size, quantities.duration))


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


def free_data(value: object, path: str) -> dict[str, Any] | None:
    """Return the custom data of an input; None if omitted. Raises InvalidInput if malformed."""
    return None if value is strawberry.UNSET else custom_data.checked(value, [path])


def cursor(position: Position) -> str:
    """Return the cursor text of journal positions."""
    return "1" + "".join(f".{stream}.{number}" for stream, number in sorted(position.items()))


def position(text: object) -> Position:
    """Return the journal positions of a cursor. Raises GraphQLError with the code BAD_CURSOR."""
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


def _network(value: object) -> str:
    try:
        return str(ipaddress.ip_network(_text(value).strip(), strict=False))
    except ValueError as problem:
        raise GraphQLError("not a network such as 192.0.2.0/24, nor an address") from problem


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
        "BigInt",
        "Whole number up to 2^53-1 as JSON number; strings accepted.",
        quantities.whole,
        _whole,
    ),
    ByteSize: _scalar(
        "ByteSize",
        'Bytes as BigInt; inputs also take strings such as "3 GiB".',
        quantities.whole,
        _size,
    ),
    CIDR: _scalar("CIDR", "Network or single address.", _text, _network, f"{RFC}4632"),
    Cursor: _scalar("Cursor", "Opaque position in the change journal.", cursor, position),
    datetime: _scalar(
        "DateTime", "RFC 3339 instant with offset, answered in UTC.", _instant, _moment, RFC_3339
    ),
    Duration: _scalar(
        "Duration",
        "ISO 8601 duration such as P30D or PT20M.",
        quantities.long,
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
    IPAddress: _scalar("IPAddress", "IPv4 or IPv6 address.", _text, _ip, f"{RFC}4291"),
    JSON: _scalar("JSON", "Any JSON value.", _same, _same, f"{RFC}8259"),
    Upload: _scalar("Upload", "Id of bytes sent before to POST /rest/uploads.", _text, _text),
    URL: _scalar("URL", "Absolute URL.", _text, _text, f"{RFC}3986"),
}
