"""Tests of `merganser demo`: the demo account is created once, through the delivery code."""

import io
import os
import re
import sqlite3
import stat
from datetime import UTC, datetime

import pytest

from merganser.demo import generate_messages
from merganser.demo.credentials import read_account_or_none
from models.users.roles import Role
from tests.support.clients.command_line import (
    CommandLine,
    CommandResult,
    authenticate_bearer,
    can_sign_in,
)
from tests.support.servers.forked_process import run_forked


def read_output_value(result: CommandResult, name: str) -> str:
    match = re.search(rf"^{name} +(\S+)", result.out, re.MULTILINE)
    assert match, result
    return match[1]


def test_demo_account_has_messages_and_working_credentials(shell: CommandLine) -> None:
    result = shell("demo", "--count", "60")
    assert result.code == 0
    assert can_sign_in("demo", read_output_value(result, "Password"))
    assert authenticate_bearer(read_output_value(result, "API key")).user_id
    assert not stat.S_IMODE((shell.data / "demo.json").stat().st_mode) & 0o077
    messages = list(generate_messages(count=60, now=datetime.now(UTC)))
    rows = shell.read_rows(
        "SELECT path, message_count FROM mailboxes"
        " WHERE user_id = (SELECT id FROM users WHERE username = 'demo')"
    )
    message_counts = dict(rows)
    for path in {message.mailbox for message in messages}:
        assert message_counts[path] == sum(message.mailbox == path for message in messages)
    flags = shell.read_rows(
        "SELECT sum(seen), sum(flagged), sum(answered), sum(draft) FROM messages"
    )
    names = ("seen", "flagged", "answered", "draft")
    assert flags == [
        tuple(sum(getattr(message, f"is_{name}") for message in messages) for name in names)
    ]
    assert shell("check").json["findings"] == []


def test_demo_password_meets_password_policy(shell: CommandLine) -> None:
    shell.set_settings(passwords_min_length="30", passwords_min_character_classes="4")
    password = read_output_value(shell("demo", "--count", "1"), "Password")
    assert len(password) >= 30
    assert can_sign_in("demo", password)


def test_second_demo_run_only_shows_account(shell: CommandLine) -> None:
    first = shell("demo", "--count", "40")
    with sqlite3.connect(shell.data / "mail.db") as connection:
        connection.execute(
            "DELETE FROM mailboxes WHERE path = 'Trash'"
            " AND user_id = (SELECT id FROM users WHERE username = 'demo')"
        )
    connection.close()
    assert shell("demo", "--count", "90") == first
    assert shell.read_rows("SELECT count(*) FROM messages") == [(40,)]
    assert not shell.read_rows(
        "SELECT * FROM mailboxes WHERE path = 'Trash'"
        " AND user_id = (SELECT id FROM users WHERE username = 'demo')"
    )
    assert shell.read_rows("SELECT count(*) FROM api_keys") == [(3,)]


@pytest.mark.parametrize("fault_point", ["commit:1", "commit:30"])
def test_killed_demo_run_is_completed_by_next_run(shell: CommandLine, fault_point: str) -> None:
    env = {**os.environ, "MERGANSER_FAULT": fault_point}
    assert run_forked(["demo", "--count", "60"], env).returncode == -9
    assert shell.read_rows("SELECT count(*) < 60 FROM messages") == [(1,)]
    assert shell("demo", "--count", "60").code == 0
    assert shell.read_rows("SELECT count(*), count(DISTINCT sha256) FROM messages") == [(60, 60)]


def test_changed_demo_password_is_kept(shell: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("demo", "--count", "20")
    monkeypatch.setattr("sys.stdin", io.StringIO("my very own\n"))
    shell("user", "passwd", "demo", "--password-stdin")
    assert "changed since the account was created" in shell("demo", "--count", "20").out
    assert can_sign_in("demo", "my very own")


def test_lost_demo_credentials_are_created_again(shell: CommandLine) -> None:
    shell("demo", "--count", "20")
    (shell.data / "demo.json").unlink()
    result = shell("demo", "--count", "20")
    assert can_sign_in("demo", read_output_value(result, "Password"))
    tokens = shell("api-key", "list", "--json").json
    _, key_id = [row["id"] for row in tokens if row["name"] == "demo"]
    shell("api-key", "revoke", key_id)
    assert authenticate_bearer(read_output_value(shell("demo"), "API key")).user_id


def test_demo_has_administrator_and_second_user(shell: CommandLine) -> None:
    shell("demo", "--count", "1")
    for username, role in (("demo-admin", Role.ADMIN), ("demo-second", Role.USER)):
        account = read_account_or_none(shell.data, username)
        assert account
        assert account.key
        assert can_sign_in(username, account.password or "")
        assert authenticate_bearer(account.key).role is role
