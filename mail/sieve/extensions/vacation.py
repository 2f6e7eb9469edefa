"""The command `vacation` (RFC 5230, RFC 6131), and who gets no reply."""

import re
from collections.abc import Callable
from hashlib import sha256

from mail.addresses.address_syntax import Normal, normal
from mail.sieve.actions import Vacation
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Given, Kind, Option, Signature
from mail.sieve.extensions.core_commands import addresses_of, wrong_address
from mail.sieve.extensions.mailboxes import COPIED, check_mailboxes, copied

DAY = 86_400
USUAL, LONGEST = 7 * DAY, 90 * DAY  # seconds between two replies to one sender
_SUBJECT = 200  # characters of the original subject
_TO_ME = ("to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc")
_LIST = (
    *("list-id", "list-help", "list-subscribe", "list-unsubscribe"),
    *("list-post", "list-owner", "list-archive"),
)
_SAYING: tuple[
    tuple[str, Callable[[str], bool]], ...
] = (  # by field: is a reply allowed for this value?
    ("auto-submitted", lambda word: word == "no"),
    ("x-auto-response-suppress", lambda word: word == "none"),
    ("precedence", lambda word: word not in ("bulk", "junk", "list")),
    ("x-spam-flag", lambda word: not word.startswith("yes")),
)
_MACHINE = re.compile(
    r"(?:mailer-daemon|listserv|majordomo|postmaster|no-?reply|do-?not-?reply|bounces?)(?:[+-].*)?"
    r"|owner-.*|.*-(?:request|owner|bounces?)",
    re.IGNORECASE | re.DOTALL,
)


def _vacation(run: Run, call: Call) -> None:
    if run.has_answered:
        raise run.failed(call, "vacation answers a message only once")
    run.has_answered = True
    reason, subject = run.text(call, "reason"), run.text(call, "subject")
    from_ = run.text(call, "from") if call.has("from") else None
    own = [*run.circumstances.addresses, *run.texts(call, "addresses")]
    if from_ is not None and _wrong_sender(from_):
        raise run.failed(call, f'"{from_[:100]}" is no mail address')
    fcc = copied(run, call)
    against = unanswered(run, {normal(one) for one in (*own, run.envelope.recipient)})
    if against:
        run.note(call, f"no answer, because {against}")
        return
    is_mime = call.has("mime")
    words = [from_ or "", subject, str(is_mime), reason]
    handle = run.text(call, "handle") if call.has("handle") else ""
    run.note(call, reason)
    run.act(
        call,
        Vacation(
            to=run.envelope.sender,
            handle=handle or sha256("\0".join(words).encode("utf-8", "replace")).hexdigest(),
            seconds=_seconds(call),
            subject=" ".join((subject or _answered(run)).split()),
            reason=reason,
            mime=is_mime,
            from_=from_,
            fcc=fcc,
        ),
    )


def unanswered(run: Run, own: set[Normal]) -> str | None:
    """Return why a message gets no automatic reply, None if it gets one.

    RFC 5230, section 4.6, and RFC 3834.
    """
    sender = run.envelope.sender
    if not sender:
        return "it has no sender"
    reasons = {
        "it comes from this account": normal(sender) in own,
        "it comes from a machine": bool(_MACHINE.fullmatch(sender.rpartition("@")[0])),
        "it comes from a list": any(run.headers(name) for name in _LIST),
        "its header says so": any(_forbids(run, name, allowed) for name, allowed in _SAYING),
        "it is not addressed to this account": not _is_addressed(run, own),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _forbids(run: Run, name: str, allowed: Callable[[str], bool]) -> bool:
    """True if a field with this name forbids an automatic reply."""
    words = (one.value.partition(";")[0].strip().lower() for one in run.headers(name))
    return not all(map(allowed, words))


def _is_addressed(run: Run, own: set[Normal]) -> bool:
    """True if one of the addresses is in a recipient field of the message."""
    return any(
        normal(one.address) in own
        for name in _TO_ME
        for field in run.headers(name)
        for one in addresses_of(field.raw)
    )


def _seconds(call: Call) -> int:
    """Return the seconds until the sender gets another reply.

    Only RFC 6131 (:seconds) allows 0.
    """
    if call.has("seconds"):
        return min(call.number("seconds"), LONGEST)
    if call.has("days"):
        return min(max(call.number("days"), 1) * DAY, LONGEST)
    return USUAL


def _answered(run: Run) -> str:
    """Return the default subject of the reply."""
    found = run.headers("subject")
    return f"Auto: {found[0].value[:_SUBJECT]}" if found else "Automated reply"


def _wrong_sender(text: str) -> bool:
    """True if a text is not exactly one address, with or without a name."""
    listed = addresses_of(f"From: {text}")
    return len(listed) != 1 or wrong_address(listed[0].address) is not None


def _check(call: Call) -> str | None:
    from_ = call.string("from") if call.has("from") else None
    if isinstance(from_, str) and _wrong_sender(from_):
        return f'"{from_[:100]}" is no mail address'
    return check_mailboxes(call)


COMMANDS = (
    Signature(
        "vacation",
        _vacation,
        (Given("reason"),),
        (
            Option("days", Kind.NUMBER, group="period"),
            Option("seconds", Kind.NUMBER, group="period", extension="vacation-seconds"),
            Option("subject", Kind.STRING),
            Option("from", Kind.STRING),
            Option("addresses", Kind.STRINGS),
            Option("mime"),
            Option("handle", Kind.STRING),
            *COPIED,
        ),
        extension="vacation",
        check=_check,
    ),
)
