"""`merganser demo`: made once, through the delivery code, and never twice."""

import io
import os
import re
import sqlite3
import stat
from datetime import UTC, datetime

import pytest

from merganser.demo import generate_messages
from tests.support.clients.command_line import (
    CommandLine,
    CommandResult,
    authenticate_bearer,
    can_sign_in,
)
from tests.support.servers.forked_process import run_forked


def fact(said: CommandResult, name: str) -> str:
    found = re.search(rf"^{name} +(\S+)", said.out, re.MULTILINE)
    assert found, said
    return found[1]


def test_the_demo_account_has_the_letters_and_its_credentials_work(shell: CommandLine) -> None:
    said = shell("demo", "--count", "60")
    assert said.code == 0
    assert can_sign_in("demo", fact(said, "Password"))
    assert authenticate_bearer(fact(said, "API key")).user_id
    assert not stat.S_IMODE((shell.data / "demo.json").stat().st_mode) & 0o077
    bag = list(generate_messages(count=60, now=datetime.now(UTC)))
    boxes = dict(shell.read_rows("SELECT path, total FROM mailboxes"))
    for path in {each.mailbox for each in bag}:
        assert boxes[path] == sum(each.mailbox == path for each in bag)
    flags = shell.read_rows(
        "SELECT sum(seen), sum(flagged), sum(answered), sum(draft) FROM messages"
    )
    names = ("seen", "flagged", "answered", "draft")
    assert flags == [tuple(sum(getattr(each, f"is_{name}") for each in bag) for name in names)]
    assert shell("check").json["findings"] == []


def test_its_password_is_as_strong_as_the_platform_wants(shell: CommandLine) -> None:
    shell.set_settings(password_min="30", password_classes="4")  # noqa: S106 - how it must be
    password = fact(shell("demo", "--count", "1"), "Password")
    assert len(password) >= 30
    assert can_sign_in("demo", password)


def test_once_made_it_is_only_shown(shell: CommandLine) -> None:
    first = shell("demo", "--count", "40")
    with sqlite3.connect(shell.data / "mail.db") as store:
        store.execute("DELETE FROM mailboxes WHERE path = 'Trash'")
    store.close()
    assert shell("demo", "--count", "90") == first
    assert shell.read_rows("SELECT count(*) FROM messages") == [(40,)]
    assert not shell.read_rows("SELECT * FROM mailboxes WHERE path = 'Trash'")
    assert shell.read_rows("SELECT count(*) FROM api_keys") == [(1,)]


@pytest.mark.parametrize("place", ["commit:1", "commit:30"])
def test_killed_in_the_middle_it_is_finished_the_next_time(shell: CommandLine, place: str) -> None:
    env = {**os.environ, "MERGANSER_FAULT": place}
    assert run_forked(["demo", "--count", "60"], env).returncode == -9
    assert shell.read_rows("SELECT count(*) < 60 FROM messages") == [(1,)]
    assert shell("demo", "--count", "60").code == 0
    assert shell.read_rows("SELECT count(*), count(DISTINCT digest) FROM messages") == [(60, 60)]


def test_a_password_somebody_has_changed_is_left(
    shell: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("demo", "--count", "20")
    monkeypatch.setattr("sys.stdin", io.StringIO("my very own\n"))
    shell("user", "passwd", "demo", "--password-stdin")
    assert "somebody has changed it" in shell("demo", "--count", "20").out
    assert can_sign_in("demo", "my very own")


def test_credentials_that_were_lost_are_made_anew(shell: CommandLine) -> None:
    shell("demo", "--count", "20")
    (shell.data / "demo.json").unlink()
    said = shell("demo", "--count", "20")
    assert can_sign_in("demo", fact(said, "Password"))
    (key,) = [row["id"] for row in shell("token", "list", "--json").json[1:]]
    shell("token", "revoke", key)
    assert authenticate_bearer(fact(shell("demo"), "API key")).user_id
