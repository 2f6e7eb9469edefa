"""Parse DSNs of other servers (RFC 3464 in RFC 6522, RFC 6533).

Anyone can send a DSN, so all sizes are limited. A message that can't be parsed as a DSN is handled
as ordinary mail.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mail.addresses.address_syntax import MAX_ADDRESS
from mail.addresses.quoted_local_part import has_valid_quotes, remove_needless_quotes
from mail.envelope.delivery_jobs import DsnAction
from mail.mime import ByteSource, FileSource, ParsedPart, decoded_content, parse_message_ids
from mail.mime.byte_source import read_range
from mail.mime.header_fields import parse_fields_with_lowercase_names as header_fields
from mail.storage.storable_message import StorableMessage

MAX_STATUS_SIZE = 1 << 20  # bytes of the status part
MAX_HEADER_SIZE = 256 << 10  # bytes of the returned message that are searched for its header
MAX_PARTS = 10  # of a DSN that are read
MAX_RECIPIENTS = 1000
MAX_FIELD_VALUE = 2000  # characters of a field
MAX_STORED_TEXT = 500  # characters of a stored text
MAX_SERVER_NAME = 255  # characters

STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})
HEADER_TYPES = frozenset({"text/rfc822-headers", "message/global-headers"})
MESSAGE_TYPES = frozenset({"message/rfc822", "message/global"})
ACTIONS_BY_NAME = {str(dsn_action): dsn_action for dsn_action in DsnAction}

_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_REPLY_CODE = re.compile(r"(?:<[^>]{0,300}>:? ?)?([245][0-9][0-9])(?:[ -]|$)")
_STATUS_CODE = re.compile(r"\s*([245]\.[0-9]{1,3}\.[0-9]{1,3})\b")
_WORD = re.compile(r"\s*([A-Za-z]+)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]+")
_UTF8_ESCAPE = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ADDRESS_TYPES = frozenset({"rfc822", "utf-8"})


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """What a DSN reports about one recipient."""

    action: DsnAction
    addresses: tuple[str, ...]  # original recipient, final recipient
    orcpt: str | None  # with its address type, in lower case
    reply_code: int  # SMTP reply code
    reply_text: str


@dataclass(frozen=True, slots=True)
class ReceivedDsn:
    """A DSN of another server."""

    reporting_mta: str
    envid: str | None
    original_message_id: str | None  # Message-ID of the returned message
    recipient_results: Sequence[RecipientResult]


async def dsn_of_message_or_none(
    raw_message: bytes | Path, message: StorableMessage, envelope_sender: str
) -> ReceivedDsn | None:
    """Return the DSN that a message is, None if it is not one.

    A DSN has an empty envelope sender and is the top-level part; an attached DSN was forwarded by a
    person.
    """
    kind = message.facts.content_params.get("report-type", "delivery-status")
    if envelope_sender or message.facts.content_type != "multipart/report":
        return None
    if kind.strip().lower() != "delivery-status":
        return None
    raw = FileSource(raw_message, message.size) if isinstance(raw_message, Path) else raw_message
    return await asyncio.to_thread(parse_dsn_or_none, raw, message.facts.structure)


def parse_dsn_or_none(raw_message: bytes | ByteSource, structure: ParsedPart) -> ReceivedDsn | None:
    """Parse a DSN. Returns None if it reports no recipient."""
    parts = structure.parts[:MAX_PARTS]
    status = next((part for part in parts if part.content_type in STATUS_TYPES), None)
    if status is None or status.size > MAX_STATUS_SIZE:
        return None
    groups = list(_field_groups(decoded_content(raw_message, status)))
    if not groups:
        return None
    message_fields, fates = groups[0], list[RecipientResult]()
    for group in groups:
        if len(fates) < MAX_RECIPIENTS and (fate := _result_of_group_or_none(group)):
            fates.append(fate)
    if not fates:
        return None
    reporting_server = _value_after_type(message_fields.get("reporting-mta", ""))[:MAX_SERVER_NAME]
    envid = message_fields.get("original-envelope-id", "").strip()[:MAX_STORED_TEXT]
    return ReceivedDsn(
        reporting_server, envid or None, _original_message_id(raw_message, parts), fates
    )


def _field_groups(status_body: bytes) -> Iterator[dict[str, str]]:
    """Yield the fields of each group by lower-case name. The first field of a name counts."""
    group: dict[str, str] = {}
    name, seen = "", 0
    for line in _LINE_END.split(status_body.replace(b"\0", b"").decode("utf-8", "replace")):
        if not line.strip():
            if group:
                yield group
                seen += 1
            if seen > MAX_RECIPIENTS:
                return
            group, name = {}, ""
        elif line[0] in " \t":
            if name and len(group[name]) < MAX_FIELD_VALUE:
                group[name] += " " + line.strip()[:MAX_FIELD_VALUE]
        else:
            key, colon, value = line.partition(":")
            key = key.strip().lower()[:80]
            name = key if colon and key not in group else ""
            if name:
                group[name] = value.strip()[:MAX_FIELD_VALUE]
    if group:
        yield group


def _result_of_group_or_none(fields: dict[str, str]) -> RecipientResult | None:
    """Return the result that a group of fields reports, None if it has no action or address."""
    word = _WORD.match(fields.get("action", ""))
    action = ACTIONS_BY_NAME.get(word[1].lower()) if word else None
    recipient_fields = [fields.get(name, "") for name in ("original-recipient", "final-recipient")]
    addresses = tuple(
        address
        for recipient_field in recipient_fields
        if (address := _address_of_typed_value_or_none(recipient_field))
    )
    if action is None or not addresses:
        return None
    orcpt = ";".join(part.strip() for part in recipient_fields[0].partition(";")[::2]).lower()
    code, text = _reply_of_group(action, fields)
    return RecipientResult(
        action, addresses, orcpt[:MAX_FIELD_VALUE] if recipient_fields[0] else None, code, text
    )


def _address_of_typed_value_or_none(field_value: str) -> str | None:
    """Return the address of a typed field value (`rfc822; user@host`), None if it is not valid."""
    kind, separator, text = field_value.partition(";")
    if not separator or kind.strip().lower() not in _ADDRESS_TYPES:
        return None
    address = (
        _UTF8_ESCAPE.sub(_unescaped_character_or_empty, text.strip())
        .removeprefix("<")
        .removesuffix(">")
    )
    sound = "@" in address and len(address) <= MAX_ADDRESS and not _UNPRINTABLE.search(address)
    is_quoted = address.startswith('"') and has_valid_quotes(address)
    return remove_needless_quotes(address) if sound and (is_quoted or " " not in address) else None


def _unescaped_character_or_empty(escape_match: re.Match[str]) -> str:
    """Return the character of an RFC 6533 escape, "" if the number is out of range."""
    number = int(escape_match[1], 16)
    return chr(number) if number <= 0x10FFFF else ""  # noqa: PLR2004 - the last of Unicode


class _ServerReply(NamedTuple):
    """The SMTP reply of the last server."""

    code: int
    text: str


def _reply_of_group(action: DsnAction, fields: dict[str, str]) -> _ServerReply:
    """Return reply code and text of the last server."""
    status = _STATUS_CODE.match(fields.get("status", ""))
    text = " ".join(
        _UNPRINTABLE.sub(" ", _value_after_type(fields.get("diagnostic-code", ""))).split()
    )
    code = _REPLY_CODE.match(text)
    if code:
        number, text = int(code[1]), text[code.end() :].strip()
    else:
        number = _default_reply_code(action, status[1] if status else "")
    if status and status[1] not in text:
        text = f"{status[1]} {text}".strip()
    return _ServerReply(number, (text or str(action))[:MAX_STORED_TEXT])


def _default_reply_code(action: DsnAction, status_code: str) -> int:
    """Return a reply code for a report without one."""
    if action is DsnAction.FAILED:
        return 450 if status_code.startswith("4") else 550
    return 450 if action is DsnAction.DELAYED else 250


def _value_after_type(field_value: str) -> str:
    """Return a field value without its type, in one line."""
    kind, separator, text = field_value.partition(";")
    return " ".join(_UNPRINTABLE.sub(" ", text if separator else kind).split())


def _original_message_id(
    raw_message: bytes | ByteSource, parts: Sequence[ParsedPart]
) -> str | None:
    """Return the Message-ID of the message that the DSN returns."""
    for part in parts:
        if part.content_type in HEADER_TYPES and part.size <= MAX_HEADER_SIZE:
            head = decoded_content(raw_message, part)
        elif part.content_type in MESSAGE_TYPES:
            small = part.size <= MAX_HEADER_SIZE  # some servers encode it, against RFC 3464
            end = min(part.body_end, part.body_start + MAX_HEADER_SIZE)
            content = (
                decoded_content(raw_message, part)
                if small
                else read_range(raw_message, part.body_start, end)
            )
            head = _BLANK_LINE.split(content.lstrip(b"\r\n"), maxsplit=1)[0]
        else:
            continue
        for name, value in header_fields(head.replace(b"\0", b"")):
            if name == "message-id":
                return next(iter(parse_message_ids(value)), None)
    return None
