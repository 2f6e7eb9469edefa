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
from models.events.journal import StreamPositions
from resolvers.users import custom_data

BigInt = NewType("BigInt", int)
ByteSize = NewType("ByteSize", int)
CIDR = NewType("CIDR", str)
Cursor = NewType("Cursor", StreamPositions)
Duration = NewType("Duration", timedelta)
EmailAddress = NewType("EmailAddress", str)
IPAddress = NewType("IPAddress", str)
URL = NewType("URL", str)
Upload = NewType("Upload", str)

MAX_CURSOR_STREAMS = 100
# format version, then stream and position of each stream
CURSOR_PATTERN = re.compile(rf"1(\.[0-9]{{1,19}}\.[0-9]{{1,19}}){{1,{MAX_CURSOR_STREAMS}}}")
RFC_3339 = "https://www.rfc-editor.org/rfc/rfc3339"


def _with_graphql_error(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    """Return a parser that raises GraphQLError instead of ValueError."""

    def parse_or_graphql_error(value: object) -> Any:
        try:
            return parse(value)
        except ValueError as problem:
            raise GraphQLError(str(problem)) from None

    return parse_or_graphql_error


_parse_integer, _parse_size, _parse_duration = map(
    _with_graphql_error,
    (quantities.parse_integer, quantities.parse_byte_count, quantities.parse_iso_duration),
)


def _format_datetime(value: datetime) -> str:
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)[1:-1].decode()  # a third of isoformat()


def _parse_datetime(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise GraphQLError("Not an RFC 3339 instant with an offset.")
    try:
        return moment.astimezone(UTC)
    except OverflowError as problem:
        raise GraphQLError("The instant is out of range.") from problem


def validate_custom_data(value: object, path: str) -> dict[str, Any] | None:
    """Return the custom data of an input; None if omitted. Raises InvalidInput if malformed."""
    return None if value is strawberry.UNSET else custom_data.validate_custom_data(value, [path])


def encode_cursor(position: StreamPositions) -> str:
    """Return the cursor text of journal positions."""
    return "1" + "".join(f".{stream}.{number}" for stream, number in sorted(position.items()))


def decode_cursor(text: object) -> StreamPositions:
    """Return the journal positions of a cursor. Raises GraphQLError with the code BAD_CURSOR."""
    if isinstance(text, str) and CURSOR_PATTERN.fullmatch(text):
        numbers = [int(number) for number in text.split(".")[1:]]
        if max(numbers) < 1 << 63:
            return dict(zip(numbers[::2], numbers[1::2], strict=True))
    raise GraphQLError("Not a cursor of the journal.", extensions={"code": "BAD_CURSOR"})


def _require_text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise GraphQLError("Not a string.")


def _parse_ip_address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(_require_text(value).strip()))
    except ValueError as problem:
        raise GraphQLError("Not an IPv4 or IPv6 address.") from problem


def _parse_network(value: object) -> str:
    try:
        return str(ipaddress.ip_network(_require_text(value).strip(), strict=False))
    except ValueError as problem:
        raise GraphQLError(
            "Not a network such as 192.0.2.0/24, and not an IP address."
        ) from problem


def _scalar_definition(
    name: str,
    description: str,
    serialize: Callable[[Any], Any],
    parse: Callable[[Any], Any],
    url: str | None = None,
) -> ScalarDefinition:
    return strawberry.scalar(
        name=name,
        description=description,
        serialize=serialize,
        parse_value=parse,
        specified_by_url=url,
    )


def _return_unchanged(value: Any) -> Any:
    return value


RFC_URL = "https://www.rfc-editor.org/rfc/rfc"
SCALARS: dict[object, ScalarDefinition] = {
    BigInt: _scalar_definition(
        "BigInt",
        "Integer between -(2^53-1) and 2^53-1, as a JSON number. Inputs also accept it as a "
        "string.",
        quantities.parse_integer,
        _parse_integer,
    ),
    ByteSize: _scalar_definition(
        "ByteSize",
        "Number of bytes, as a JSON number from 0 to 2^53-1. Inputs also accept strings such as "
        '"3 GiB".',
        quantities.parse_integer,
        _parse_size,
    ),
    CIDR: _scalar_definition(
        "CIDR",
        "IPv4 or IPv6 network such as 192.0.2.0/24. A single address is a network of one address. "
        "Bits behind the prefix length are set to 0.",
        _require_text,
        _parse_network,
        f"{RFC_URL}4632",
    ),
    Cursor: _scalar_definition(
        "Cursor", "Opaque position in the event journal.", encode_cursor, decode_cursor
    ),
    datetime: _scalar_definition(
        "DateTime",
        "Instant with an offset (RFC 3339). Responses are in UTC.",
        _format_datetime,
        _parse_datetime,
        RFC_3339,
    ),
    Duration: _scalar_definition(
        "Duration",
        "ISO 8601 duration such as P30D or PT20M. A month has 30 days, a year 365 days.",
        quantities.format_iso_duration,
        _parse_duration,
        f"{RFC_3339}#appendix-A",
    ),
    EmailAddress: _scalar_definition(
        "EmailAddress",
        "Mail address (RFC 5322, RFC 6531), with the domain in Unicode form in responses.",
        _require_text,
        _require_text,
        f"{RFC_URL}6531",
    ),
    IPAddress: _scalar_definition(
        "IPAddress", "IPv4 or IPv6 address.", _require_text, _parse_ip_address, f"{RFC_URL}4291"
    ),
    JSON: _scalar_definition(
        "JSON", "JSON value of any type.", _return_unchanged, _return_unchanged, f"{RFC_URL}8259"
    ),
    Upload: _scalar_definition(
        "Upload",
        "ID of an upload: bytes that were sent to POST /rest/uploads before.",
        _require_text,
        _require_text,
    ),
    URL: _scalar_definition(
        "URL", "Absolute URL (RFC 3986).", _require_text, _require_text, f"{RFC_URL}3986"
    ),
}
