"""The keys of the search syntax, and the filter fields they set.

`from:ann` in lower case is Merganser's own syntax; `FROM ann` in capitals is doveadm's.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from models import quantities
from models.files.blobs import StorageTier
from models.mailboxes.tables import SpecialUse
from models.submission.tables import SubmissionState

FilterFields = Mapping[str, Any]

TEXT_FIELDS = {
    "from": "from", "to": "toOrCc", "toonly": "to", "cc": "cc", "bcc": "bcc",
    "recipient": "anyRecipient", "subject": "subject", "text": "text", "body": "body",
    "query": "query", "list": "listId", "messageid": "messageIdHeader", "keyword": "keyword",
    "label": "keyword", "uid": "uids", "seq": "seqs",
}  # fmt: skip
FLAG_FIELDS = {
    "seen": "seen", "flagged": "flagged", "answered": "answered", "draft": "draft",
    "deleted": "deleted", "forwarded": "forwarded", "searchable": "searchable",
    "snoozed": "snoozed",
    "attachment": "hasAttachment",
}  # fmt: skip
STATE_CONDITIONS = {**{name: (field, True) for name, field in FLAG_FIELDS.items()}} | {
    "read": ("seen", True), "unread": ("seen", False), "unseen": ("seen", False),
    "starred": ("flagged", True), "unflagged": ("flagged", False),
    "unanswered": ("answered", False), "undraft": ("draft", False),
    "undeleted": ("deleted", False),
}  # fmt: skip
TIME_FIELDS = {
    "after": "receivedSince", "since": "receivedSince", "before": "receivedBefore",
    "sentsince": "sentSince", "sentbefore": "sentBefore", "savedsince": "savedSince",
    "savedbefore": "savedBefore", "expiresbefore": "expiresBefore",
}  # fmt: skip
DAY_FIELDS = {"on": "received", "senton": "sent", "savedon": "saved"}
NUMBER_FIELDS = {"larger": "larger", "smaller": "smaller", "modseq": "modifiedSince"}
LIST_FIELDS = {
    "pattern": "mailboxPatterns",
    "emailid": "emailIds",
    "submission": "submissionStates",
}
ENUM_FIELDS: Mapping[str, tuple[str, type[StrEnum]]] = {"tier": ("tier", StorageTier)}
SPECIAL_USES = {use.lower(): use for use in SpecialUse} | {
    "spam": SpecialUse.JUNK, "deleted": SpecialUse.TRASH, "bin": SpecialUse.TRASH,
    "draft": SpecialUse.DRAFTS,
}  # fmt: skip
BOOLEANS = {"yes": True, "true": True, "no": False, "false": False}
ATTACHMENT_FIELDS = {"filename": "filename", "filetype": "contentType"}
MAILBOX_FIELDS = {
    "in": "path", "mailbox": "path", "folder": "path", "mailboxid": "id", "mailboxguid": "objectId",
}  # fmt: skip
UNSUPPORTED_WORDS = {
    "NEW": "\\Recent", "OLD": "\\Recent", "RECENT": "\\Recent", "MAILBOX-GUID": "the guid here",
}  # fmt: skip

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_IMAP_DATE = re.compile(r"([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})")
_RELATIVE_TIME = re.compile(r"([0-9]{1,6}) ?(s|secs?|mins?|h|hours?|d|days?|w|weeks?|y|years?)")
_SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
MAX_AGE = timedelta(days=365 * 100)
_UNIX_TIME = re.compile("[0-9]{9,11}")
KNOWN_KEYS = frozenset(
    (
        "is",
        "has",
        "hasattachment",
        "header",
        "thread",
        *TEXT_FIELDS,
        *FLAG_FIELDS,
        *NUMBER_FIELDS,
        *LIST_FIELDS,
        *ENUM_FIELDS,
        *ATTACHMENT_FIELDS,
        *MAILBOX_FIELDS,
    )
) | {*TIME_FIELDS, *DAY_FIELDS}


class InvalidValueError(Exception):
    """A value that its key does not accept. The text says which values are allowed."""


class DoveadmKey(NamedTuple):
    """A key of doveadm: how many words follow it, and the function that turns them into fields."""

    value_count: int
    parse_values: Callable[..., FilterFields]


def is_key(key: str) -> bool:
    """True if `key:` begins a term. The key must be in lower case."""
    return key in KNOWN_KEYS


def fields_from_key_and_value_or_none(key: str, text: str, now: datetime) -> FilterFields | None:
    """Return the filter fields of `key:text`; None if there is no such key.

    Raises InvalidValueError if the key does not accept the value.
    """
    if key in TEXT_FIELDS:
        if not text:
            raise InvalidValueError("must have at least 1 character")
        return {TEXT_FIELDS[key]: text}
    if key in ("is", "has"):
        if text.lower() not in STATE_CONDITIONS:
            raise InvalidValueError(f"must be one of {', '.join(sorted(STATE_CONDITIONS))}")
        field, value = STATE_CONDITIONS[text.lower()]
        return {field: value}
    if key in FLAG_FIELDS or key == "hasattachment":
        return _fields_from_flag_key(key, text)
    if key in NUMBER_FIELDS:
        return {NUMBER_FIELDS[key]: _parse_number_or_size(text)}
    if key in LIST_FIELDS:
        return {LIST_FIELDS[key]: [_parse_submission_state(text) if key == "submission" else text]}
    return _fields_from_part_or_mailbox_key_or_none(key, text) or _fields_from_time_key_or_none(
        key, text, now
    )


def _fields_from_enum_key(key: str, text: str) -> FilterFields:
    """Return the fields of a key whose values are those of an enum. Raises InvalidValueError."""
    name, enum = ENUM_FIELDS[key]
    if text.upper() not in set(enum):
        raise InvalidValueError(f"must be one of {', '.join(sorted(enum)).lower()}")
    return {name: text.upper()}


def _parse_submission_state(text: str) -> str:
    """Return the submission state with this name. Raises InvalidValueError."""
    if text.upper() not in set(SubmissionState):
        raise InvalidValueError("must be a state of a submission, such as scheduled")
    return text.upper()


def _fields_from_flag_key(key: str, text: str) -> FilterFields:
    """Return the fields of a flag key with yes or no, or of `attachment:`.

    Raises InvalidValueError.
    """
    if key == "attachment" and text.lower() not in BOOLEANS:
        return (
            {"hasAttachment": True} if text.lower() == "any" else {"attachment": {"filename": text}}
        )
    if text.lower() not in BOOLEANS:
        raise InvalidValueError("must be yes or no")
    return {FLAG_FIELDS.get(key, "hasAttachment"): BOOLEANS[text.lower()]}


def _fields_from_part_or_mailbox_key_or_none(key: str, text: str) -> FilterFields | None:
    """Return the fields of an enum, header, attachment or mailbox key; None for another key.

    Raises InvalidValueError.
    """
    if key in ENUM_FIELDS:
        return _fields_from_enum_key(key, text)
    if key == "header":
        name, colon, part = text.partition(":")
        return {"header": {"name": name} | ({"contains": part[1:]} if colon else {})}
    if key == "thread":
        if not text:
            raise InvalidValueError("must have at least 1 character")
        return {"thread": {"id": text}}
    if key in ATTACHMENT_FIELDS:
        return {"attachment": {ATTACHMENT_FIELDS[key]: text}}
    if key == "in" and (use := SPECIAL_USES.get(text.lower())):
        return {"mailbox": {"specialUse": use.value}}
    return {"mailbox": {MAILBOX_FIELDS[key]: text}} if key in MAILBOX_FIELDS else None


def _fields_from_time_key_or_none(key: str, text: str, now: datetime) -> FilterFields | None:
    """Return the fields of a time or day key; None for another key. Raises InvalidValueError."""
    if key in TIME_FIELDS:
        return {TIME_FIELDS[key]: parse_time_bound(text, now)}
    if key in DAY_FIELDS:
        day = _parse_day_or_none(text, now)
        if day is None:
            raise InvalidValueError("must be a day such as 2026-01-31")
        try:
            next_day = day + timedelta(days=1)
        except OverflowError as problem:
            raise InvalidValueError("must be a day before 9999-12-31") from problem
        return {
            f"{DAY_FIELDS[key]}Since": {"at": format_instant(day)},
            f"{DAY_FIELDS[key]}Before": {"at": format_instant(next_day)},
        }
    return None


def _parse_number_or_size(text: str) -> int:
    """Parse a number or a size with a unit, in bytes. Raises InvalidValueError."""
    try:
        if text.isascii() and text.isdigit():
            return quantities.parse_integer(text)
        return quantities.parse_byte_count(
            re.sub(r"(?<=[0-9])([kmgtKMGT])$", r"\1iB", text.strip())
        )
    except ValueError as problem:
        raise InvalidValueError("must be a number, or a size such as 5M") from problem


def parse_time_bound(text: str, now: datetime) -> FilterFields:
    """Parse a point in time: a day, an instant, a Unix time or an age such as `30d`.

    Raises InvalidValueError for any other text.
    """
    try:
        if match := _RELATIVE_TIME.fullmatch(text.strip().lower()):
            seconds = int(match[1]) * _SECONDS_PER_UNIT[match[2][0]]
            if seconds > MAX_AGE.total_seconds():
                raise ValueError(text)
            return {"ago": quantities.format_iso_duration(timedelta(seconds=seconds))}
        if text.startswith("P"):
            return {"ago": quantities.format_iso_duration(quantities.parse_iso_duration(text))}
        if _UNIX_TIME.fullmatch(text):
            return {"at": format_instant(datetime.fromtimestamp(int(text), UTC))}
        at = _parse_day_or_none(text, now) or datetime.fromisoformat(text)
        return {"at": format_instant(at if at.tzinfo else at.replace(tzinfo=UTC))}
    except (ValueError, OverflowError) as problem:
        raise InvalidValueError(
            "must be a time such as 2026-01-31, 2026-01-31T08:00Z or 30d"
        ) from problem


def _parse_day_or_none(text: str, now: datetime) -> datetime | None:
    """Return the midnight (UTC) of a day; None if the text names no day."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if text.lower() in ("today", "yesterday"):
        return midnight - timedelta(days=text.lower() == "yesterday")
    try:
        if match := _IMAP_DATE.fullmatch(text):
            month = _MONTHS.index(match[2].lower()) + 1
            return datetime(int(match[3]), month, int(match[1]), tzinfo=UTC)
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def format_instant(instant: datetime) -> str:
    """Return an instant in the format of the API."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _doveadm_key_like(key: str) -> DoveadmKey:
    """Return a key of doveadm that means the same as one of Merganser's keys."""

    def parse_value(text: str, now: datetime) -> FilterFields:
        return fields_from_key_and_value_or_none(key, text, now) or {}

    return DoveadmKey(1, parse_value)


