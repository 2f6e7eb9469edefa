"""Messages in files of other programs: byte order marks, and lines before the header."""

import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.archives import mbox_format
from mail.archives.foreign_message import read_foreign_message
from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.mime import facts_from_message_bytes

BOM = b"\xef\xbb\xbf"
BANNER = b"Microsoft Mail Internet Headers Version 2.0\r\n"
EML = b"From: ann@example.net\r\nSubject: One\r\n\r\nText\r\n"
MBOX = (
    b"From ann@example.net Mon Mar  2 09:30:00 2026\nFrom: ann@example.net\nSubject: First\n\none\n"
    b"\nFrom ann@example.net Mon Mar  2 09:31:00 2026\nFrom: ann@example.net\nSubject: Second\n\n"
    b"two\n"
)


def read_file(path: Path, content: bytes, checkpoint: str | None = None) -> list[SourceMessage]:
    path.write_bytes(content)
    return list(read_source_messages_and_skips(inspect_mail_source(path, 1 << 20), checkpoint))


def zip_file(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def subjects(messages: list[SourceMessage]) -> list[str]:
    return [facts_from_message_bytes(message.raw or b"").subject for message in messages]


@pytest.mark.parametrize(
    "lines_before",
    [
        BOM,
        b"\r\n",
        BANNER,
        BOM + BANNER,
        b"From ann@example.net\r\n",
        b">From - Mon Mar  2 2026 09:31:00\r\n",
        b"\r\n>From - Mon Mar  2 2026 09:31:00\r\n",
    ],
)
def test_lines_before_the_header_are_skipped(tmp_path: Path, lines_before: bytes) -> None:
    from_line = b"From ann@example.net Mon Mar  2 09:30:00 2026\r\n"
    assert [message.raw for message in read_file(tmp_path / "a.eml", lines_before + EML)] == [EML]
    in_zip = read_file(tmp_path / "a.zip", zip_file("a.eml", lines_before + EML))
    assert [message.raw for message in in_zip] == [EML]
    in_mbox = read_file(tmp_path / "a.mbox", from_line + lines_before + EML)
    assert [message.raw for message in in_mbox] == [EML]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.eml").write_bytes(lines_before + EML)
    source = inspect_mail_source(folder, 1 << 20)
    assert [message.raw for message in read_source_messages_and_skips(source, None)] == [EML]


@pytest.mark.parametrize("lines_before", [BOM, BANNER])
def test_upload_with_lines_before_the_header_is_a_message(
    tmp_path: Path, lines_before: bytes
) -> None:
    assert subjects(read_file(tmp_path / "upload", lines_before + EML)) == ["One"]


def test_mbox_with_byte_order_mark_has_all_messages(tmp_path: Path) -> None:
    messages = read_file(tmp_path / "a.mbox", BOM + MBOX)
    assert subjects(messages) == ["First", "Second"]
    assert messages[0].received_at == datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    (second,) = read_file(tmp_path / "a.mbox", BOM + MBOX, messages[0].checkpoint)
    assert second == messages[1]


def test_folded_fields_and_fields_without_space_are_read(tmp_path: Path) -> None:
    eml = b"Return-Path:\n <ann@example.net>\nDate:\n Mon, 2 Mar 2026 09:30:00 +0100\nSubject:x\n\n"
    (message,) = read_file(tmp_path / "a.eml", eml)
    assert subjects([message]) == ["x"]
    assert message.received_at == datetime(2026, 3, 2, 8, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "content",
    [b"no message\n", b"Hello\n\nNote: this\n", b"Hello\nNote: this\n", b"\nNote: this\n", BOM],
)
def test_file_without_header_is_skipped_with_a_reason(tmp_path: Path, content: bytes) -> None:
    for path, file in (("a.eml", content), ("a.zip", zip_file("a.eml", content))):
        (message,) = read_file(tmp_path / path, file)
        assert (message.raw, message.reason) == (None, "The message has no header fields.")
    with pytest.raises(UnusableMessageError):
        read_foreign_message(content)


@pytest.mark.parametrize("raw", [BOM + EML, BANNER + EML, b"From x\r\n" + EML, b"\r\n", b"Hi\r\n"])
def test_own_mbox_keeps_lines_before_the_header(tmp_path: Path, raw: bytes) -> None:
    entry = mbox_format.encode_mbox_entry(raw, "a@example.org", datetime(2026, 3, 2, tzinfo=UTC))
    messages = read_file(tmp_path / "a.mbox", entry * 2)
    assert [message.raw for message in messages] == [raw, raw]
