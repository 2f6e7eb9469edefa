"""The command `vacation` (RFC 5230, RFC 6131), and who gets no reply."""

import re
from collections.abc import Callable
from hashlib import sha256

from mail.addresses.address_syntax import NormalizedAddress, normalized_address
from mail.sieve.actions import VacationReply
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.extensions.core_commands import parse_field_addresses, recipient_problem
from mail.sieve.extensions.mailboxes import FCC_OPTIONS, fcc_copy, mailbox_arguments_problem

DAY_SECONDS = 86_400
DEFAULT_INTERVAL, MAX_INTERVAL = (
    7 * DAY_SECONDS,
    90 * DAY_SECONDS,
)  # seconds between two replies to one sender
_MAX_SUBJECT_LENGTH = 200  # characters of the original subject
_RECIPIENT_FIELDS = ("to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc")
_LIST_FIELDS = (
    *("list-id", "list-help", "list-subscribe", "list-unsubscribe"),
    *("list-post", "list-owner", "list-archive"),
)
_AUTOMATIC_FIELDS: tuple[
    tuple[str, Callable[[str], bool]], ...
] = (  # by field: is a reply allowed for this value?
    ("auto-submitted", lambda word: word == "no"),
    ("x-auto-response-suppress", lambda word: word == "none"),
    ("precedence", lambda word: word not in ("bulk", "junk", "list")),
    ("x-spam-flag", lambda word: not word.startswith("yes")),
)
_AUTOMATIC_SENDER = re.compile(
    r"(?:mailer-daemon|listserv|majordomo|postmaster|no-?reply|do-?not-?reply|bounces?)(?:[+-].*)?"
    r"|owner-.*|.*-(?:request|owner|bounces?)",
    re.IGNORECASE | re.DOTALL,
)


def _execute_vacation(run: ScriptRun, call: SieveCall) -> None:
    if run.has_run_vacation:
        raise run.error_at(call, "vacation answers a message only once")
    run.has_run_vacation = True
    reason, subject = run.string_argument(call, "reason"), run.string_argument(call, "subject")
    from_ = run.string_argument(call, "from") if call.has_argument("from") else None
    own_addresses = [*run.environment.addresses, *run.strings_argument(call, "addresses")]
    if from_ is not None and _is_invalid_sender(from_):
        raise run.error_at(call, f'"{from_[:100]}" is no mail address')
    fcc = fcc_copy(run, call)
    no_reply = no_reply_reason(
        run, {normalized_address(one) for one in (*own_addresses, run.envelope.recipient)}
    )
    if no_reply:
        run.add_trace_step(call, f"no answer, because {no_reply}")
        return
    is_mime = call.has_argument("mime")
    words = [from_ or "", subject, str(is_mime), reason]
    handle = run.string_argument(call, "handle") if call.has_argument("handle") else ""
    run.add_trace_step(call, reason)
    run.add_action(
        call,
        VacationReply(
            recipient=run.envelope.sender,
            handle=handle or sha256("\0".join(words).encode("utf-8", "replace")).hexdigest(),
            interval_seconds=_reply_interval(call),
            subject=" ".join((subject or _default_subject(run)).split()),
            reason=reason,
            is_mime=is_mime,
            from_=from_,
            fcc=fcc,
        ),
    )


def no_reply_reason(run: ScriptRun, own_addresses: set[NormalizedAddress]) -> str | None:
    """Return why a message gets no automatic reply, None if it gets one.

    RFC 5230, section 4.6, and RFC 3834.
    """
    sender = run.envelope.sender
    if not sender:
        return "it has no sender"
    reasons = {
        "it comes from this account": normalized_address(sender) in own_addresses,
        "it comes from a machine": bool(_AUTOMATIC_SENDER.fullmatch(sender.rpartition("@")[0])),
        "it comes from a list": any(run.fields_named(name) for name in _LIST_FIELDS),
        "its header says so": any(
            _forbids_reply(run, name, allowed) for name, allowed in _AUTOMATIC_FIELDS
        ),
        "it is not addressed to this account": not _is_addressed_to(run, own_addresses),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _forbids_reply(run: ScriptRun, name: str, is_allowed: Callable[[str], bool]) -> bool:
    """True if a field with this name forbids an automatic reply."""
    words = (one.value.partition(";")[0].strip().lower() for one in run.fields_named(name))
    return not all(map(is_allowed, words))


def _is_addressed_to(run: ScriptRun, own_addresses: set[NormalizedAddress]) -> bool:
    """True if one of the addresses is in a recipient field of the message."""
    return any(
        normalized_address(one.address) in own_addresses
        for name in _RECIPIENT_FIELDS
        for field in run.fields_named(name)
        for one in parse_field_addresses(field.raw)
    )


def _reply_interval(call: SieveCall) -> int:
    """Return the seconds until the sender gets another reply.

    Only RFC 6131 (:seconds) allows 0.
    """
    if call.has_argument("seconds"):
        return min(call.number_argument("seconds"), MAX_INTERVAL)
    if call.has_argument("days"):
        return min(max(call.number_argument("days"), 1) * DAY_SECONDS, MAX_INTERVAL)
    return DEFAULT_INTERVAL


def _default_subject(run: ScriptRun) -> str:
    """Return the default subject of the reply."""
    found = run.fields_named("subject")
    return f"Auto: {found[0].value[:_MAX_SUBJECT_LENGTH]}" if found else "Automated reply"


def _is_invalid_sender(from_value: str) -> bool:
    """True if a text is not exactly one address, with or without a name."""
    listed = parse_field_addresses(f"From: {from_value}")
    return len(listed) != 1 or recipient_problem(listed[0].address) is not None


def _vacation_problem(call: SieveCall) -> str | None:
    from_ = call.string_argument("from") if call.has_argument("from") else None
    if isinstance(from_, str) and _is_invalid_sender(from_):
        return f'"{from_[:100]}" is no mail address'
    return mailbox_arguments_problem(call)


COMMANDS = (
    CallSignature(
        "vacation",
        _execute_vacation,
        (PositionalArgument("reason"),),
        (
            TagOption("days", ArgumentType.NUMBER, group="period"),
            TagOption("seconds", ArgumentType.NUMBER, group="period", extension="vacation-seconds"),
            TagOption("subject", ArgumentType.STRING),
            TagOption("from", ArgumentType.STRING),
            TagOption("addresses", ArgumentType.STRINGS),
            TagOption("mime"),
            TagOption("handle", ArgumentType.STRING),
            *FCC_OPTIONS,
        ),
        extension="vacation",
        find_problem=_vacation_problem,
    ),
)
