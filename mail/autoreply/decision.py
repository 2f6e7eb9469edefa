"""Decide whether a message gets an automatic reply and with what text (RFC 3834, RFC 5230).

Pure functions without I/O.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from mail.addresses.address_syntax import normalize_and_validate_address, normalized_domain
from mail.addresses.quoted_local_part import join_address, split_address
from mail.mime import DecodedField, MessageFacts, leading_keyword
from models.errors import InvalidInput

MAX_SUBJECT = 512  # bytes of the original subject
_AUTOMATIC_LOCAL_PART = re.compile(
    r"mailer-daemon|listserv|majordomo|mailman|sympa|nobody|owner-.*"
    r"|.*-(owner|request|bounces?|errors)|bounces?([._=-].*)?"
    r"|(.*[._-])?(no|do-?not|dont)[._-]?reply([._-].*)?|auto[._-]?(reply|respond(er)?)"
)
_BATV_TAG = re.compile(r"prvs=[0-9a-z]+=")  # changes daily
_REPLY_PREFIX = re.compile(r"^(re\s*:\s*)+", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]+")
_WORD_END = re.compile(r"[\s;,(]")
BULK_PRECEDENCES = {"bulk", "junk", "list", "auto_reply"}
SUPPRESSING_VALUES = {"all", "oof", "autoreply"}
AUTOREPLY_FIELDS = {
    "x-autoreply",
    "x-auto-reply",
    "x-autorespond",
    "x-autoresponse",
    "x-autoresponder",
}
SPAM_FIELDS = {
    "x-spam",
    "x-spam-flag",
    "x-spam-status",
}  # of other servers; the value begins with "yes"


class NoReplyReason(StrEnum):
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
    def metric_label(self) -> str:
        """The label of the metric. It differs from `answered`, which counts replies."""
        return "answered_before" if self is NoReplyReason.ANSWERED else self.lower()


@dataclass(frozen=True, slots=True)
class AutoreplyTexts:
    """The texts that a rule has for a sender."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class AutoreplyRule:
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
    def from_row(cls, row: Any) -> Self:
        """Return the rule of a row with columns of the same names."""
        return cls(**{name: getattr(row, name) for name in cls.__slots__})

    def texts_for(self, *, is_internal: bool) -> AutoreplyTexts:
        """Return subject, text and HTML; the internal ones for internal senders, if set."""
        subject, text, html = self.subject, self.text, self.html
        if is_internal and self.internal_subject is not None:
            subject = self.internal_subject
        if is_internal and not (self.internal_text is None and self.internal_html is None):
            text, html = self.internal_text or "", self.internal_html or ""
        return AutoreplyTexts(subject, text, html)

    def inactive_reason(self, now: datetime) -> NoReplyReason | None:
        """Return why the rule sends no replies at this time, None if it sends them."""
        if not self.enabled:
            return NoReplyReason.OFF
        begun = self.starts_at is None or self.starts_at <= now
        over = self.ends_at is not None and self.ends_at <= now
        return None if begun and not over else NoReplyReason.NOT_NOW


@dataclass(frozen=True, slots=True)
class AutoreplyTrigger:
    """A received message with the facts about its sender and recipient."""

    envelope_sender: str
    recipient_address: str  # envelope recipient as given
    subject: str = ""
    message_id: str | None = None  # in angle brackets, like the references
    references: Sequence[str] = ()  # the oldest first
    is_report: bool = False  # multipart/report (RFC 6522)
    header_fields: Sequence[DecodedField] = ()
    address_id: int | None = None  # of the address that receives the mail
    is_addressed: bool = True  # the account is in To or Cc
    is_from_self: bool = False  # the sender is the account
    is_internal: bool = False  # sender and account have the same domain
    is_spam: bool = False

    @classmethod
    def from_message(
        cls,
        facts: MessageFacts,
        envelope_sender: str,
        recipient_address: str,
        header_fields: Sequence[DecodedField],
    ) -> Self:
        """Return the trigger of a parsed message, without facts about sender and recipient."""
        before = [facts.in_reply_to] if facts.in_reply_to else []
        return cls(
            envelope_sender,
            recipient_address,
            facts.subject,
            facts.message_id,
            facts.references or before,
            facts.content_type == "multipart/report",
            header_fields,
        )


@dataclass(frozen=True, slots=True)
class AutoreplyContent:
    """The content of an automatic reply. If `text` is empty, it is made from the HTML."""

    subject: str
    text: str
    html: str
    in_reply_to: str | None = None
    references: Sequence[str] = ()


