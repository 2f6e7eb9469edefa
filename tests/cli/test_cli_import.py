"""Tests of `merganser import` with mail files of other programs."""

import mailbox
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import SourceMessage, UnusableMessageError
from tests.support.clients.command_line import CommandLine, message_count_by_mailbox, write_mbox
from tests.support.servers.forked_process import run_forked

MAX_MESSAGE_BYTES = 1 << 20


def read_source(path: Path, checkpoint: str | None = None) -> list[SourceMessage]:
    return list(
        read_source_messages_and_skips(inspect_mail_source(path, MAX_MESSAGE_BYTES), checkpoint)
    )


def test_mbox_messages_are_read_unchanged(tmp_path: Path) -> None:
    written_messages = write_mbox(tmp_path / "a.mbox", 150)
    messages = read_source(tmp_path / "a.mbox")
    # those with CRLF line ends
    crlf_messages = [raw for raw in written_messages if b"\n" not in raw.replace(b"\r\n", b"")]
    assert len(crlf_messages) > 100
    read_messages_raw = [(message.raw or b"").rstrip(b"\r\n") for message in messages]
    assert len(read_messages_raw) == 150
    assert not set(crlf_messages) - set(read_messages_raw)


def test_mbox_is_resumed_after_each_message(tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 40)
    messages = read_source(tmp_path / "a.mbox")
    assert messages[-1].progress == (tmp_path / "a.mbox").stat().st_size
    for read_count, message in enumerate(messages, 1):
        assert read_source(tmp_path / "a.mbox", message.checkpoint) == messages[read_count:]


def write_maildirs(root: Path) -> None:
    """Write a Maildir with folders whose names sort before and after a separator.

    Two of them, a Maildir++ folder and a nested one, have the mailbox path A.
    """
    for folder, names in (
        (root, "ab"),
        (root / ".A", "bd"),
        (root / "A", "ac"),
        (root / ".A b", "ab"),
    ):
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True)
        for name in names:
            (folder / "new" / name).write_bytes(f"Subject: {name}\n\nx\n".encode())


def write_message_files(root: Path) -> None:
    """Write .eml files into folders whose names sort before and after a separator."""
    for folder in (root, root / "A", root / "A" / "c", root / "A b"):
        folder.mkdir(exist_ok=True)
        for number in range(2):
            (folder / f"{number}.eml").write_bytes(f"Subject: {number}\n\nx\n".encode())


@pytest.mark.parametrize(
    ("write_files", "count"),
    [(write_maildirs, 8), (write_message_files, 8)],
    ids=["maildir", "eml"],
)
def test_folder_is_resumed_after_each_message(
    write_files: Callable[[Path], None], count: int, tmp_path: Path
) -> None:
    write_files(tmp_path / "mail")
    messages = read_source(tmp_path / "mail")
    assert len(messages) == count
    for read_count, message in enumerate(messages, 1):
        folder, _, name = message.checkpoint.rpartition("/")
        for checkpoint in (message.checkpoint, f"{folder}\0{name}"):  # as older versions store it
            rest = read_source(tmp_path / "mail", checkpoint)
            assert [item.name for item in rest] == [item.name for item in messages[read_count:]]


def test_mbox_status_sender_and_date_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mbox"
    path.write_bytes(
        b"From carol@example.com Tue Jan  6 10:00:00 2026\nSubject: one\nStatus: RO\n"
        b"X-Status: AF\n\n>From here on\n>>From there\n\nFrom a friend, who writes so.\n\n"
        b"From MAILER-DAEMON Tue Jan  6 11:00:00 2026 +0100\nSubject: two\n\nx\n"
    )
    first_message, second_message = read_source(path)
    assert first_message.received_at == datetime(2026, 1, 6, 10, tzinfo=UTC)
    assert first_message.sender == "carol@example.com"
    assert set(first_message.flags) == {"\\Seen", "\\Answered", "\\Flagged"}
    assert first_message.raw
    assert first_message.raw.endswith(
        b"\r\n\r\nFrom here on\r\n>From there\r\n\r\nFrom a friend, who writes so.\r\n"
    )
    assert (second_message.received_at, second_message.sender) == (first_message.received_at, None)


