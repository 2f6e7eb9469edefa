"""`merganser import`: mail that other programs have kept."""

import mailbox
import os
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.archives.mail_sources import open_source, read_messages
from mail.archives.source_message import SourceMessage, UnusableMessageError
from tests.support.clients.command_line import CommandLine, message_count_by_mailbox, write_mbox
from tests.support.servers.forked_process import run_forked

MOST = 1 << 20


def read(path: Path, after: str | None = None) -> list[SourceMessage]:
    return list(read_messages(open_source(path, MOST), after))


def test_an_mbox_gives_back_what_was_put_into_it(tmp_path: Path) -> None:
    bag = write_mbox(tmp_path / "a.mbox", 150)
    found = read(tmp_path / "a.mbox")
    whole = [raw for raw in bag if b"\n" not in raw.replace(b"\r\n", b"")]  # lines as mail has them
    assert len(whole) > 100
    got = [(each.raw or b"").rstrip(b"\r\n") for each in found]
    assert len(got) == 150
    assert not set(whole) - set(got)


def test_an_mbox_is_gone_on_with_at_each_of_its_messages(tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 40)
    found = read(tmp_path / "a.mbox")
    assert found[-1].progress == (tmp_path / "a.mbox").stat().st_size
    for done, each in enumerate(found, 1):
        assert read(tmp_path / "a.mbox", each.checkpoint) == found[done:]


def test_what_an_mbox_says_of_a_message_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mbox"
    path.write_bytes(
        b"From carol@example.com Tue Jan  6 10:00:00 2026\nSubject: one\nStatus: RO\n"
        b"X-Status: AF\n\n>From here on\n>>From there\n\nFrom a friend, who writes so.\n\n"
        b"From MAILER-DAEMON Tue Jan  6 11:00:00 2026 +0100\nSubject: two\n\nx\n"
    )
    one, two = read(path)
    assert one.received_at == datetime(2026, 1, 6, 10, tzinfo=UTC)
    assert one.sender == "carol@example.com"
    assert set(one.flags) == {"\\Seen", "\\Answered", "\\Flagged"}
    assert one.raw
    assert one.raw.endswith(
        b"\r\n\r\nFrom here on\r\n>From there\r\n\r\nFrom a friend, who writes so.\r\n"
    )
    assert (two.received_at, two.sender) == (one.received_at, None)


def test_a_maildir_with_folders_and_flags(ada: CommandLine, tmp_path: Path) -> None:
    place = mailbox.Maildir(tmp_path / "mail")
    for number, flags in enumerate(("", "S", "FR", "ST", "P")):
        message = mailbox.MaildirMessage(f"Subject: {number}\n\nHello {number}\n".encode())
        message.set_subdir("cur")
        message.set_flags(flags)
        message.set_date(1_700_000_000 + number)
        place.add(message)
    place.add_folder("Sent").add(b"Subject: sent\n\nx\n")
    place.add_folder("Lists.M&APw-nchen").add(b"Subject: list\n\nx\n")
    said = ada("import", tmp_path / "mail", "--user", "ada@example.org")
    assert (said.code, said.out) == (0, "7 messages imported.\n")
    assert message_count_by_mailbox(ada) == {"INBOX": 5, "Sent": 1, "Lists/München": 1}
    asked = "SELECT subject, seen, flagged, answered, deleted, keywords FROM messages m JOIN"
    asked += " mailboxes b ON b.id = mailbox_id WHERE b.path = 'INBOX' ORDER BY received_at"
    assert ada.read_rows(asked) == [
        ("0", 0, 0, 0, 0, "[]"),
        ("1", 1, 0, 0, 0, "[]"),
        ("2", 0, 1, 1, 0, "[]"),
        ("3", 1, 0, 0, 1, "[]"),
        ("4", 0, 0, 0, 0, '["$Forwarded"]'),
    ]
    assert ada.read_rows("SELECT unseen FROM mailboxes WHERE path = 'INBOX'") == [(3,)]
    (at,) = ada.read_rows("SELECT received_at FROM messages WHERE subject = '0'")
    assert at[0].startswith("2023-11-14 22:13:20")


def test_a_folder_of_files_tells_what_it_skips(ada: CommandLine, tmp_path: Path) -> None:
    place = tmp_path / "in"
    (place / "Work" / "Old").mkdir(parents=True)
    (place / "a.eml").write_bytes(b"Subject: a\r\nDate: Tue, 6 Jan 2026 10:00:00 +0000\r\n\r\n")
    (place / "Work" / "Old" / "b.eml").write_bytes(b"Subject: b\n\nx\n")
    (place / "c.eml").write_bytes(b"Subject: c\n\n" + b"x" * 3000)
    (place / "empty.eml").touch()
    (place / "notes.txt").write_text("x")
    ada.set_settings(message_max="2 KiB")
    said = ada("import", place, "--user", "ada")
    assert said.code == 0
    assert said.out.splitlines() == [
        "2 messages imported.",
        "Skipped c.eml: larger than MERGANSER_MESSAGE_MAX.",
        "Skipped empty.eml: empty.",
        "Skipped notes.txt: not an .eml file.",
    ]
    assert message_count_by_mailbox(ada) == {"INBOX": 1, "Work/Old": 1}
    (at,) = ada.read_rows("SELECT received_at FROM messages WHERE subject = 'a'")
    assert at[0].startswith("2026-01-06 10:00:00")


