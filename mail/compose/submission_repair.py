"""Repair of messages that a client submits: line ends, Date, Message-ID (RFC 6409, section 8)."""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime
from typing import NamedTuple

from mail import mime
from mail.compose.message_builder import is_message_id
from mail.mime import MessageFacts, header_encoding
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_HEADER_BYTES = 256 << 10  # bytes of a header

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_FOLD = re.compile(rb"^[ \t]+\r\n", re.MULTILINE)
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|\((?:[^()\\]|\\.)*\)')
_ADDRESS_ENTRY = re.compile(r"[^<>]*<\s*[^<>\s]*\s*>\s*|\s*[^<>\s]+\s*")
_SPACE_AROUND_AT = re.compile(r"(?<!\s)\s*+@\s*+")
_ENTRY_ENDS = re.compile(r"[,;]|(?<=[\w\s]):")


@dataclass(frozen=True, slots=True)
class RepairedMessage:
    """A message that can be sent, with the addresses of its writers."""

    raw: bytes
    writers: list[str]  # addresses of From and Sender
    facts: MessageFacts  # of the original header


def repair_message_or_raise(
    raw: bytes, date: datetime, message_id: str, *, replace_date: bool = False
) -> RepairedMessage:
    """Return the message with CRLF line ends, a Date and a Message-ID.

    With `replace_date`, `date` also replaces a valid Date. Raises InvalidInput if the header is
    invalid or has not exactly one From field: other readers could see another sender than this
    server checked. Raises InvalidInput for a NUL too, since some servers end a line or message
    there (RFC 5321, section 4.5.2).
    """
    if b"\0" in raw:
        raise InvalidInput(
            "The message must not contain NUL.", constraint=ValidationConstraint.PATTERN
        )
    if b"\n" in (without_crlf := raw.replace(b"\r\n", b"")) or b"\r" in without_crlf:
        raw = _LINE_END.sub(b"\r\n", raw)
    head, blank, body = raw.partition(b"\r\n\r\n")
    head = _BLANK_FOLD.sub(b"", head.removesuffix(b"\r\n") + b"\r\n")
    header_fields = _split_header_fields_or_raise(head)
    names = [name for name, _ in header_fields]
    if names.count(b"from") != 1 or names.count(b"sender") > 1:
        raise InvalidInput(
            "The message must have one header field From, and at most one Sender.",
            constraint=ValidationConstraint.FROM,
        )
    facts = mime.facts_from_message_bytes(head + b"\r\n")
    if not facts.from_:
        raise InvalidInput(
            "The header field From has no address.", constraint=ValidationConstraint.FROM
        )
    head = _with_date_and_message_id_if_unusable(
        header_fields, replace(facts, date=None) if replace_date else facts, date, message_id
    )
    writers = [person.address for person in [*facts.from_, *facts.sender]]
    return RepairedMessage(head + b"\r\n" + (body if blank else b""), writers, facts)


class _HeaderLine(NamedTuple):
    """A header field as it is in the message."""

    name: bytes  # in lower case
    field: bytes  # with the name and all its folded lines


def _split_header_fields_or_raise(head: bytes) -> list[_HeaderLine]:
    """Split a header into its fields.

    Raises InvalidInput if the header has no fields, invalid lines or more than 256 KiB.
    """
    header_fields, at = [], 0
    while at < len(head) and len(head) <= MAX_HEADER_BYTES:
        field = _FIELD.match(head, at)
        if field is None:
            break
        header_fields.append(_HeaderLine(field[1].lower(), field[0]))
        at = field.end()
    if at < len(head) or not header_fields:
        raise InvalidInput(
            "The message has no header, or its header is too long.",
            constraint=ValidationConstraint.HEADER,
        )
    return header_fields


def _with_date_and_message_id_if_unusable(
    fields: list[_HeaderLine], facts: MessageFacts, date: datetime, message_id: str
) -> bytes:
    """Return the header with a Date and Message-ID in place of unreadable ones."""
    added_fields, replaced_names = list[bytes](), set[bytes]()
    if facts.date is None:
        replaced_names.add(b"date")
        added_fields.append(header_encoding.words_field("Date", format_datetime(date).split(" ")))
    if not is_message_id(facts.message_id):
        replaced_names.add(b"message-id")
        added_fields.append(header_encoding.words_field("Message-ID", [message_id]))
    return b"".join(
        [*(field for name, field in fields if name not in replaced_names), *added_fields]
    )


def find_ambiguous_recipient(raw: bytes) -> str | None:
    """Return the first ambiguous or invalid recipient of the header, None if there is none.

    A reader of received mail may guess what is meant; a server that sends mail must not.
    """
    head = raw.partition(b"\r\n\r\n")[0] + b"\r\n"
    for name, line in _split_header_fields_or_raise(head):
        if name not in (b"to", b"cc", b"bcc"):
            continue
        value = line.partition(b":")[2].decode("utf-8", "replace")
        bare = _STRINGS.sub(lambda item: "x" if item[0][0] == '"' else " ", " ".join(value.split()))
        for entry in _ENTRY_ENDS.split(_SPACE_AROUND_AT.sub("@", bare)):
            if "@" in entry and not _ADDRESS_ENTRY.fullmatch(entry):
                return entry.strip()[:200]
    return None
