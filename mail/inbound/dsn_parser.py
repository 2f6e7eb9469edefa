"""Parse DSNs of other servers (RFC 3464 in RFC 6522, RFC 6533).

Anyone can send a DSN, so all sizes are limited. A message that can't be parsed as a DSN is handled
as ordinary mail.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mail.addresses.address_syntax import LONGEST
from mail.envelope.delivery_jobs import Action
from mail.mime import OnDisk, Part, Source, content, message_ids
from mail.mime.byte_source import cut
from mail.mime.header_fields import fields as header_fields
from mail.storage.message_insert import Letter

LARGEST = 1 << 20  # bytes of the status part
HEAD = 256 << 10  # bytes of the returned message that are searched for its header
PARTS = 10  # of a DSN that are read
RECIPIENTS = 1000
VALUE = 2000  # characters of a field
SHOWN = 500  # characters of a stored text
NAME = 255  # characters

STATUS = frozenset({"message/delivery-status", "message/global-delivery-status"})
HEADERS = frozenset({"text/rfc822-headers", "message/global-headers"})
WHOLE = frozenset({"message/rfc822", "message/global"})
ACTIONS = {str(each): each for each in Action}

_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CODE = re.compile(r"(?:<[^>]{0,300}>:? ?)?([245][0-9][0-9])(?:[ -]|$)")
_STATUS = re.compile(r"\s*([245]\.[0-9]{1,3}\.[0-9]{1,3})\b")
_WORD = re.compile(r"\s*([A-Za-z]+)")
_ODD = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]+")
_NUMBERED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_TYPES = frozenset({"rfc822", "utf-8"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What a DSN reports about one recipient."""

    action: Action
    addresses: tuple[str, ...]  # original recipient, final recipient
    orcpt: str | None  # with its address type, in lower case
    code: int  # SMTP reply code
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """A DSN of another server."""

    by: str
    envid: str | None
    message_id: str | None  # Message-ID of the returned message
    fates: Sequence[Fate]


async def found(source: bytes | Path, letter: Letter, sender: str) -> Report | None:
    """Return the DSN that a message is, None if it is not one.

    A DSN has an empty envelope sender and is the top-level part; an attached DSN was forwarded by a
    person.
    """
    kind = letter.facts.content_params.get("report-type", "delivery-status")
    if sender or letter.facts.content_type != "multipart/report":
        return None
    if kind.strip().lower() != "delivery-status":
        return None
    raw = OnDisk(source, letter.size) if isinstance(source, Path) else source
    return await asyncio.to_thread(read, raw, letter.facts.structure)


def read(raw: bytes | Source, structure: Part) -> Report | None:
    """Parse a DSN. Returns None if it reports no recipient."""
    parts = structure.parts[:PARTS]
    status = next((part for part in parts if part.content_type in STATUS), None)
    if status is None or status.size > LARGEST:
        return None
    groups = list(_groups(content(raw, status)))
    if not groups:
        return None
    about, fates = groups[0], list[Fate]()
    for group in groups:
        if len(fates) < RECIPIENTS and (fate := _fate(group)):
            fates.append(fate)
    if not fates:
        return None
    by = _after(about.get("reporting-mta", ""))[:NAME]
    envid = about.get("original-envelope-id", "").strip()[:SHOWN]
    return Report(by, envid or None, _message_id(raw, parts), fates)


def _groups(body: bytes) -> Iterator[dict[str, str]]:
    """Yield the fields of each group by lower-case name. The first field of a name counts."""
    group: dict[str, str] = {}
    name, seen = "", 0
    for line in _LINE_END.split(body.replace(b"\0", b"").decode("utf-8", "replace")):
        if not line.strip():
            if group:
                yield group
                seen += 1
            if seen > RECIPIENTS:
                return
            group, name = {}, ""
        elif line[0] in " \t":
            if name and len(group[name]) < VALUE:
                group[name] += " " + line.strip()[:VALUE]
        else:
            key, colon, value = line.partition(":")
            key = key.strip().lower()[:80]
            name = key if colon and key not in group else ""
            if name:
                group[name] = value.strip()[:VALUE]
    if group:
        yield group


def _fate(group: dict[str, str]) -> Fate | None:
    """Return the result that a group of fields reports, None if it has no action or address."""
    word = _WORD.match(group.get("action", ""))
    action = ACTIONS.get(word[1].lower()) if word else None
    given = [group.get(name, "") for name in ("original-recipient", "final-recipient")]
    addresses = tuple(address for each in given if (address := _address(each)))
    if action is None or not addresses:
        return None
    orcpt = ";".join(part.strip() for part in given[0].partition(";")[::2]).lower()
    code, text = _said(action, group)
    return Fate(action, addresses, orcpt[:VALUE] if given[0] else None, code, text)


def _address(given: str) -> str | None:
    """Return the address of a typed field value (`rfc822; user@host`), None if it is not valid."""
    kind, mark, text = given.partition(";")
    if not mark or kind.strip().lower() not in _TYPES:
        return None
    address = _NUMBERED.sub(_numbered, text.strip()).removeprefix("<").removesuffix(">")
    sound = "@" in address and len(address) <= LONGEST and not _ODD.search(address)
    return address if sound and " " not in address else None


def _numbered(found: re.Match[str]) -> str:
    """Return the character of an RFC 6533 escape, "" if the number is out of range."""
    number = int(found[1], 16)
    return chr(number) if number <= 0x10FFFF else ""  # noqa: PLR2004 - the last of Unicode


def _said(action: Action, group: dict[str, str]) -> tuple[int, str]:
    """Return reply code and text of the last server."""
    status = _STATUS.match(group.get("status", ""))
    text = " ".join(_ODD.sub(" ", _after(group.get("diagnostic-code", ""))).split())
    code = _CODE.match(text)
    if code:
        number, text = int(code[1]), text[code.end() :].strip()
    else:
        number = _usual(action, status[1] if status else "")
    if status and status[1] not in text:
        text = f"{status[1]} {text}".strip()
    return number, (text or str(action))[:SHOWN]


def _usual(action: Action, status: str) -> int:
    """Return a reply code for a report without one."""
    if action is Action.FAILED:
        return 450 if status.startswith("4") else 550
    return 450 if action is Action.DELAYED else 250


def _after(typed: str) -> str:
    """Return a field value without its type, in one line."""
    kind, mark, text = typed.partition(";")
    return " ".join(_ODD.sub(" ", text if mark else kind).split())


def _message_id(raw: bytes | Source, parts: Sequence[Part]) -> str | None:
    """Return the Message-ID of the message that the DSN returns."""
    for part in parts:
        if part.content_type in HEADERS and part.size <= HEAD:
            head = content(raw, part)
        elif part.content_type in WHOLE:
            small = part.size <= HEAD  # some servers encode it, against RFC 3464
            end = min(part.body_end, part.body_start + HEAD)
            whole = content(raw, part) if small else cut(raw, part.body_start, end)
            head = _BLANK_LINE.split(whole.lstrip(b"\r\n"), maxsplit=1)[0]
        else:
            continue
        for name, value in header_fields(head.replace(b"\0", b"")):
            if name == "message-id":
                return next(iter(message_ids(value)), None)
    return None
