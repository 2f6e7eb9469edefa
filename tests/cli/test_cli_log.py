"""Tests of `merganser log`."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from models.logs.entries import LogComponent, LogLevel, NewLogEntry, storable_entry
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogLimits
from tests.support.clients.command_line import CommandLine


@pytest.fixture
def logged(ada: CommandLine) -> CommandLine:
    """A command line with entries in its log store."""
    now = datetime.now(UTC)
    (row,) = ada.read_rows("SELECT id FROM users")
    entries = [
        NewLogEntry(now - timedelta(hours=5), LogComponent.MTA, LogLevel.INFO, "mail.x", "old"),
        NewLogEntry(
            now, LogComponent.SPAM, LogLevel.WARNING, "mail.spam", "new\x1b[31m red", {"a": 1},
            user_id=row[0], queue_id="q1", message_id="<a@b>",
        ),
    ]  # fmt: skip
    store = SqliteLogStore(ada.data / "logs.sqlite3", ada.data / "mail.db")
    store.write_entries_unless_full(
        [storable_entry(entry) for entry in entries], LogLimits(timedelta(days=1), 1 << 30, now)
    )
    store.close_writer()
    return ada


def test_log_lists_entries_the_oldest_first(logged: CommandLine) -> None:
    result = logged("log")
    lines = result.out.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["old", "new\\x1b[31m red"]
    assert "SPAM       WARNING mail.spam [q1]" in lines[1]


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--component", "mta"), ["old"]),
        (("--level", "warning"), ["new\\x1b[31m red"]),
        (("--since", "2 hours"), ["new\\x1b[31m red"]),
        (("--before", "2 hours"), ["old"]),
        (("--user", "ada"), ["new\\x1b[31m red"]),
        (("--query", "RED"), ["new\\x1b[31m red"]),
        (("--queue-id", "Q1"), ["new\\x1b[31m red"]),
        (("--message-id", "a@b"), ["new\\x1b[31m red"]),
        (("--limit", "1"), ["new\\x1b[31m red"]),
        (("--limit", "0"), []),
    ],
)
def test_log_filters(logged: CommandLine, options: tuple[str, ...], messages: list[str]) -> None:
    result = logged("log", "--json", *options)
    assert [json.loads(line)["message"] for line in result.out.splitlines()] == messages


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--component", "nothing"), "--component: Must be one of ACME"),
        (("--level", "loud"), "--level: Must be one of DEBUG"),
        (("--since", "soon"), "--since: Must be a duration"),
        (("--query", ".*"), "--query: Must have 1 to 20 words"),
        (("--user", "nobody"), "User not found: nobody."),
    ],
)
def test_log_refuses_bad_options(ada: CommandLine, options: tuple[str, ...], problem: str) -> None:
    result = ada("log", *options)
    assert result.code != 0
    assert problem in result.err


def test_log_of_a_server_without_entries_is_empty(ada: CommandLine) -> None:
    result = ada("log")
    assert (result.code, result.out) == (0, "")
