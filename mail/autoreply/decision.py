"""Decide whether a message gets an automatic reply and with what text (RFC 3834, RFC 5230).

Pure functions without I/O.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from mail.addresses.address_syntax import checked, normal_domain
from mail.mime import Facts, Header
from models.errors import Invalid

SUBJECT = 512  # bytes of the original subject
_AUTOMATIC = re.compile(
    r"mailer-daemon|listserv|majordomo|mailman|sympa|nobody|owner-.*"
    r"|.*-(owner|request|bounces?|errors)|bounces?([._=-].*)?"
    r"|(.*[._-])?(no|do-?not|dont)[._-]?reply([._-].*)?|auto[._-]?(reply|respond(er)?)"
)
_BATV = re.compile(r"prvs=[0-9a-z]+=")  # changes daily
_RE = re.compile(r"^(re\s*:\s*)+", re.IGNORECASE)
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]+")
_WORD = re.compile(r"[\s;,(]")
PRECEDENCE = {"bulk", "junk", "list", "auto_reply"}
SUPPRESSING = {"all", "oof", "autoreply"}
ANSWERS = {"x-autoreply", "x-auto-reply", "x-autorespond", "x-autoresponse", "x-autoresponder"}
SPAM = {"x-spam", "x-spam-flag", "x-spam-status"}  # of other servers; the value begins with "yes"


class Silence(StrEnum):
    """The reason why a message gets no automatic reply."""

    OFF = "OFF"
    NOT_NOW = "NOT_NOW"
    EMPTY = "EMPTY"
    SUSPENDED = "SUSPENDED"
    NO_SENDER = "NO_SENDER"
    AUTOMATIC_SENDER = "AUTOMATIC_SENDER"
    AUTOMATIC_MAIL = "AUTOMATIC_MAIL"
    LIST_MAIL = "LIST_MAIL"
    SUPPRESSED = "SUPPRESSED"
    SPAM = "SPAM"
    OWN = "OWN"
    NOT_ADDRESSED = "NOT_ADDRESSED"
    OTHER_ADDRESS = "OTHER_ADDRESS"
    ANSWERED = "ANSWERED"
    LIMIT = "LIMIT"

    @property
    def outcome(self) -> str:
        """The label of the metric. It differs from `answered`, which counts replies."""
        return "answered_before" if self is Silence.ANSWERED else self.lower()


@dataclass(frozen=True, slots=True)
class Rule:
    """The automatic reply of an account or address, with its period."""

    enabled: bool = False
    name: str | None = None
    subject: str = ""  # "": made from the original subject
    text: str = ""
    html: str = ""
    internal_subject: str | None = None  # None: the same as for all senders
    internal_text: str | None = None
    internal_html: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    addresses: Sequence[int] = ()  # IDs; empty: all addresses

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the rule of a row with columns of the same names."""
        return cls(**{name: getattr(row, name) for name in cls.__slots__})

    def words(self, *, internal: bool) -> tuple[str, str, str]:
        """Return subject, text and HTML; the internal ones for internal senders, if set."""
        subject, text, html = self.subject, self.text, self.html
        if internal and self.internal_subject is not None:
            subject = self.internal_subject
        if internal and not (self.internal_text is None and self.internal_html is None):
            text, html = self.internal_text or "", self.internal_html or ""
        return subject, text, html

    def silent(self, now: datetime) -> Silence | None:
        """Return why the rule sends no replies at this time, None if it sends them."""
        if not self.enabled:
            return Silence.OFF
        begun = self.starts_at is None or self.starts_at <= now
        over = self.ends_at is not None and self.ends_at <= now
        return None if begun and not over else Silence.NOT_NOW


