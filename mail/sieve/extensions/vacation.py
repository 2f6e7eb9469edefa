"""The command `vacation` (RFC 5230, RFC 6131), and who gets no reply."""

import re
from collections.abc import Callable
from hashlib import sha256

from mail.addresses.address_syntax import NormalizedAddress, normalized_address
from mail.mime import leading_keyword
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
from mail.sieve.extensions.mailboxes import FCC_OPTIONS, fcc_copy_or_none, mailbox_arguments_problem

DAY_SECONDS = 86_400
DEFAULT_INTERVAL = 7 * DAY_SECONDS  # seconds between two replies to one sender
MAX_INTERVAL = 90 * DAY_SECONDS
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
        raise run.error_at(call, "A script can use vacation only once for a message.")
    run.has_run_vacation = True
    reason = run.expanded_argument_or_empty(call, "reason")
    subject = run.expanded_argument_or_empty(call, "subject")
    from_ = run.expanded_argument_or_empty(call, "from") if call.has_argument("from") else None
    own_addresses = [*run.environment.addresses, *run.strings_argument(call, "addresses")]
    if from_ is not None and _is_invalid_sender(from_):
        raise run.error_at(call, f'"{from_[:100]}" is not an email address.')
    fcc = fcc_copy_or_none(run, call)
    no_reply = no_reply_reason(
        run, {normalized_address(address) for address in (*own_addresses, run.envelope.recipient)}
    )
    if no_reply:
        run.add_trace_step(call, f"no reply, because {no_reply}")
        return
    is_mime = call.has_argument("mime")
    words = [from_ or "", subject, str(is_mime), reason]
    handle = run.expanded_argument_or_empty(call, "handle") if call.has_argument("handle") else ""
    run.add_trace_step(call, reason)
    run.add_or_merge_action(
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
        return "the message has no sender"
    reasons = {
        "the sender is this account": normalized_address(sender) in own_addresses,
        "the sender is a program": bool(_AUTOMATIC_SENDER.fullmatch(sender.rpartition("@")[0])),
        "the message is from a mailing list": any(run.fields_named(name) for name in _LIST_FIELDS),
        "the message asks for no reply": any(
            _forbids_reply(run, name, allowed) for name, allowed in _AUTOMATIC_FIELDS
        ),
        "the message is not addressed to this account": not _is_addressed_to(run, own_addresses),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _forbids_reply(run: ScriptRun, name: str, is_allowed: Callable[[str], bool]) -> bool:
    """True if a field with this name forbids an automatic reply."""
    keywords = (leading_keyword(field.value) for field in run.fields_named(name))
    return not all(map(is_allowed, keywords))


def _is_addressed_to(run: ScriptRun, own_addresses: set[NormalizedAddress]) -> bool:
    """True if one of the addresses is in a recipient field of the message."""
    return any(
        normalized_address(address.address) in own_addresses
        for name in _RECIPIENT_FIELDS
        for field in run.fields_named(name)
        for address in parse_field_addresses(field.raw)
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
    subject_fields = run.fields_named("subject")
    return (
        f"Auto: {subject_fields[0].value[:_MAX_SUBJECT_LENGTH]}"
        if subject_fields
        else "Automated reply"
    )


def _is_invalid_sender(from_value: str) -> bool:
    """True if a text is not exactly one address, with or without a name."""
    listed = parse_field_addresses(f"From: {from_value}")
    return len(listed) != 1 or recipient_problem(listed[0].address) is not None


def _vacation_problem(call: SieveCall) -> str | None:
    from_ = call.string_argument("from") if call.has_argument("from") else None
    if isinstance(from_, str) and _is_invalid_sender(from_):
        return f'"{from_[:100]}" is not an email address.'
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
