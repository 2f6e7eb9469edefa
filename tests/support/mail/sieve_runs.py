"""Scripts and messages for tests of Sieve, and plans in few words."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from mail import sieve
from mail.mime import parse_structure
from mail.sieve import (
    Discard,
    FileInto,
    Keep,
    MailNotification,
    ParsedSieveMessage,
    Redirect,
    Reject,
    SieveEnvelope,
    SieveEnvironment,
    SievePlan,
    VacationReply,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2)))
ENVELOPE = SieveEnvelope("ada@example.org", "bob+news@example.com")
LETTER = b"""\
Received: from a by b; Wed, 04 Mar 2026 01:00:00 +0000
Received: from c by d; Tue, 03 Mar 2026 23:30:00 -0300
From: Ada Lovelace <Ada@Example.ORG>
To: "Bob B." <bob@example.com>, eve+list@example.net
Cc: carol@example.com
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe_aus?= London
Date: Tue, 03 Mar 2026 22:30:00 -0300
X-Number: 7
X-Many: one
X-Many: two
X-Many: three
X-Folded: begins
  and ends
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

before
--b
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

The caf=E9 opens.
--b
Content-Type: text/html

<p>A <b>bold</b> word</p>
--b
Content-Type: application/x-thing
Content-Transfer-Encoding: base64

c2VjcmV0IHRoaW5n
--b
Content-Type: message/rfc822

Subject: the inner one
Content-Type: text/plain

inner text
--b--
behind
"""


def run(
    script: str,
    raw: bytes = LETTER,
    /,
    envelope: SieveEnvelope = ENVELOPE,
    now: datetime = NOW,
    **known: Any,
) -> SievePlan:
    """The plan of a script for a message."""
    letter = ParsedSieveMessage(raw, parse_structure(raw))
    return sieve.run_script(
        sieve.compile_script(script), letter, envelope, SieveEnvironment(now, **known)
    )


def acts(script: str, raw: bytes = LETTER, /, **known: Any) -> list[str]:
    """What a script does, each action in a few words."""
    return told(run(script, raw, **known))


def told(plan: SievePlan) -> list[str]:
    return [_told(one) for one in plan.actions]


def _told(action: sieve.Action) -> str:
    match action:
        case Keep():
            words = ["keep", *action.flags]
        case FileInto():
            extras = [":create"] * action.create_mailbox + [":copy"] * action.keeps_implicit_keep
            extras += [action.special_use] if action.special_use else []
            words = ["into", action.mailbox, *extras, *action.flags]
        case Redirect():
            words = ["to", action.address, *[":copy"] * action.keeps_implicit_keep]
        case Discard():
            words = ["discard"]
        case Reject():
            words = ["ereject" if action.is_ereject else "reject", action.reason]
        case VacationReply():
            words = [
                "answer",
                action.recipient,
                str(action.interval_seconds),
                action.subject,
                action.reason,
            ]
        case MailNotification():
            words = ["notify", *action.recipients, action.message]
    return " ".join(words)


def problems(script: str | bytes) -> list[str]:
    """What is wrong with a script: line, column and message of each; [] where it compiles."""
    try:
        sieve.compile_script(script)
    except sieve.SieveError as error:
        return [f"{one.line}:{one.column} {one.message}" for one in error.problems]
    return []


def is_true(test: str, *extensions: str, before: str = "", **known: Any) -> bool:
    """Whether a test holds for LETTER."""
    needed = ", ".join(f'"{name}"' for name in ("fileinto", *extensions))
    script = f'require [{needed}]; {before} if {test} {{ fileinto "yes"; }}'
    return acts(script, **known) == ["into yes"]


__all__ = ["ENVELOPE", "LETTER", "NOW", "UTC", "acts", "is_true", "problems", "run", "told"]
