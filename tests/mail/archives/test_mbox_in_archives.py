"""mbox files inside ZIP and tar archives, as Takeout, Apple Mail and Thunderbird make them."""

import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mail.archives.archive_reader import MAX_COMPRESSION_RATIO, RATIO_ALLOWANCE
from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import SourceMessage
from mail.archives.zip_format import DamagedArchiveError
from mail.mime import facts_from_message_bytes
from tests.support.growth import assert_grows_with_size

FROM_LINE = b"From ann@example.net Mon Mar  2 09:30:00 2026\n"
UNKNOWN_FILE = "The file is neither an .eml file, an mbox file nor a file of a Maildir."


def mbox(*subjects: str, body: bytes = b"x\n") -> bytes:
    return b"".join(
        FROM_LINE + f"From: ann@example.net\nSubject: {subject}\n\n".encode() + body + b"\n"
        for subject in subjects
    )


def zip_file(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_file(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read_file(path: Path, checkpoint: str | None = None) -> list[SourceMessage]:
    return list(read_source_messages_and_skips(inspect_mail_source(path, 1 << 20), checkpoint))


def folders_and_subjects(messages: list[SourceMessage]) -> list[tuple[str, str]]:
    return [
        (message.folder, facts_from_message_bytes(message.raw).subject)
        for message in messages
        if message.raw is not None
    ]


def write_archive(path: Path, archive_format: str, files: dict[str, bytes]) -> Path:
    if archive_format == "tar":
        path.write_bytes(tar_file(files))
    else:
        stored = zipfile.ZIP_STORED if archive_format == "stored zip" else zipfile.ZIP_DEFLATED
        path.write_bytes(zip_file(files, stored))
    return path


@pytest.mark.parametrize("archive_format", ["zip", "stored zip", "tar"])
def test_mbox_files_of_other_programs_are_read(tmp_path: Path, archive_format: str) -> None:
    files = {
        "Takeout/archive_browser.html": b"<html></html>",
        "Takeout/Mail/All mail Including Spam and Trash.mbox": mbox("takeout 1", "takeout 2"),
        "Work.mbox/mbox": mbox("apple"),
        "Work.mbox/table_of_contents": b"\0\1",
        "Local Folders/Inbox.sbd/Lists": mbox("thunderbird"),
        "Local Folders/Inbox.msf": b"// <!-- <mdb:mork -->",
        "one.eml": b"Subject: eml\n\nx\n",
    }
    messages = read_file(write_archive(tmp_path / "a", archive_format, files))
    assert folders_and_subjects(messages) == [
        ("All mail Including Spam and Trash", "takeout 1"),
        ("All mail Including Spam and Trash", "takeout 2"),
        ("Work", "apple"),
        ("Local Folders/Inbox/Lists", "thunderbird"),
        ("INBOX", "eml"),
    ]
    assert {message.reason for message in messages if message.raw is None} == {UNKNOWN_FILE}
    assert sum(message.raw is None for message in messages) == 3


@pytest.mark.parametrize("archive_format", ["zip", "stored zip", "tar"])
def test_reading_resumes_inside_an_mbox(tmp_path: Path, archive_format: str) -> None:
    subjects = [f"{number}" for number in range(9)]
    files = {
        "first.eml": b"Subject: eml\n\nx\n",
        "a.mbox": mbox(*subjects, body=bytes(range(32, 127)) * 900 + b"\n"),
        "b.mbox": mbox(*subjects),
    }
    path = write_archive(tmp_path / "a", archive_format, files)
    messages = read_file(path)
    assert len(messages) == 19
    for read_count, message in enumerate(messages, 1):
        assert read_file(path, message.checkpoint) == messages[read_count:]
    progress = [message.progress for message in messages]
    assert progress == sorted(progress)
    assert progress[-1] <= path.stat().st_size


@pytest.mark.parametrize("prefix", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_blank_lines_and_line_ends_of_mbox_files(
    tmp_path: Path, prefix: bytes, line_end: bytes
) -> None:
    if line_end == b"\r" and b"\n" in prefix:
        prefix = b"\r"
    content = prefix + mbox("one", "two", "three").replace(b"\n", line_end)
    (tmp_path / "a.mbox").write_bytes(content)
    (tmp_path / "a.zip").write_bytes(zip_file({"INBOX.mbox": content}))
    for path in (tmp_path / "a.mbox", tmp_path / "a.zip"):
        messages = read_file(path)
        assert folders_and_subjects(messages) == [
            ("INBOX", "one"), ("INBOX", "two"), ("INBOX", "three")
        ]  # fmt: skip
        assert messages[0].raw == b"From: ann@example.net\r\nSubject: one\r\n\r\nx\r\n"
        for read_count, message in enumerate(messages, 1):
            assert read_file(path, message.checkpoint) == messages[read_count:]


def test_eml_file_with_cr_line_ends_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(b"Subject: one\rFrom: a@b.example\r\rx\r")
    (message,) = read_file(tmp_path / "a.eml")
    assert message.raw == b"Subject: one\r\nFrom: a@b.example\r\n\r\nx\r\n"


def test_files_of_macos_are_no_messages(tmp_path: Path) -> None:
    files = {
        "a.eml": b"Subject: a\n\nx\n",
        "__MACOSX/._a.eml": b"\0\5\x16\7",
        "__MACOSX/b.eml": b"Subject: b\n\nx\n",
        "Mail/._b.eml": b"\0\5\x16\7",
        "Mail/.DS_Store": b"\0\0\0\1Bud1",
    }
    for archive_format in ("zip", "tar"):
        messages = read_file(write_archive(tmp_path / "a", archive_format, files))
        assert [message.name for message in messages] == ["a.eml"]


def test_damaged_mbox_in_zip_is_reported_and_later_files_are_read(tmp_path: Path) -> None:
    content = zip_file(
        {"a.mbox": mbox("one", "two"), "b.eml": b"Subject: b\n\nx\n"}, zipfile.ZIP_STORED
    )
    (tmp_path / "a").write_bytes(content.replace(b"Subject: two", b"Subject: owt"))
    messages = read_file(tmp_path / "a")
    reasons = [message.reason for message in messages if message.reason]
    assert reasons == ["The ZIP archive is damaged: the entry differs from the directory."]
    assert folders_and_subjects(messages)[-1] == ("INBOX", "b")


def test_mbox_that_unpacks_to_too_many_bytes_is_refused(tmp_path: Path) -> None:
    content = zip_file({"a.mbox": mbox("one") + bytes(RATIO_ALLOWANCE * 2)})
    assert len(content) * MAX_COMPRESSION_RATIO < RATIO_ALLOWANCE
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DamagedArchiveError, match="100 times its size"):
        read_file(tmp_path / "a")


def test_long_line_that_begins_like_a_from_line_is_read_in_linear_time(tmp_path: Path) -> None:
    def read_mbox(word_count: int) -> Callable[[], object]:
        body = b"x\n\nFrom x " + b"a " * word_count + b"\n"
        path = tmp_path / f"{word_count}.mbox"
        path.write_bytes(mbox("one", body=body) + mbox("two"))
        assert folders_and_subjects(read_file(path)) == [("INBOX", "one"), ("INBOX", "two")]
        return lambda: read_file(path)

    assert_grows_with_size(read_mbox, large_size=80_000)


@pytest.mark.parametrize(
    ("line", "is_from_line"),
    [
        (b"From ann@example.net Mon Mar  2 09:30:00 2026", True),
        (b"From ann@example.net Mon Mar  2 2026", True),
        (b"From  9:30", True),
        (b"From x 2026", True),
        (b"From x ab2026", True),
        (b"From ann@example.net Mon Mar  2 09:30 +0100 remote from mx", True),
        (b"From x 026", False),
        (b"From x a9:30", False),
        (b"From now on 2026 is", False),
        (b"From 2026", False),
    ],
)
def test_lines_with_a_time_or_a_year_at_the_end_are_from_lines(
    tmp_path: Path, line: bytes, is_from_line: bool
) -> None:
    (tmp_path / "a.mbox").write_bytes(mbox("one") + line + b"\nSubject: two\n\nx\n")
    assert len(read_file(tmp_path / "a.mbox")) == 1 + is_from_line


def test_memory_for_a_message_with_short_lines_is_bounded_by_its_size(tmp_path: Path) -> None:
    body = b"ab\n" * 300_000
    (tmp_path / "a.mbox").write_bytes(mbox("one", body=body))
    tracemalloc.start()
    try:
        (message,) = read_file(tmp_path / "a.mbox")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.raw is not None
    assert message.raw.endswith(b"ab\r\n")
    assert peak_bytes < 8 * len(body)
