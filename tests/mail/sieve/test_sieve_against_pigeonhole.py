"""Random scripts do here what they do in Dovecot's Pigeonhole."""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mail.sieve import (
    Discard,
    FileInto,
    Keep,
    MailNotification,
    Redirect,
    Reject,
    SieveError,
    SievePlan,
    SieveRunError,
    VacationReply,
    print_script,
)
from tests.support.mail.random_sieve_scripts import Writer
from tests.support.mail.sieve_runs import ENVELOPE, run
from tests.support.run_scope import CI

LETTER = b"""\
From: Ada Lovelace <ada@example.org>
To: "Bob B." <bob@example.com>, eve+list@example.net
Cc: carol@example.com
Subject: Hello World
Date: Tue, 03 Mar 2026 22:30:00 -0300
X-Number: 7
X-Many: one
X-Many: two
X-Many: three
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Hello=20world, 7 one.
--b
Content-Type: application/x-thing
Content-Transfer-Encoding: base64

c2VjcmV0IHRoaW5n
--b--
"""
EXTENSIONS = (
    "body", "comparator-i;ascii-numeric", "copy", "date", "editheader", "encoded-character",
    "enotify", "envelope", "extracttext", "fileinto", "foreverypart", "imap4flags",
    "index", "mailbox", "mime", "regex", "reject",
    "relational", "subaddress", "vacation", "variables",
)  # fmt: skip
# What hangs on the clock, or on mailboxes.
WITHOUT = ("currentdate", "mailboxexists", "notify_method_capability")
LEFT_OUT = ("quoteregex",)
# Pigeonhole 0.5.19 falls over it. (It also finds "?x*" in every text: no key begins so.)
CRASHES = re.compile("deleteheader[^;]*:count")
CONFIG = """\
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = 1
mail_home = {folder}
mail_location = maildir:{folder}/mail
log_path = /dev/stderr
plugin {{
  sieve_vacation_max_period = 90d
}}
"""
NOBODY = 65534
CASES = 250 if CI else 80

Act = tuple[str, ...]


def program() -> str:
    found = shutil.which("sieve-test")
    if found is None and not CI:
        pytest.skip("there is no sieve-test here")
    assert found, "sieve-test is to be installed in CI: .ci/run"
    return found


class Pigeonhole:
    """Runs scripts on a message with sieve-test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, program()
        folder.chmod(0o755)
        # It never runs as root; what it reads lies where everybody may look.
        uid, gid = (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)
        self._lay("dovecot.conf", CONFIG.format(folder=folder, uid=uid, gid=gid).encode())
        self._lay("letter.eml", LETTER)

    def _lay(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o644)  # whatever umask a command has left to this process

    def run(self, script: str) -> list[Act] | str:
        """What a script does, or the error that ends it."""
        self._lay("x.sieve", script.encode())
        done = subprocess.run(
            [self.program, "-c", "dovecot.conf", "-C", "-f", ENVELOPE.sender,
             "-a", ENVELOPE.recipient, "-r", "bob@example.com", "-x", "+editheader",
             "x.sieve", "letter.eml"],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "TZ": "UTC"},
        )  # fmt: skip
        if "failed to compile" in done.stderr:
            return "does not compile: " + done.stderr
        if "final result: success" not in done.stderr:
            return "fails: " + done.stderr
        return acts(done.stdout)


def acts(output: str) -> list[Act]:
    """The actions that sieve-test prints, with the implicit keep."""
    output, _, kept = output.partition("Implicit keep:")
    if not any(line.endswith(" folder: INBOX") for line in output.splitlines()):
        output += kept  # it is no second message there
    found: list[Act] = []
    for line in output.splitlines():
        if stored := re.match(r" \* store message in folder: (.*)", line):
            found.append(("store", stored[1]))
        elif flags := re.match(r" +\+ add IMAP flags: (.*)", line):
            found[-1] = (*found[-1], *sorted(set(flags[1].lower().split())))
        elif sent := re.match(r" \* redirect message to: <(.*)>", line):
            found.append(("send", sent[1]))
        elif refused := re.match(r" \* reject message with reason: (.*)", line):
            found.append(("reject", refused[1]))
        elif seconds := re.match(r" +=> seconds : (\d+)", line):
            found.append(("answer", seconds[1]))
        elif notified := re.match(r" +\+ To: (.*)", line):
            found.append(("notify", notified[1]))
        elif line == " * discard":
            found.append(("discard",))
    return found


def ours(script: str) -> list[Act] | str:
    try:
        return told(run(script, LETTER, addresses={"bob@example.com"}, mailboxes={"INBOX"}))
    except SieveError as error:
        return f"does not compile: {error}"
    except SieveRunError as error:
        return f"fails: {error}"


def told(plan: SievePlan) -> list[Act]:
    found: list[Act] = []
    for action in plan.actions:
        match action:
            case Keep():
                found.append(("store", "INBOX", *sorted(map(str.lower, action.flags))))
            case FileInto():
                found.append(("store", action.mailbox, *sorted(map(str.lower, action.flags))))
            case Redirect():
                found.append(("send", action.address))
            case Reject():
                found.append(("reject", action.reason))
            case VacationReply():
                found.append(("answer", str(action.interval_seconds)))
            case MailNotification():
                found.append(("notify", *action.recipients))
            case Discard():
                found.append(("discard",))
    return found


def kind(outcome: list[Act] | str) -> str:
    """Whether a script did not compile, failed, only kept the message, or did something."""
    if isinstance(outcome, str):
        return outcome.partition(":")[0]
    return "keeps" if outcome == [("store", "INBOX")] else "acts"


@pytest.fixture
def pigeonhole() -> Iterator[Pigeonhole]:
    with tempfile.TemporaryDirectory() as folder:
        yield Pigeonhole(Path(folder))


def test_random_scripts_do_the_same(pigeonhole: Pigeonhole) -> None:
    seen: Counter[str] = Counter()
    for seed in range(CASES):
        writer = Writer(seed, without=WITHOUT, leave_out=LEFT_OUT, extensions=EXTENSIONS)
        script = print_script(writer.script())
        if CRASHES.search(script):
            continue
        theirs, mine = pigeonhole.run(script), ours(script)
        if "corrupt binary" in theirs:  # a break in a loop in a loop
            continue
        assert kind(mine) == kind(theirs), f"{seed}\n{script}\n{mine}\n{theirs}"
        if not isinstance(mine, str):
            assert mine == theirs, script
        seen[kind(mine)] += 1
    assert seen["acts"] > seen.total() / 2, seen