def autoreply_or_reason_for_none(
    rule: AutoreplyRule, trigger: AutoreplyTrigger, now: datetime
) -> AutoreplyContent | NoReplyReason:
    """Return the reply of a rule to a message, or the reason for none.

    Earlier replies to the sender are not considered.
    """
    no_reply_reason = (
        rule.inactive_reason(now)
        or reason_never_to_reply(trigger)
        or _reason_of_sender_or_recipient(rule, trigger)
    )
    return no_reply_reason or reply_content_unless_empty(rule, trigger)


def reply_content_unless_empty(
    rule: AutoreplyRule, trigger: AutoreplyTrigger
) -> AutoreplyContent | NoReplyReason:
    """Return the reply text of a rule, whether or not the rule is enabled."""
    texts = rule.texts_for(is_internal=trigger.is_internal)
    if not (texts.text.strip() or texts.html.strip()):
        return NoReplyReason.EMPTY
    known_ids = [trigger.message_id] if trigger.message_id else []
    references = [*trigger.references, *known_ids]
    return AutoreplyContent(
        _reply_subject(texts.subject, trigger.subject),
        texts.text,
        texts.html,
        trigger.message_id,
        references,
    )


def reason_never_to_reply(trigger: AutoreplyTrigger) -> NoReplyReason | None:
    """Return why a message must never get an automatic reply, None if it can get one."""
    if sender_without_label_and_batv_tag(trigger.envelope_sender) is None:
        return NoReplyReason.NO_SENDER
    local = split_address(trigger.envelope_sender).local_text.partition("+")[0].lower()
    if _AUTOMATIC_LOCAL_PART.fullmatch(local):
        return NoReplyReason.AUTOMATIC_SENDER
    values_by_name: dict[str, list[str]] = {}
    for field in trigger.header_fields:
        values_by_name.setdefault(field.name.lower(), []).append(field.value.strip().lower())
    return _reason_in_header_or_spam(values_by_name, trigger)


def _reason_in_header_or_spam(
    values_by_name: dict[str, list[str]], trigger: AutoreplyTrigger
) -> NoReplyReason | None:
    """Return the reason in the header fields, None if there is none."""

    def first_words(name: str) -> set[str]:
        return set(map(leading_keyword, values_by_name.get(name, ())))

    suppressed_kinds = set(
        _WORD_END.split(" ".join(values_by_name.get("x-auto-response-suppress", ())))
    )
    findings = {
        NoReplyReason.AUTOMATIC_MAIL: first_words("auto-submitted") - {"", "no"}
        or AUTOREPLY_FIELDS & values_by_name.keys(),
        NoReplyReason.LIST_MAIL: first_words("precedence") & BULK_PRECEDENCES
        or any(key.startswith("list-") for key in values_by_name),  # RFC 2369, RFC 2919
        NoReplyReason.SUPPRESSED: SUPPRESSING_VALUES & suppressed_kinds,
        NoReplyReason.SPAM: trigger.is_spam
        or any("yes" in first_words(name) for name in SPAM_FIELDS),
    }
    if trigger.is_report:
        return NoReplyReason.AUTOMATIC_MAIL
    return next(
        (
            no_reply_reason
            for no_reply_reason, matching_values in findings.items()
            if matching_values
        ),
        None,
    )


def _reason_of_sender_or_recipient(
    rule: AutoreplyRule, trigger: AutoreplyTrigger
) -> NoReplyReason | None:
    """Return why the rule of this account does not reply to the message."""
    if trigger.is_from_self:
        return NoReplyReason.OWN
    if not trigger.is_addressed:
        return NoReplyReason.NOT_ADDRESSED
    is_for_rule = not rule.addresses or trigger.address_id in rule.addresses
    return None if is_for_rule else NoReplyReason.OTHER_ADDRESS


def sender_without_label_and_batv_tag(sender: str) -> str | None:
    """Return the sender without label and BATV tag; None if it is not an address."""
    try:
        local, domain = split_address(normalize_and_validate_address(sender, allows_quotes=True))
    except InvalidInput:
        return None
    local = _BATV_TAG.sub("", local.lower(), count=1).partition("+")[0]
    return join_address(local, normalized_domain(domain)) if local else None


def _reply_subject(rule_subject: str, original_subject: str) -> str:
    """Return the subject of the rule, or one from the message (RFC 3834, section 3.1.5)."""
    if rule_subject:
        return rule_subject
    subject = _REPLY_PREFIX.sub("", single_line(original_subject, MAX_SUBJECT), count=1)
    return f"Auto: Re: {subject}".strip()


def single_line(text: str, max_bytes: int) -> str:
    """Return the text in one line of at most this number of bytes."""
    return _CONTROL.sub(" ", text).encode()[:max_bytes].decode(errors="ignore").strip()