def test_what_is_there_is_not_imported_twice(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 60)
    assert ada("import", tmp_path / "a.mbox", "-u", "ada").out == "60 messages imported.\n"
    again = ada("import", tmp_path / "a.mbox", "-u", "ada").out
    assert again == "0 messages imported.\n60 were there already.\n"
    other = ada("import", tmp_path / "a.mbox", "-u", "ada", "--mailbox", "Old/2025")
    assert other.out == "60 messages imported.\n"
    assert message_count_by_mailbox(ada) == {"INBOX": 60, "Old/2025": 60}


@pytest.mark.parametrize("place", ["commit:1", "commit:45", "imported:1", "imported:2"])
def test_killed_anywhere_it_goes_on_without_loss_or_repeat(
    ada: CommandLine, tmp_path: Path, place: str
) -> None:
    write_mbox(tmp_path / "a.mbox", 80)
    words = ["import", str(tmp_path / "a.mbox"), "--user", "ada"]
    env = {**os.environ, "MERGANSER_FAULT": place}
    assert run_forked(words, env).returncode == -9
    before = sum(message_count_by_mailbox(ada).values())
    said = ada("import", tmp_path / "a.mbox", "--user", "ada")
    assert (said.code, said.out) == (0, "80 messages imported.\n")  # of both runs together
    assert message_count_by_mailbox(ada) == {"INBOX": 80}
    counted = Counter(ada.read_rows("SELECT digest FROM messages"))
    assert set(counted.values()) == {1}
    states = ada.read_rows("SELECT state, attempts, done = total FROM tasks")
    assert states == [("SUCCEEDED", 2, 1)]
    assert before == (0 if place == "commit:1" else 32 * (2 if place == "imported:2" else 1))


def test_a_full_account_keeps_what_fits_and_goes_on_when_there_is_room(
    ada: CommandLine, tmp_path: Path
) -> None:
    with (tmp_path / "a.mbox").open("w") as file:
        for number in range(50):
            file.write(f"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: {number}\n\n")
            file.write("x" * 985 + "\n\n")
    ada.set_settings(default_quota="20 KiB")
    said = ada("import", tmp_path / "a.mbox", "--user", "ada")
    assert said.code == 1
    assert "merganser: the account is full" in said.err
    assert message_count_by_mailbox(ada) == {"INBOX": 20}
    ada.set_settings(default_quota="1 MiB")
    assert ada("import", tmp_path / "a.mbox", "--user", "ada").out == "50 messages imported.\n"
    assert [row[0] for row in ada.read_rows("SELECT subject FROM messages ORDER BY uid")] == [
        str(number) for number in range(50)
    ]


def test_an_import_that_its_user_cancels_stops(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 80)
    words = ["import", str(tmp_path / "a.mbox"), "--user", "ada"]
    env = {**os.environ, "MERGANSER_FAULT": "imported:1"}
    assert run_forked(words, env).returncode == -9
    with sqlite3.connect(ada.data / "mail.db") as store:  # as `taskCancel` does
        store.execute("UPDATE tasks SET cancelled = 1")
    store.close()
    said = ada(*words)
    assert (said.code, said.err) == (
        1,
        "merganser: the import was cancelled; what it has brought in stays\n",
    )
    assert ada.read_rows("SELECT state FROM tasks") == [("CANCELLED",)]
    assert message_count_by_mailbox(ada) == {"INBOX": 64}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing", "--user", "ada"), "there is nothing at"),
        (("some.bin", "--user", "ada"), "neither an mbox file, nor a Maildir"),
        (("a.eml", "--user", "bob"), "there is no user bob"),
        (("a.eml", "--user", "ada", "--mailbox", "a//b"), "no empty levels"),
    ],
)
def test_an_import_that_cannot_begin_is_one_sentence(
    ada: CommandLine, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "some.bin").write_bytes(b"\x7fELF nothing")
    (tmp_path / "a.eml").write_bytes(b"Subject: a\n\n")
    said = ada("import", tmp_path / words[0], *words[1:])
    assert said.code == 1
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_an_mbox_of_any_size_takes_the_memory_of_one_message(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.mbox"
    with path.open("wb") as file:
        for number in range(40):
            file.write(b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\n")
            file.write((b"%d" % number * 70 + b"\n") * 4000 + b"\n")
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_messages(open_source(path, MOST), None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40
    assert peak < path.stat().st_size / 5


def test_what_is_no_mail_is_not_taken_for_some(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    with pytest.raises(UnusableMessageError):
        open_source(tmp_path / "x", MOST)
