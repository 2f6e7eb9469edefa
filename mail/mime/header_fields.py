"""Header blocks: their end, their fields, Message-IDs and dates (RFC 5322)."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_tz

from mail.mime.byte_source import ByteSource, read_range
from mail.mime.encoded_words import decode_encoded_words_and_drop_controls, unfold_and_decode_utf8
from mail.mime.mime_tree import ParsedPart

MAX_HEADER_BYTES = 1 << 20
UTF8_BOM = b"\xef\xbb\xbf"  # some programs write it before the first field
_MAX_DATE_LENGTH = 200
_MAX_MESSAGE_ID_LENGTH = 998  # characters of a line

_FIELD = re.compile(r"^([!-9;-~]++)[ \t]*+:(.*(?:\n[ \t].*)*+)", re.MULTILINE)
_FIELD_START = re.compile(rb"[!-9;-~]++[ \t]*+:")
_WELL_FORMED_FIELDS = re.compile(
    rb"(?:[!-9;-~]++[ \t]*+:[^\r\n]*+\r?\n(?:[ \t][^\r\n]*+\r?\n)*+)*+"
)
_LINE = re.compile(rb"([^\r\n]*+)(\r{0,2}\n|\r|\Z)")
_MESSAGE_ID = re.compile(r"<([^<>]*)>")
SPACE_AROUND_DOT = re.compile(r"(?<!\s)\s*+([.@])\s*+")  # and around the "@"
_WHITESPACE = re.compile(r"\s")
_KEYWORD = re.compile(r"(?:\s|\((?:[^()\\]|\\.)*+\))*+([^\s;,(]*+)")  # comments, then a word
_DATE = re.compile(
    r"\s*(?:[A-Za-z]{2,9}\.?,?\s*)?(\d{1,2})[\s-]+([A-Za-z]{3})[a-z]*\.?,?[\s-]+(\d{4})\s+"
    r"(\d{1,2}):(\d\d)(?::(\d\d))?(?:[.,]\d+)?\s*(?:([+-])(\d\d):?(\d\d)|(GMT|UTC?|Z)\b|$)"
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}
_LEAP_SECOND = 60

RawField = tuple[str, str]  # name in lower case, value with its folds; one character per byte


@dataclass(frozen=True, slots=True)
class DecodedField:
    """A decoded header field."""

    name: str  # as written
    value: str  # unfolded and decoded
    raw: str  # as in the message, without the last line end


def latin1_header_text_with_lf(header_block: bytes) -> str:
    """Decode a header block, one character per byte, with LF as line end and without BOM."""
    text = header_block.removeprefix(UTF8_BOM).decode("latin-1")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def parse_fields_with_lowercase_names(header_block: bytes) -> list[RawField]:
    """Return the fields of a header block in order. Invalid lines are skipped."""
    return [
        (name.lower(), value)
        for name, value in _FIELD.findall(latin1_header_text_with_lf(header_block))
    ]


def find_fields_end(raw: bytes, start: int, end: int) -> int:
    """Return the offset where the fields of a header block end.

    Some messages have no blank line before the body: lines after the last field that are no fields
    belong to the body. Such lines between fields are damage and are skipped.
    """
    first = start + len(UTF8_BOM) if raw.startswith(UTF8_BOM, start) else start
    well_formed = _WELL_FORMED_FIELDS.match(raw, first, end)
    if well_formed and well_formed.end() == end:
        return end
    at = last = first
    if raw.startswith((b"From ", b">From "), start) and start == 0:
        at = last = _next_line_start(raw, at, end)
    while at < end:
        after = _next_line_start(raw, at, end)
        if _FIELD_START.match(raw, at, after) or (raw[at] in b" \t" and last == at > first):
            last = after
        elif last == first:
            break  # the first line is no field: no header at all
        at = after
    return last if last > first else start


def decoded_fields(raw: bytes | ByteSource, part: ParsedPart) -> list[DecodedField]:
    """Return the decoded header fields of a part in order.

    For a message/rfc822 part these are the fields of the part itself. The fields of the attached
    message belong to the part inside.
    """
    text = latin1_header_text_with_lf(read_range(raw, part.header_start, part.body_start))
    return [
        DecodedField(
            match.group(1),
            decode_encoded_words_and_drop_controls(unfold_and_decode_utf8(match.group(2))),
            utf8_if_valid(match.group()),
        )
        for match in _FIELD.finditer(text)
    ]


def utf8_if_valid(text: str) -> str:
    """Decode text with one character per byte as UTF-8, if it is valid UTF-8."""
    try:
        return text if text.isascii() else text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def parse_message_ids(value: str) -> list[str]:
    """Return the Message-IDs of a value in order, with angle brackets.

    An id without angle brackets gets them. White space is removed around dots and "@" (RFC 5322,
    section 4.5.4); an id with other white space is not valid and is left out.
    """
    if "<" not in value:
        return [f"<{word}>" for word in value.split() if "@" in word]
    ids = (
        SPACE_AROUND_DOT.sub(r"\1", message_id.strip()) for message_id in _MESSAGE_ID.findall(value)
    )
    return [
        f"<{message_id}>"
        for message_id in ids
        if 0 < len(message_id) <= _MAX_MESSAGE_ID_LENGTH and not _WHITESPACE.search(message_id)
    ]


def parse_date_or_none(value: str) -> datetime | None:
    """Return the UTC time of a date (RFC 5322, section 3.3, and common deviations).

    Returns None if it can't be read.
    """
    value = value[:_MAX_DATE_LENGTH]
    match = _DATE.match(value)
    if match is None:
        return _parse_unusual_date_or_none(value)
    day, month, year, hour, minute, second, sign, hours, minutes, _ = match.groups()
    try:
        zone = UTC
        if sign:
            shift = timedelta(hours=int(hours), minutes=int(minutes))
            zone = timezone(-shift if sign == "-" else shift)
        return datetime(
            int(year),
            _MONTHS[month.lower()],
            int(day),
            int(hour),
            int(minute),
            min(int(second or 0), _LEAP_SECOND - 1),
            tzinfo=zone,
        ).astimezone(UTC)
    except (ValueError, KeyError, OverflowError):
        return None


def _parse_unusual_date_or_none(value: str) -> datetime | None:
    try:
        parsed_date = parsedate_tz(value)
        if parsed_date is None:
            exact = datetime.fromisoformat(value)
            return exact.replace(tzinfo=exact.tzinfo or UTC).astimezone(UTC)
        year, month, day, hour, minute, second = parsed_date[:6]
        zone = timezone(timedelta(seconds=parsed_date[9] or 0))
        second = min(second, _LEAP_SECOND - 1)
        return datetime(year, month, day, hour, minute, second, tzinfo=zone).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _next_line_start(raw: bytes, position: int, end: int) -> int:
    line = _LINE.match(raw, position, end)
    return line.end() if line else end


def leading_keyword(value: str) -> str:
    """Return the first word of a field value in lower case, or an empty text.

    Comments before it are left out, and parameters after it: as in Auto-Submitted (RFC 3834,
    section 5).
    """
    match = _KEYWORD.match(value)
    return match[1].lower() if match else ""