def test_maildir_is_imported_with_folders_and_flags(ada: CommandLine, tmp_path: Path) -> None:
    folder = mailbox.Maildir(tmp_path / "mail")
    for number, flags in enumerate(("", "S", "FR", "ST", "P")):
        message = mailbox.MaildirMessage(f"Subject: {number}\n\nHello {number}\n".encode())
        message.set_subdir("cur")
        message.set_flags(flags)
        message.set_date(1_700_000_000 + number)
        folder.add(message)
    folder.add_folder("Sent").add(b"Subject: sent\n\nx\n")
    folder.add_folder("Lists.M&APw-nchen").add(b"Subject: list\n\nx\n")
    result = ada("import", tmp_path / "mail", "--user", "ada@example.org")
    assert (result.code, result.out) == (0, "7 messages imported.\n")
    assert message_count_by_mailbox(ada) == {"INBOX": 5, "Sent": 1, "Lists/München": 1}
    query = "SELECT subject, seen, flagged, answered, deleted, keywords FROM messages m JOIN"
    query += " mailboxes b ON b.id = mailbox_id WHERE b.path = 'INBOX' ORDER BY received_at"
    assert ada.read_rows(query) == [
        ("0", 0, 0, 0, 0, "[]"),
        ("1", 1, 0, 0, 0, "[]"),
        ("2", 0, 1, 1, 0, "[]"),
        ("3", 1, 0, 0, 1, "[]"),
        ("4", 0, 0, 0, 0, '["$Forwarded"]'),
    ]
    assert ada.read_rows("SELECT unseen_count FROM mailboxes WHERE path = 'INBOX'") == [(3,)]
    (received_row,) = ada.read_rows("SELECT received_at FROM messages WHERE subject = '0'")
    assert received_row[0].startswith("2023-11-14 22:13:20")


def test_folder_import_reports_skipped_files(ada: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "Work" / "Old").mkdir(parents=True)
    (folder / "a.eml").write_bytes(b"Subject: a\r\nDate: Tue, 6 Jan 2026 10:00:00 +0000\r\n\r\n")
    (folder / "Work" / "Old" / "b.eml").write_bytes(b"Subject: b\n\nx\n")
    (folder / "c.eml").write_bytes(b"Subject: c\n\n" + b"x" * 3000)
    (folder / "empty.eml").touch()
    (folder / "notes.txt").write_text("x")
    ada.set_settings(message_max_size="2 KiB")
    result = ada("import", folder, "--user", "ada")
    assert result.code == 0
    assert result.out.splitlines() == [
        "2 messages imported.",
        "Skipped c.eml: The message is larger than MERGANSER_MESSAGE_MAX_SIZE.",
        "Skipped empty.eml: The file is empty.",
        "Skipped notes.txt: The file is not an .eml file.",
    ]
    assert message_count_by_mailbox(ada) == {"INBOX": 1, "Work/Old": 1}
    (received_row,) = ada.read_rows("SELECT received_at FROM messages WHERE subject = 'a'")
    assert received_row[0].startswith("2026-01-06 10:00:00")


def test_file_names_without_utf8_are_imported(ada: CommandLine, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "files" / name).mkdir(parents=True)
    (tmp_path / "files" / name / f"{name}.eml").write_bytes(b"Subject: a\n\nx\n")
    (tmp_path / "files" / f"{name}.txt").write_text("x")
    result = ada("import", tmp_path / "files", "--user", "ada")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "1 messages imported.",
        r"Skipped caf\xe9.txt: The file is not an .eml file.",
    ]
    maildir = mailbox.Maildir(tmp_path / "maildir").add_folder(name)
    maildir.add(b"Subject: b\n\nx\n")
    (path,) = (tmp_path / "maildir" / f".{name}" / "new").iterdir()
    path.rename(path.with_name(f"{name}:2,S"))
    result = ada("import", tmp_path / "maildir", "--user", "ada")
    assert (result.code, result.out) == (0, "1 messages imported.\n"), result.err
    assert message_count_by_mailbox(ada) == {r"caf\xe9": 2}
    single_file = tmp_path / f"{name}.eml"
    single_file.write_bytes(b"Subject: c\n\nx\n")
    write_mbox(tmp_path / f"{name}.mbox", 1)
    for file in (single_file, tmp_path / f"{name}.mbox"):
        result = ada("import", file, "--user", "ada")
        assert (result.code, result.out) == (0, "1 messages imported.\n"), result.err


def test_existing_messages_are_not_imported_again(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 60)
    assert ada("import", tmp_path / "a.mbox", "-u", "ada").out == "60 messages imported.\n"
    second_output = ada("import", tmp_path / "a.mbox", "-u", "ada").out
    assert second_output == "0 messages imported.\n60 already existed.\n"
    other_result = ada("import", tmp_path / "a.mbox", "-u", "ada", "--mailbox", "Old/2025")
    assert other_result.out == "60 messages imported.\n"
    assert message_count_by_mailbox(ada) == {"INBOX": 60, "Old/2025": 60}


