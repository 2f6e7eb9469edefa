"""The keys of the search syntax, and the filter fields they set.

`from:ann` in lower case is Merganser's own syntax; `FROM ann` in capitals is doveadm's.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from models import quantities
from models.mailboxes.tables import SpecialUse
from models.submission.tables import SubmissionState

Fields = Mapping[str, Any]

TEXTS = {
    "from": "from", "to": "to", "toonly": "toOnly", "cc": "cc", "bcc": "bcc",
    "recipient": "recipient", "subject": "subject", "text": "text", "body": "body",
    "query": "query", "list": "listId", "messageid": "messageId", "keyword": "keyword",
    "label": "keyword", "thread": "thread", "uid": "uids", "seq": "seqs",
}  # fmt: skip
FLAGS = {
    "seen": "seen", "flagged": "flagged", "answered": "answered", "draft": "draft",
    "deleted": "deleted", "forwarded": "forwarded", "searchable": "searchable",
    "snoozed": "snoozed",
    "attachment": "hasAttachment",
}  # fmt: skip
IS = {**{name: (field, True) for name, field in FLAGS.items()}} | {
    "read": ("seen", True), "unread": ("seen", False), "unseen": ("seen", False),
    "starred": ("flagged", True), "unflagged": ("flagged", False),
    "unanswered": ("answered", False), "undraft": ("draft", False),
    "undeleted": ("deleted", False),
}  # fmt: skip
TIMES = {
    "after": "receivedSince", "since": "receivedSince", "before": "receivedBefore",
    "sentsince": "sentSince", "sentbefore": "sentBefore", "savedsince": "savedSince",
    "savedbefore": "savedBefore", "expiresbefore": "expiresBefore",
}  # fmt: skip
DAYS = {"on": "received", "senton": "sent", "savedon": "saved"}
NUMBERS = {"larger": "larger", "smaller": "smaller", "modseq": "modifiedSince"}
LISTS = {"mask": "mailboxMasks", "guid": "guids", "submission": "submissionStates"}
USES = {use.lower(): use for use in SpecialUse} | {
    "spam": SpecialUse.JUNK, "deleted": SpecialUse.TRASH, "bin": SpecialUse.TRASH,
    "draft": SpecialUse.DRAFTS,
}  # fmt: skip
YES = {"yes": True, "true": True, "no": False, "false": False}
FILES = {"filename": "filename", "filetype": "contentType"}
BOXES = {
    "in": "path", "mailbox": "path", "folder": "path", "mailboxid": "id", "mailboxguid": "guid",
}  # fmt: skip
NOT_KEPT = {
    "NEW": "\\Recent", "OLD": "\\Recent", "RECENT": "\\Recent", "MAILBOX-GUID": "the guid here",
}  # fmt: skip

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_IMAP = re.compile(r"([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})")
_AGO = re.compile(r"([0-9]{1,6}) ?(s|secs?|mins?|h|hours?|d|days?|w|weeks?|y|years?)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
OLDEST = timedelta(days=365 * 100)
_STAMP = re.compile("[0-9]{9,11}")
KEYS = frozenset(
    ("is", "has", "hasattachment", "header", *TEXTS, *FLAGS, *NUMBERS, *LISTS, *FILES, *BOXES)
) | {*TIMES, *DAYS}


class Unclear(Exception):
    """A value that its key does not accept. The text says which values are allowed."""


class Capital(NamedTuple):
    """A key of doveadm: how many words follow it, and the function that turns them into fields."""

    words: int
    says: Callable[..., Fields]


def is_key(key: str) -> bool:
    """True if `key:` begins a term. The key must be in lower case."""
    return key in KEYS


def value_of(key: str, text: str, now: datetime) -> Fields | None:
    """Return the filter fields of `key:text`; None if there is no such key.

    Raises InvalidValueError if the key does not accept the value.
    """
    if key in TEXTS:
        if not text:
            raise Unclear("at least one character")
        return {TEXTS[key]: text}
    if key in ("is", "has"):
        if text.lower() not in IS:
            raise Unclear(f"one of {', '.join(sorted(IS))}")
        field, value = IS[text.lower()]
        return {field: value}
    if key in FLAGS or key == "hasattachment":
        return _flag(key, text)
    if key in NUMBERS:
        return {NUMBERS[key]: _number(text)}
    if key in LISTS:
        return {LISTS[key]: [_submission_state(text) if key == "submission" else text]}
    return _place(key, text) or _time(key, text, now)


def _submission_state(text: str) -> str:
    """Return the submission state with this name. Raises InvalidValueError."""
    if text.upper() not in set(SubmissionState):
        raise Unclear("a state of a submission, such as scheduled")
    return text.upper()


def _flag(key: str, text: str) -> Fields:
    """Return the fields of a flag key with yes or no, or of `attachment:`.

    Raises InvalidValueError.
    """
    if key == "attachment" and text.lower() not in YES:
        return (
            {"hasAttachment": True} if text.lower() == "any" else {"attachment": {"filename": text}}
        )
    if text.lower() not in YES:
        raise Unclear("yes or no")
    return {FLAGS.get(key, "hasAttachment"): YES[text.lower()]}


def _place(key: str, text: str) -> Fields | None:
    """Return the fields of a header, attachment or mailbox key; None for another key."""
    if key == "header":
        name, colon, part = text.partition(":")
        return {"header": {"name": name} | ({"contains": part[1:]} if colon else {})}
    if key in FILES:
        return {"attachment": {FILES[key]: text}}
    if key == "in" and (use := USES.get(text.lower())):
        return {"mailbox": {"specialUse": use.value}}
    return {"mailbox": {BOXES[key]: text}} if key in BOXES else None


def _time(key: str, text: str, now: datetime) -> Fields | None:
    """Return the fields of a time or day key; None for another key. Raises InvalidValueError."""
    if key in TIMES:
        return {TIMES[key]: bound(text, now)}
    if key in DAYS:
        day = _day(text, now)
        if day is None:
            raise Unclear("a day such as 2026-01-31")
        name, until = DAYS[key], day + timedelta(days=1)
        return {f"{name}Since": {"at": spelled(day)}, f"{name}Before": {"at": spelled(until)}}
    return None


def _number(text: str) -> int:
    """Parse a number or a size with a unit, in bytes. Raises InvalidValueError."""
    try:
        if text.isascii() and text.isdigit():
            return quantities.whole(text)
        return quantities.size(re.sub(r"(?<=[0-9])([kmgtKMGT])$", r"\1iB", text.strip()))
    except ValueError as problem:
        raise Unclear("a number, or a size such as 5M") from problem


def bound(text: str, now: datetime) -> Fields:
    """Parse a point in time: a day, an instant, a Unix time or an age such as `30d`.

    Raises InvalidValueError for any other text.
    """
    try:
        if found := _AGO.fullmatch(text.strip().lower()):
            seconds = int(found[1]) * _UNITS[found[2][0]]
            if seconds > OLDEST.total_seconds():
                raise ValueError(text)
            return {"ago": quantities.long(timedelta(seconds=seconds))}
        if text.startswith("P"):
            return {"ago": quantities.long(quantities.duration(text))}
        if _STAMP.fullmatch(text):
            return {"at": spelled(datetime.fromtimestamp(int(text), UTC))}
        at = _day(text, now) or datetime.fromisoformat(text)
        return {"at": spelled(at if at.tzinfo else at.replace(tzinfo=UTC))}
    except (ValueError, OverflowError) as problem:
        raise Unclear("a time such as 2026-01-31, 2026-01-31T08:00Z or 30d") from problem


def _day(text: str, now: datetime) -> datetime | None:
    """Return the midnight (UTC) of a day; None if the text names no day."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if text.lower() in ("today", "yesterday"):
        return midnight - timedelta(days=text.lower() == "yesterday")
    try:
        if found := _IMAP.fullmatch(text):
            month = _MONTHS.index(found[2].lower()) + 1
            return datetime(int(found[3]), month, int(found[1]), tzinfo=UTC)
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def spelled(at: datetime) -> str:
    """Return an instant in the format of the API."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _same(key: str) -> Capital:
    """Return a key of doveadm that means the same as one of Merganser's keys."""

    def says(text: str, now: datetime) -> Fields:
        return value_of(key, text, now) or {}

    return Capital(1, says)


def _flagged(field: str, *, value: bool) -> Capital:
    """Return a key of doveadm without a value that sets one field."""
    return Capital(0, lambda _now: {field: value})


CAPITALS = {
    "ALL": Capital(0, lambda _now: {}),
    **{name.upper(): _flagged(field, value=value) for name, (field, value) in IS.items()
       if field not in ("hasAttachment", "searchable", "forwarded")},
    **{name.upper(): _same(name) for name in (*TIMES, *DAYS, "larger", "smaller", "from", "cc")},
    **{name.upper(): _same(name) for name in ("bcc", "subject", "text", "body", "keyword", "uid")},
    **{name.upper(): _same(name) for name in ("mailbox", "guid", "modseq", "seq")},
    "TO": _same("toonly"),
    "INTHREAD": _same("thread"),
    "UNKEYWORD": Capital(1, lambda text, _now: {"not": {"keyword": text}}),
    "HEADER": Capital(
        2,
        lambda name, part, _now: {
            "header": {"name": name, "contains": part} if part else {"name": name}
        },
    ),
}  # fmt: skip
