"""Flags, keywords and mailboxes from the header fields of other programs."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import SourceMessage
from models.mailboxes.tables import SpecialUse

FROM_LINE = b"From 1234567890123456789@xxx Mon Mar 02 09:30:00 +0000 2026\n"


def message_with_fields(fields: str) -> bytes:
    return f"{fields}\nFrom: a@example.net\nSubject: One\n\nStatus: F\n".encode()


def read_file(path: Path) -> list[SourceMessage]:
    return list(read_source_messages_and_skips(inspect_mail_source(path, 1 << 20), None))


def read_mbox_message(folder: Path, fields: str) -> SourceMessage:
    path = folder / "All mail.mbox"
    path.write_bytes(FROM_LINE + message_with_fields(fields))
    (message,) = read_file(path)
    return message


def zip_file(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tar_file(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        (
            "Status: RO\nX-Status: AF\nX-Keywords: blue green",
            {"\\Seen", "\\Answered", "\\Flagged", "blue", "green"},
        ),
        ("Status: O\nX-Status: ", set()),
        ("X-Status: TD", {"\\Draft", "\\Deleted"}),
        (
            "X-Mozilla-Status: 0007\nX-Mozilla-Status2: 00000000",
            {"\\Seen", "\\Answered", "\\Flagged"},
        ),
        ("X-Mozilla-Status: 1009", {"\\Seen", "\\Deleted", "$Forwarded"}),
        ("X-Mozilla-Keys: $label1 NonJunk          ", {"$label1", "NonJunk"}),
        ("X-Keywords:", set()),
        ("X-Keywords: a\\Seen (b) %", {"a_Seen", "b"}),
        ("X-Keywords: one, two\n three", {"one", "two", "three"}),
    ],
)
def test_state_of_mbox_programs_becomes_flags(tmp_path: Path, fields: str, flags: set[str]) -> None:
    assert set(read_mbox_message(tmp_path, fields).flags) == flags


@pytest.mark.parametrize(
    "fields",
    [
        "Status: READ",
        "Status: Open",
        "Status: 2.0.0",
        "X-Mozilla-Status: xyz",
        f"X-Mozilla-Status: {'f' * 1000}",
        "X-Gmail-Labels: ,,",
        "X-Keywords: =?utf-8?B?!!!?= =?x?q?",
        f"X-Keywords: {'a ' * 40_000}",
        "Status: \x00\x01",
    ],
)
def test_malformed_state_is_ignored(tmp_path: Path, fields: str) -> None:
    message = read_mbox_message(tmp_path, fields)
    assert message.raw is not None
    assert not {flag for flag in message.flags if flag.startswith("\\")}
    assert message.folder == "INBOX"


def test_number_and_length_of_keywords_are_limited(tmp_path: Path) -> None:
    words = " ".join(f"{number}{'x' * 200}" for number in range(100))
    flags = read_mbox_message(tmp_path, f"X-Keywords: {words}").flags
    assert len(flags) == 50
    assert max(map(len, flags)) == 128


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_state_is_read_from_every_file_format(tmp_path: Path, line_end: bytes) -> None:
    content = message_with_fields("Status: R\nX-Keywords: blue").replace(b"\n", line_end)
    mbox = FROM_LINE + content
    folder = tmp_path / "folder"
    folder.mkdir()
    files = {
        "a.eml": content,
        "b.mbox": mbox,
        "c.zip": zip_file("c.eml", content),
        "d.zip": zip_file("INBOX.mbox", mbox),
        "e.tar": tar_file("e.eml", content),
        "f.tar": tar_file("INBOX.mbox", mbox),
        "folder/g.eml": content,
    }
    for name, file_content in files.items():
        (tmp_path / name).write_bytes(file_content)
        (message,) = read_file(folder if name == "folder/g.eml" else tmp_path / name)
        assert (message.folder, list(message.flags)) == ("INBOX", ["\\Seen", "blue"]), name


@pytest.mark.parametrize(
    ("labels", "special_use", "folder", "flags"),
    [
        (
            "=?UTF-8?Q?Gesendet,Sch=C3=B6ne_Dinge,Unread?=\n =?UTF-8?Q?,Starred?=",
            SpecialUse.SENT,
            "Sent",
            ["\\Flagged", "Schöne_Dinge"],
        ),
        ('Trash,"A, B"', SpecialUse.TRASH, "Trash", ["\\Seen", "A,_B"]),
        ("Inbox,Opened", SpecialUse.INBOX, "INBOX", ["\\Seen"]),
        ("Sent,Inbox,Unread", SpecialUse.INBOX, "INBOX", []),
        ("Spam,Category Promotions,Unread", SpecialUse.JUNK, "Junk", ["Category_Promotions"]),
        ("Drafts", SpecialUse.DRAFTS, "Drafts", ["\\Seen", "\\Draft"]),
        ("Archived,Important", SpecialUse.ARCHIVE, "Archive", ["\\Seen", "$Important"]),
        (
            "=?UTF-8?Q?Archiviert,Kategorie_Soziale_Netzwerke,Ge=C3=B6ffnet?=",
            SpecialUse.ARCHIVE,
            "Archive",
            ["\\Seen", "Kategorie_Soziale_Netzwerke"],
        ),
        ("Archived,Work/Old,Blue,Unread", None, "Work/Old", ["Blue"]),
        ("a//b,Fine,Unread", None, "Fine", ["a//b"]),
        (f"{'a/' * 40}b,Unread", SpecialUse.ARCHIVE, "Archive", [f"{'a/' * 40}b"]),
        ("S\u0435nt,Work,Unread", None, "Work", ["S\u0435nt"]),  # with a Cyrillic letter
        ('"unclosed,Unread', None, "unclosed", []),
    ],
)
def test_gmail_labels_become_mailbox_flags_and_keywords(
    tmp_path: Path, labels: str, special_use: SpecialUse | None, folder: str, flags: list[str]
) -> None:
    message = read_mbox_message(tmp_path, f"X-GM-THRID: 1\nX-Gmail-Labels: {labels}")
    assert (message.special_use, message.folder) == (special_use, folder)
    assert list(message.flags) == flags


def test_message_stays_in_the_file_of_its_label(tmp_path: Path) -> None:
    mbox = FROM_LINE + message_with_fields("X-Gmail-Labels: Inbox,Work,Blue,Unread")
    (tmp_path / "a.zip").write_bytes(zip_file("Takeout/Mail/Work.mbox", mbox))
    (message,) = read_file(tmp_path / "a.zip")
    assert (message.folder, message.special_use) == ("Work", None)
    assert list(message.flags) == ["Blue"]
