"""Whether a message is answered by itself, and by what: a pure matter (RFC 3834, RFC 5230)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from mail.addresses.address_syntax import checked, normal_domain
from mail.mime import Facts, Header
from models.errors import Invalid

SUBJECT = 512  # bytes of a subject that is taken over
_AUTOMATIC = re.compile(
    r"mailer-daemon|listserv|majordomo|mailman|sympa|nobody|owner-.*"
    r"|.*-(owner|request|bounces?|errors)|bounces?([._=-].*)?"
    r"|(.*[._-])?(no|do-?not|dont)[._-]?reply([._-].*)?|auto[._-]?(reply|respond(er)?)"
)
_BATV = re.compile(r"prvs=[0-9a-z]+=")  # a tag that changes from day to day
_RE = re.compile(r"^(re\s*:\s*)+", re.IGNORECASE)
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]+")
_WORD = re.compile(r"[\s;,(]")
PRECEDENCE = {"bulk", "junk", "list", "auto_reply"}
SUPPRESSING = {"all", "oof", "autoreply"}
ANSWERS = {"x-autoreply", "x-auto-reply", "x-autorespond", "x-autoresponse", "x-autoresponder"}
SPAM = {"x-spam", "x-spam-flag", "x-spam-status"}  # of filters before us; "yes" first


class Silence(StrEnum):
    """Why a message is not answered."""

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
        """What came of the message, as metrics have it, where `answered` is another thing."""
        return "answered_before" if self is Silence.ANSWERED else self.lower()


@dataclass(frozen=True, slots=True)
class Rule:
    """What an account has answered, to whom and when."""

    enabled: bool = False
    name: str | None = None
    subject: str = ""  # "": that of what is answered
    text: str = ""
    html: str = ""
    internal_subject: str | None = None  # None: as to all
    internal_text: str | None = None
    internal_html: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    addresses: Sequence[int] = ()  # their keys; none: any

    @classmethod
    def of(cls, row: Any) -> Self:
        """The rule of a row with columns of these names."""
        return cls(**{name: getattr(row, name) for name in cls.__slots__})

    def words(self, *, internal: bool) -> tuple[str, str, str]:
        """Subject, text and HTML. Neither half is taken from what others are told."""
        subject, text, html = self.subject, self.text, self.html
        if internal and self.internal_subject is not None:
            subject = self.internal_subject
        if internal and not (self.internal_text is None and self.internal_html is None):
            text, html = self.internal_text or "", self.internal_html or ""
        return subject, text, html

    def silent(self, now: datetime) -> Silence | None:
        """Why nobody is answered now, if nobody is."""
        if not self.enabled:
            return Silence.OFF
        begun = self.starts_at is None or self.starts_at <= now
        over = self.ends_at is not None and self.ends_at <= now
        return None if begun and not over else Silence.NOT_NOW


@dataclass(frozen=True, slots=True)
class Came:
    """A message that came, and what is known of sender and recipient."""

    sender: str  # of the envelope
    to: str  # likewise, as given
    subject: str = ""
    message_id: str | None = None  # in angle brackets, as those that follow
    references: Sequence[str] = ()  # the oldest first
    report: bool = False  # on the fate of another (RFC 6522)
    header: Sequence[Header] = ()
    address_id: int | None = None  # of the address that takes the mail for `to`
    addressed: bool = True  # the account stands in To or Cc
    own: bool = False  # the sender is the account itself
    internal: bool = False  # the sender's domain is the account's
    spam: bool = False

    @classmethod
    def of(cls, facts: Facts, sender: str, to: str, header: Sequence[Header]) -> Self:
        """A message as it was read, with nothing known of the two yet."""
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
    """What is answered; the text is made of the HTML where it is ""."""

    subject: str
    text: str
    html: str
    in_reply_to: str | None = None
    references: Sequence[str] = ()


def answer(rule: Rule, came: Came, now: datetime) -> Reply | Silence:
    """What a rule answers to a message, or why nothing; who was answered before is not asked."""
    silence = rule.silent(now) or quiet(came) or _unmeant(rule, came)
    return silence or written(rule, came)


def written(rule: Rule, came: Came) -> Reply | Silence:
    """What a rule says to a sender, whether or not it answers now."""
    subject, text, html = rule.words(internal=came.internal)
    if not (text.strip() or html.strip()):
        return Silence.EMPTY
    known = [came.message_id] if came.message_id else []
    references = [*came.references, *known]
    return Reply(_subject(subject, came.subject), text, html, came.message_id, references)


def quiet(came: Came) -> Silence | None:
    """Why such a message is never answered, by whomsoever; None where it may be."""
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
    return _WORD.split(value, maxsplit=1)[0]


def _unmeant(rule: Rule, came: Came) -> Silence | None:
    """Why this account does not answer it, whatever it says."""
    if came.own:
        return Silence.OWN
    if not came.addressed:
        return Silence.NOT_ADDRESSED
    meant = not rule.addresses or came.address_id in rule.addresses
    return None if meant else Silence.OTHER_ADDRESS


def sender_key(sender: str) -> str | None:
    """A sender as remembered: without label and what changes daily; None where it is none."""
    try:
        local, _, domain = checked(sender).rpartition("@")
    except Invalid:
        return None
    local = _BATV.sub("", local.lower(), count=1).partition("+")[0]
    return f"{local}@{normal_domain(domain)}" if local else None


def _subject(own: str, original: str) -> str:
    """The own subject, or what the other one is made (RFC 3834, section 3.1.5)."""
    if own:
        return own
    found = _RE.sub("", plain(original, SUBJECT), count=1)
    return f"Auto: Re: {found}".strip()


def plain(text: str, most: int) -> str:
    """What can be written of a text in one line, of at most so many bytes."""
    return _ODD.sub(" ", text).encode()[:most].decode(errors="ignore").strip()