def _doveadm_flag_key(field: str, *, value: bool) -> DoveadmKey:
    """Return a key of doveadm without a value that sets one field."""
    return DoveadmKey(0, lambda _now: {field: value})


DOVEADM_KEYS = {
    "ALL": DoveadmKey(0, lambda _now: {}),
    **{
        name.upper(): _doveadm_flag_key(field, value=value)
        for name, (field, value) in STATE_CONDITIONS.items()
        if field not in ("hasAttachment", "searchable", "forwarded")
    },
    **{
        name.upper(): _doveadm_key_like(name)
        for name in (*TIME_FIELDS, *DAY_FIELDS, "larger", "smaller", "from", "cc")
    },
    **{
        name.upper(): _doveadm_key_like(name)
        for name in ("bcc", "subject", "text", "body", "keyword", "uid")
    },
    **{name.upper(): _doveadm_key_like(name) for name in ("mailbox", "modseq", "seq")},
    "GUID": _doveadm_key_like("emailid"),
    "TO": _doveadm_key_like("toonly"),
    "INTHREAD": _doveadm_key_like("thread"),
    "UNKEYWORD": DoveadmKey(1, lambda text, _now: {"not": {"keyword": text}}),
    "HEADER": DoveadmKey(
        2,
        lambda name, part, _now: {
            "header": {"name": name, "contains": part} if part else {"name": name}
        },
    ),
}
