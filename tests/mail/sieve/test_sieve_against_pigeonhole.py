"""Random Sieve scripts have the same actions as in Dovecot's Pigeonhole."""

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
from tests.support.mail.random_sieve_scripts import RandomSieveWriter
from tests.support.mail.sieve_runs import SAMPLE_ENVELOPE, run_script
from tests.support.run_scope import CI
from tests.support.time_limits import HANG_SECONDS

MESSAGE = b"""\
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
# Tests that depend on the clock or on mailboxes.
EXCLUDED_TESTS = ("currentdate", "mailboxexists", "notify_method_capability")
EXCLUDED_TAGS = ("quoteregex",)
# Pigeonhole 0.5.19 crashes on it. It also matches "?x*" with every text, so that no key begins so.
CRASHING_SCRIPT = re.compile("deleteheader[^;]*:count")
DOVECOT_CONFIG = """\
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
NOBODY_UID = 65534
CASE_COUNT = 250 if CI else 80

ActionSummary = tuple[str, ...]


def sieve_test_path() -> str:
    path = shutil.which("sieve-test")
    if path is None and not CI:
        pytest.skip("there is no sieve-test here")
    assert path, "sieve-test is to be installed in CI: .ci/run"
    return path


class Pigeonhole:
    """A runner of scripts with sieve-test on one message."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, sieve_test_path()
        folder.chmod(0o755)
        # sieve-test never runs as root, so that its files must be readable for all.
        uid, gid = (os.getuid(), os.getgid()) if os.getuid() else (NOBODY_UID, NOBODY_UID)
        self._write_file(
            "dovecot.conf", DOVECOT_CONFIG.format(folder=folder, uid=uid, gid=gid).encode()
        )
        self._write_file("letter.eml", MESSAGE)

    def _write_file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o644)  # independent of the umask of this process

    def run(self, script: str) -> list[ActionSummary] | str:
        """Run a script and return its actions, or the error that ends it."""
        self._write_file("x.sieve", script.encode())
        result = subprocess.run(
            [self.program, "-c", "dovecot.conf", "-C", "-f", SAMPLE_ENVELOPE.sender,
             "-a", SAMPLE_ENVELOPE.recipient, "-r", "bob@example.com", "-x", "+editheader",
             "x.sieve", "letter.eml"],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
            env={**os.environ, "TZ": "UTC"},
        )  # fmt: skip
        if "failed to compile" in result.stderr:
            return "does not compile: " + result.stderr
        if "final result: success" not in result.stderr:
            return "fails: " + result.stderr
        return parse_actions(result.stdout)


def parse_actions(output: str) -> list[ActionSummary]:
    """Parse the actions that sieve-test prints, with the implicit keep."""
    output, _, implicit_keep = output.partition("Implicit keep:")
    if not any(line.endswith(" folder: INBOX") for line in output.splitlines()):
        output += implicit_keep  # the implicit keep stores no second message in INBOX
    actions: list[ActionSummary] = []
    for line in output.splitlines():
        if store_match := re.match(r" \* store message in folder: (.*)", line):
            actions.append(("store", store_match[1]))
        elif flags_match := re.match(r" +\+ add IMAP flags: (.*)", line):
            actions[-1] = (*actions[-1], *sorted(set(flags_match[1].lower().split())))
        elif redirect_match := re.match(r" \* redirect message to: <(.*)>", line):
            actions.append(("send", redirect_match[1]))
        elif reject_match := re.match(r" \* reject message with reason: (.*)", line):
            actions.append(("reject", reject_match[1]))
        elif interval_match := re.match(r" +=> seconds : (\d+)", line):
            actions.append(("answer", interval_match[1]))
        elif notify_match := re.match(r" +\+ To: (.*)", line):
            actions.append(("notify", notify_match[1]))
        elif line == " * discard":
            actions.append(("discard",))
    return actions


def run_our_sieve(script: str) -> list[ActionSummary] | str:
    try:
        return summarize_plan(
            run_script(script, MESSAGE, addresses={"bob@example.com"}, mailboxes={"INBOX"})
        )
    except SieveError as error:
        return f"does not compile: {error}"
    except SieveRunError as error:
        return f"fails: {error}"


def summarize_plan(plan: SievePlan) -> list[ActionSummary]:
    actions: list[ActionSummary] = []
    for action in plan.actions:
        match action:
            case Keep():
                actions.append(("store", "INBOX", *sorted(map(str.lower, action.flags))))
            case FileInto():
                actions.append(("store", action.mailbox, *sorted(map(str.lower, action.flags))))
            case Redirect():
                actions.append(("send", action.address))
            case Reject():
                actions.append(("reject", action.reason))
            case VacationReply():
                actions.append(("answer", str(action.interval_seconds)))
            case MailNotification():
                actions.append(("notify", *action.recipients))
            case Discard():
                actions.append(("discard",))
    return actions


def outcome_kind(outcome: list[ActionSummary] | str) -> str:
    """Return "does not compile", "fails", "keeps" or "acts"."""
    if isinstance(outcome, str):
        return outcome.partition(":")[0]
    return "keeps" if outcome == [("store", "INBOX")] else "acts"


@pytest.fixture
def pigeonhole() -> Iterator[Pigeonhole]:
    with tempfile.TemporaryDirectory() as folder:
        yield Pigeonhole(Path(folder))


def test_random_scripts_act_like_in_pigeonhole(pigeonhole: Pigeonhole) -> None:
    kind_counts: Counter[str] = Counter()
    for seed in range(CASE_COUNT):
        writer = RandomSieveWriter(
            seed,
            excluded_commands=EXCLUDED_TESTS,
            excluded_tags=EXCLUDED_TAGS,
            extensions=EXTENSIONS,
        )
        script = print_script(writer.script())
        if CRASHING_SCRIPT.search(script):
            continue
        pigeonhole_outcome, our_outcome = pigeonhole.run(script), run_our_sieve(script)
        if "corrupt binary" in pigeonhole_outcome:  # caused by a break in a nested loop
            continue
        assert outcome_kind(our_outcome) == outcome_kind(pigeonhole_outcome), (
            f"{seed}\n{script}\n{our_outcome}\n{pigeonhole_outcome}"
        )
        if not isinstance(our_outcome, str):
            assert our_outcome == pigeonhole_outcome, script
        kind_counts[outcome_kind(our_outcome)] += 1
    assert kind_counts["acts"] > kind_counts.total() / 2, kind_counts
