"""Compile and run Sieve scripts, and describe their actions as short strings."""

from datetime import datetime, timedelta, timezone
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
SAMPLE_ENVELOPE = SieveEnvelope("ada@example.org", "bob+news@example.com")
SAMPLE_MESSAGE = b"""\
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


def run_script(
    script: str,
    raw: bytes = SAMPLE_MESSAGE,
    /,
    envelope: SieveEnvelope = SAMPLE_ENVELOPE,
    now: datetime = NOW,
    **environment: Any,
) -> SievePlan:
    """Run a script on a message and return its plan."""
    message = ParsedSieveMessage(raw, parse_structure(raw))
    return sieve.run_script(
        sieve.compile_script(script), message, envelope, SieveEnvironment(now, **environment)
    )


def script_actions(script: str, raw: bytes = SAMPLE_MESSAGE, /, **options: Any) -> list[str]:
    """Run a script and return its actions as strings."""
    return action_texts(run_script(script, raw, **options))


def action_texts(plan: SievePlan) -> list[str]:
    return [_action_summary(action) for action in plan.actions]


def _action_summary(action: sieve.Action) -> str:
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


def script_problems(script: str | bytes) -> list[str]:
    """The errors of a script with line, column and message; [] if the script compiles."""
    try:
        sieve.compile_script(script)
    except sieve.SieveError as error:
        return [f"{problem.line}:{problem.column} {problem.message}" for problem in error.problems]
    return []


def is_test_true(test: str, *extensions: str, setup: str = "", **options: Any) -> bool:
    """True if a test is true for SAMPLE_MESSAGE."""
    extension_list = ", ".join(f'"{name}"' for name in ("fileinto", *extensions))
    script = f'require [{extension_list}]; {setup} if {test} {{ fileinto "yes"; }}'
    return script_actions(script, **options) == ["into yes"]