@pytest.mark.parametrize("fault_point", ["commit:1", "commit:45", "imported:1", "imported:2"])
def test_killed_import_continues_without_loss_or_duplicates(
    ada: CommandLine, tmp_path: Path, fault_point: str
) -> None:
    write_mbox(tmp_path / "a.mbox", 80)
    arguments = ["import", str(tmp_path / "a.mbox"), "--user", "ada"]
    env = {**os.environ, "MERGANSER_FAULT": fault_point}
    assert run_forked(arguments, env).returncode == -9
    count_before = sum(message_count_by_mailbox(ada).values())
    result = ada("import", tmp_path / "a.mbox", "--user", "ada")
    # counts the messages of both runs
    assert (result.code, result.out) == (0, "80 messages imported.\n")
    assert message_count_by_mailbox(ada) == {"INBOX": 80}
    digest_counts = Counter(ada.read_rows("SELECT sha256 FROM messages"))
    assert set(digest_counts.values()) == {1}
    states = ada.read_rows("SELECT state, attempts, done_count = total_count FROM tasks")
    assert states == [("SUCCEEDED", 2, 1)]
    assert count_before == (
        0 if fault_point == "commit:1" else 32 * (2 if fault_point == "imported:2" else 1)
    )


def test_import_into_full_account_continues_after_quota_increase(
    ada: CommandLine, tmp_path: Path
) -> None:
    with (tmp_path / "a.mbox").open("w") as file:
        for number in range(50):
            file.write(f"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: {number}\n\n")
            file.write("x" * 985 + "\n\n")
    ada.set_settings(users_default_quota="20 KiB")
    result = ada("import", tmp_path / "a.mbox", "--user", "ada")
    assert result.code == 1
    assert "merganser: The account is full: " in result.err
    assert message_count_by_mailbox(ada) == {"INBOX": 20}
    ada.set_settings(users_default_quota="1 MiB")
    assert ada("import", tmp_path / "a.mbox", "--user", "ada").out == "50 messages imported.\n"
    assert [row[0] for row in ada.read_rows("SELECT subject FROM messages ORDER BY uid")] == [
        str(number) for number in range(50)
    ]


def test_cancelled_import_stops(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 80)
    arguments = ["import", str(tmp_path / "a.mbox"), "--user", "ada"]
    env = {**os.environ, "MERGANSER_FAULT": "imported:1"}
    assert run_forked(arguments, env).returncode == -9
    with sqlite3.connect(ada.data / "mail.db") as connection:  # as `taskCancel` does
        connection.execute("UPDATE tasks SET cancelled = 1")
    connection.close()
    result = ada(*arguments)
    assert (result.code, result.err) == (
        1,
        "merganser: The import was cancelled. Imported messages remain.\n",
    )
    assert ada.read_rows("SELECT state FROM tasks") == [("CANCELLED",)]
    assert message_count_by_mailbox(ada) == {"INBOX": 64}


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (("nothing", "--user", "ada"), "does not exist."),
        (
            ("some.bin", "--user", "ada"),
            "The file is not an mbox file, Maildir or supported archive.",
        ),
        (("a.eml", "--user", "bob"), "User not found: bob."),
        (("a.eml", "--user", "ada", "--mailbox", "a//b"), "A path must not contain empty levels."),
    ],
)
def test_impossible_import_is_reported_in_one_line(
    ada: CommandLine, tmp_path: Path, arguments: tuple[str, ...], error_text: str
) -> None:
    (tmp_path / "some.bin").write_bytes(b"\x7fELF nothing")
    (tmp_path / "a.eml").write_bytes(b"Subject: a\n\n")
    result = ada("import", tmp_path / arguments[0], *arguments[1:])
    assert result.code == 1
    assert result.err.startswith("merganser: ")
    assert result.err.count("\n") == 1
    assert error_text in result.err


def test_large_mbox_is_read_with_memory_of_one_message(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.mbox"
    with path.open("wb") as file:
        for number in range(40):
            file.write(b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\n")
            file.write((b"%d" % number * 70 + b"\n") * 4000 + b"\n")
    tracemalloc.start()
    try:
        count = sum(
            1
            for _ in read_source_messages_and_skips(
                inspect_mail_source(path, MAX_MESSAGE_BYTES), None
            )
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40
    assert peak < path.stat().st_size / 5


def test_file_without_mail_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    with pytest.raises(UnusableMessageError):
        inspect_mail_source(tmp_path / "x", MAX_MESSAGE_BYTES)


def test_text_file_with_colons_is_no_message(ada: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_bytes(b"root:x:0:0:root:/root:/bin/bash\nada:x:1:1::/:/bin/sh\n")
    result = ada("import", tmp_path / "passwd", "--user", "ada")
    assert result.code == 1
    assert "The file is not an mbox file, Maildir or supported archive." in result.err
    assert message_count_by_mailbox(ada) == {}


def test_import_without_message_fails_with_a_reason(ada: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    result = ada("import", folder, "--user", "ada")
    assert result.code == 1
    assert result.err.endswith("The archive has no message that can be imported.\n")
    (folder / "notes.txt").write_text("x")
    result = ada("import", folder, "--user", "ada")
    assert result.code == 1
    assert result.err.endswith("notes.txt: The file is not an .eml file.\n")
    assert set(ada.read_rows("SELECT state FROM tasks")) == {("FAILED",)}