@dataclass(frozen=True, slots=True)
class Came:
    """A received message with the facts about its sender and recipient."""

    sender: str
    to: str  # envelope recipient as given
    subject: str = ""
    message_id: str | None = None  # in angle brackets, like the references
    references: Sequence[str] = ()  # the oldest first
    report: bool = False  # multipart/report (RFC 6522)
    header: Sequence[Header] = ()
    address_id: int | None = None  # of the address that receives the mail
    addressed: bool = True  # the account is in To or Cc
    own: bool = False  # the sender is the account
    internal: bool = False  # sender and account have the same domain
    spam: bool = False

    @classmethod
    def of(cls, facts: Facts, sender: str, to: str, header: Sequence[Header]) -> Self:
        """Return the trigger of a parsed message, without facts about sender and recipient."""
        before = [facts.in_reply_to] if facts.in_reply_to else []
        return cls(
            sender,
            to,
            facts.subject,
            facts.message_id,
            facts.references or before,
            facts.content_type == "multipart/report",
            header,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """The content of an automatic reply. If `text` is empty, it is made from the HTML."""

    subject: str
    text: str
    html: str
    in_reply_to: str | None = None
    references: Sequence[str] = ()


def answer(rule: Rule, came: Came, now: datetime) -> Reply | Silence:
    """Return the reply of a rule to a message, or the reason for none.

    Earlier replies to the sender are not considered.
    """
    silence = rule.silent(now) or quiet(came) or _unmeant(rule, came)
    return silence or written(rule, came)


def written(rule: Rule, came: Came) -> Reply | Silence:
    """Return the reply text of a rule, whether or not the rule is enabled."""
    subject, text, html = rule.words(internal=came.internal)
    if not (text.strip() or html.strip()):
        return Silence.EMPTY
    known = [came.message_id] if came.message_id else []
    references = [*came.references, *known]
    return Reply(_subject(subject, came.subject), text, html, came.message_id, references)


def quiet(came: Came) -> Silence | None:
    """Return why a message must never get an automatic reply, None if it can get one."""
    if sender_key(came.sender) is None:
        return Silence.NO_SENDER
    local = came.sender.rpartition("@")[0].partition("+")[0].lower()
    if _AUTOMATIC.fullmatch(local):
        return Silence.AUTOMATIC_SENDER
    said: dict[str, list[str]] = {}
    for field in came.header:
        said.setdefault(field.key.lower(), []).append(field.value.strip().lower())
    return _of_header(said, came)


def _of_header(said: dict[str, list[str]], came: Came) -> Silence | None:
    """Return the reason in the header fields, None if there is none."""

    def begins(name: str) -> set[str]:
        return {_first(value) for value in said.get(name, ())}

    wishes = set(_WORD.split(" ".join(said.get("x-auto-response-suppress", ()))))
    found = {
        Silence.AUTOMATIC_MAIL: begins("auto-submitted") - {"", "no"} or ANSWERS & said.keys(),
        Silence.LIST_MAIL: begins("precedence") & PRECEDENCE
        or any(key.startswith("list-") for key in said),  # RFC 2369, RFC 2919
        Silence.SUPPRESSED: SUPPRESSING & wishes,
        Silence.SPAM: came.spam or any("yes" in begins(name) for name in SPAM),
    }
    if came.report:
        return Silence.AUTOMATIC_MAIL
    return next((silence for silence, there in found.items() if there), None)


def _first(value: str) -> str:
    """Return the first word of a header value."""
    return _WORD.split(value, maxsplit=1)[0]


def _unmeant(rule: Rule, came: Came) -> Silence | None:
    """Return why the rule of this account does not reply to the message."""
    if came.own:
        return Silence.OWN
    if not came.addressed:
        return Silence.NOT_ADDRESSED
    meant = not rule.addresses or came.address_id in rule.addresses
    return None if meant else Silence.OTHER_ADDRESS


def sender_key(sender: str) -> str | None:
    """Return the sender without label and BATV tag; None if it is not an address."""
    try:
        local, _, domain = checked(sender).rpartition("@")
    except Invalid:
        return None
    local = _BATV.sub("", local.lower(), count=1).partition("+")[0]
    return f"{local}@{normal_domain(domain)}" if local else None


def _subject(own: str, original: str) -> str:
    """Return the subject of the rule, or one from the message (RFC 3834, section 3.1.5)."""
    if own:
        return own
    found = _RE.sub("", plain(original, SUBJECT), count=1)
    return f"Auto: Re: {found}".strip()


def plain(text: str, most: int) -> str:
    """Return the text in one line of at most this number of bytes."""
    return _ODD.sub(" ", text).encode()[:most].decode(errors="ignore").strip()
