"""Archive formats: round trips keep every byte, and hostile archives do no harm."""

import hashlib
import io
import mailbox
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail.archives import archive_writer, json_lines, mbox_format, tar_format, zip_format
from mail.archives.archive_reader import MAX_COMPRESSION_RATIO, RATIO_ALLOWANCE
from mail.archives.archive_writer import ArchiveState, ExportFormat
from mail.archives.json_lines import ExportedMessage, MessageRecord
from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError
from mail.mailboxes.paths import validate_path
from models.errors import InvalidInput
from tests.support.growth import assert_grows_with_size
from tests.support.run_scope import RUNS_ALL_TESTS

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MAX_MESSAGE_SIZE = 1 << 20
EXPORT_FORMATS = [ExportFormat.EML_ZIP, ExportFormat.MAILDIR_TAR, ExportFormat.JSON]

mbox_fragments = st.sampled_from([
    b"From ", b">From ", b">>From x Thu Nov 20 22:11:51 2026", b"From a@b Thu Nov 20 22:11:51 2026",
    b"From a@b Thu Nov 20 22:11:51 2026 noeol", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\0",
    b"\xff\xfe", b"Subject: x", b"Status: RO", b"X-Keywords: a", b"PK\x05\x06", b".", b"", b" ",
])  # fmt: skip
raw_messages = st.one_of(
    st.binary(max_size=200), st.lists(mbox_fragments, max_size=20).map(b"".join)
)
datetimes = st.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001 - hypothesis requires naive limits
    datetime(9998, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
printable_characters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
mailbox_names = st.one_of(
    st.text(printable_characters, min_size=1, max_size=30),
    st.sampled_from(["..", ".", "a.b", "CON", "a\\b", "a:b", "&", "&-", "-", "~", "ä" * 200,
                       "merganser", "Maildir", "cur", "new", "x.eml", "a ", " a", "..."]),
)  # fmt: skip


@st.composite
def mailbox_paths(draw: Any) -> str:
    depth = draw(st.sampled_from([1, 1, 2, 3, 128]))
    path = "/".join(draw(st.lists(mailbox_names, min_size=min(depth, 3), max_size=3)))
    if depth > 3:
        path = "/".join([path] * (depth // 3))[:20_000]
    try:
        return validate_path(path)
    except InvalidInput:
        return "INBOX"


@st.composite
def exported_messages(draw: Any) -> ExportedMessage:
    raw = draw(raw_messages)
    flags = draw(st.lists(st.sampled_from(
        ["\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "$Forwarded", "wörk", "a"]
    ), unique=True))  # fmt: skip
    record = MessageRecord(
        draw(mailbox_paths()),
        draw(datetimes),
        flags,
        draw(st.none() | datetimes),
        draw(
            st.none()
            | st.dictionaries(st.text(printable_characters, max_size=9), st.integers(0, 9))
        ),
        draw(st.none() | st.emails()),
        draw(st.lists(st.emails(), max_size=2)),
        hashlib.sha256(raw).hexdigest(),
    )
    return ExportedMessage(raw, record, draw(st.integers(1, 1 << 62)), 0)


def write_archive(
    export_format: ExportFormat, messages: list[ExportedMessage], chunk_size: int = 3
) -> bytes:
    """Write an archive in chunks. The state passes through a checkpoint before each chunk."""
    state = ArchiveState()
    mailboxes = [{"path": message.record.mailbox} for message in messages]
    chunks = [
        archive_writer.encode_account_chunk_and_advance_state(
            export_format, state, {"mailboxes": mailboxes, "messages": len(messages)}, NOW
        )
    ]
    for start in range(0, len(messages), chunk_size):
        state = ArchiveState(**state.checkpoint())
        numbered_messages = [
            ExportedMessage(message.raw, message.record, message.mailbox_id, start + number)
            for number, message in enumerate(messages[start : start + chunk_size], 1)
        ]
        chunks.append(
            archive_writer.encode_messages_chunk_and_advance_state(
                export_format, state, numbered_messages, NOW
            )
        )
    last_data, end_records = archive_writer.archive_and_directory_end(export_format, state)
    data = b"".join(message.data for message in chunks)
    directory = b"".join(message.directory for message in chunks)
    assert (state.offset, state.directory) == (len(data), len(directory))
    return data + last_data + directory + end_records


def archive_members(content: bytes, export_format: ExportFormat) -> dict[str, bytes]:
    """Members of an archive by name, read with the standard library."""
    file = io.BytesIO(content)
    if export_format is ExportFormat.EML_ZIP:
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(fileobj=file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def read_archive(
    content: bytes, after: str | None = None, max_message_size: int = MAX_MESSAGE_SIZE
) -> list[SourceMessage]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return list(
            read_source_messages_and_skips(
                inspect_mail_source(Path(file.name), max_message_size), after
            )
        )


def exported_message(raw: bytes) -> ExportedMessage:
    return ExportedMessage(
        raw, MessageRecord("INBOX", NOW, digest=hashlib.sha256(raw).hexdigest()), 7, 0
    )


def zip_bytes(*entries: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def tar_bytes(*entries: tarfile.TarInfo, content: bytes = b"Subject: x\n\nx\n") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    return file.getvalue()


def tar_entry(name: str, entry_type: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = entry_type, "/etc/passwd"
    return entry


@given(st.lists(exported_messages(), max_size=8), st.sampled_from(EXPORT_FORMATS))
@settings(max_examples=150 if RUNS_ALL_TESTS else 75, suppress_health_check=list(HealthCheck))
def test_archive_round_trip_keeps_bytes_records_and_checkpoints(
    messages: list[ExportedMessage], export_format: ExportFormat
) -> None:
    content = write_archive(export_format, messages)
    read_back = read_archive(content)
    assert [message.raw for message in read_back] == [message.raw for message in messages]
    assert [message.record for message in read_back] == [message.record for message in messages]
    assert [message.folder for message in read_back] == [
        message.record.mailbox for message in messages
    ]
    # Reading can resume after each message.
    for done_count, message in enumerate(read_back, 1):
        rest = read_archive(content, message.checkpoint)
        assert [(later_message.raw, later_message.checkpoint) for later_message in rest] == [
            (later_message.raw, later_message.checkpoint)
            for later_message in read_back[done_count:]
        ]


@given(st.lists(raw_messages, max_size=8), datetimes)
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_mbox_round_trip_keeps_every_byte(messages: list[bytes], received_at: datetime) -> None:
    received_at = received_at.replace(microsecond=0)
    content = b"".join(
        mbox_format.encode_mbox_entry(raw, "a@example.org", received_at) for raw in messages
    )
    read_back = read_archive(content) if messages else []
    assert [message.raw for message in read_back] == messages
    assert {message.received_at for message in read_back} <= {received_at}
    for done_count, message in enumerate(read_back, 1):
        assert [
            later_message.raw for later_message in read_archive(content, message.checkpoint)
        ] == messages[done_count:]


@given(st.lists(exported_messages(), min_size=1, max_size=6), st.sampled_from(EXPORT_FORMATS[:2]))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_standard_library_reads_our_archives(
    messages: list[ExportedMessage], export_format: ExportFormat
) -> None:
    members = archive_members(write_archive(export_format, messages), export_format)
    stored_messages = [
        raw for name, raw in members.items() if not name.startswith(json_lines.RECORDS_FOLDER)
    ]
    assert stored_messages == [message.raw for message in messages]
    for name in members:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert len(name.encode()) < 250


def test_standard_library_reads_our_mbox_file(tmp_path: Path) -> None:
    raw = b"Subject: x\n\nFrom here\n>From there\n"
    (tmp_path / "a").write_bytes(mbox_format.encode_mbox_entry(raw, "a@b.example", NOW) * 2)
    with closing(mailbox.mbox(tmp_path / "a")) as mbox_file:
        first, second = mbox_file
    assert first["Subject"] == second["Subject"] == "x"
    assert first.get_from() == "a@b.example Tue Jan  1 00:00:00 2030 asis"


def test_foreign_zip_and_maildir_are_read_by_file_names() -> None:
    raw = b"Subject: x\nDate: Tue, 6 Jan 2026 10:00:00 +0000\n\nx\n"
    content = zip_bytes(("Archive/2019/a.eml", raw), ("b.EML", raw), ("notes.txt", b"x"))
    first, second, other = read_archive(content)
    assert (first.folder, second.folder) == ("Archive/2019", "INBOX")
    assert first.raw == raw.replace(b"\n", b"\r\n")
    assert first.received_at == datetime(2026, 1, 6, 10, tzinfo=UTC)
    assert (other.raw, other.reason) == (
        None,
        "The file is neither an .eml file, an mbox file nor a file of a Maildir.",
    )
    maildir = tar_bytes(
        tar_entry("Maildir/cur/1:2,FS"),
        tar_entry("Maildir/.Sent.&ZeVnLIqe-/new/2"),
        tar_entry("Old/cur/3:2,"),
    )
    first, second, third = read_archive(maildir)
    assert [message.folder for message in (first, second, third)] == ["INBOX", "Sent/日本語", "Old"]
    assert set(first.flags) == {"\\Flagged", "\\Seen"}


@pytest.mark.parametrize("name", ["/etc/a.eml", "../a.eml", "a/../../b.eml", "a//b.eml"])
def test_path_outside_of_archive_is_refused(name: str) -> None:
    assert [message.reason for message in read_archive(zip_bytes((name, b"Subject: x\n\nx")))] == [
        "The file name points outside of the archive."
    ]
    (message,) = read_archive(tar_bytes(tar_entry(name)))
    assert message.raw is None


@pytest.mark.parametrize(
    "entry_type",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_tar_entry_that_is_no_file_is_refused(entry_type: bytes) -> None:
    (message,) = read_archive(tar_bytes(tar_entry("cur/a.eml", entry_type)))
    assert (message.raw, message.reason) == (None, "The entry is not a file.")


def tar_with_pax_header(header: bytes) -> bytes:
    """Return a tar whose only entry has this extended header."""
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = tarfile.XHDTYPE, len(header)
    block = entry.tobuf(tarfile.USTAR_FORMAT) + header + bytes(-len(header) % tar_format.BLOCK)
    return block + tar_bytes(tar_entry("cur/a"))


@pytest.mark.parametrize("header", [b"9" * 5000 + b" a=\n", b"5012 size=" + b"9" * 5001 + b"\n"])
def test_tar_header_with_too_many_digits_is_refused(header: bytes) -> None:
    with pytest.raises(UnusableMessageError, match="can't be parsed"):
        read_archive(tar_with_pax_header(header))


def test_tar_header_with_many_records_is_read_in_linear_time() -> None:
    def read_header(record_count: int) -> Callable[[], object]:
        content = io.BytesIO(tar_with_pax_header(b"4 =\n" * record_count))
        return lambda: list(tar_format.read_tar_entries(content, 0))

    assert_grows_with_size(read_header, large_size=tar_format.MAX_EXTENSION_BYTES // 4)


def test_symbolic_link_in_zip_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a.eml")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert [message.reason for message in read_archive(file.getvalue())] == [
        "The entry is not a file."
    ]


def test_zip_bomb_is_refused() -> None:
    large_file_zip = zip_bytes(("a.eml", bytes(20 << 20)))
    assert [message.reason for message in read_archive(large_file_zip)] == [
        "The message is larger than MERGANSER_MESSAGE_MAX_SIZE."
    ]
    many_files_zip = zip_bytes(
        *((f"{n}.eml", b"Subject: x\n\n" + bytes(1 << 20)) for n in range(100))
    )
    assert len(many_files_zip) * MAX_COMPRESSION_RATIO + RATIO_ALLOWANCE < 100 << 20
    with pytest.raises(DamagedArchiveError, match="100 times its size"):
        read_archive(many_files_zip, max_message_size=2 << 20)


def test_overlapping_zip_entries_are_refused() -> None:
    local_entry, directory_entry = zip_format.local_and_directory_entry(
        "a.eml", b"Subject: x\n\nx\n", NOW, 0
    )
    content = (
        local_entry
        + directory_entry * 2
        + zip_format.directory_end_records(2, 2 * len(directory_entry), len(local_entry))
    )
    with pytest.raises(DamagedArchiveError, match="its entries overlap or are outside of the file"):
        read_archive(content)


def test_false_entry_sizes_are_refused() -> None:
    local_entry, directory_entry = zip_format.local_and_directory_entry(
        "a.eml", b"Subject: x\n\nx\n", NOW, 0
    )
    for offset in (20, 24):  # compressed size, uncompressed size
        huge_entry = (
            directory_entry[:offset]
            + struct.pack("<I", (10 << 30) & 0xFFFFFFFE)
            + directory_entry[offset + 4 :]
        )
        content = (
            local_entry
            + huge_entry
            + zip_format.directory_end_records(1, len(huge_entry), len(local_entry))
        )
        try:
            (message,) = read_archive(content)
        except (DamagedArchiveError, UnusableMessageError):
            continue
        assert message.raw is None
    entry = bytearray(tar_bytes(tar_entry("cur/a")))
    entry[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    entry[148:156] = b"%06o\0 " % (sum(entry[:148]) + 8 * 32 + sum(entry[156:512]))
    with pytest.raises(UnusableMessageError, match="truncated"):
        read_archive(bytes(entry))


def test_bytes_after_the_deflated_data_of_an_mbox_are_not_kept() -> None:
    mbox = mbox_format.encode_mbox_entry(b"Subject: x\r\n\r\n" + b"x\r\n" * 99, "a@b.example", NOW)
    local_entry, directory_entry = map(
        bytearray, zip_format.local_and_directory_entry("a.mbox", mbox, NOW, 0)
    )
    extra = bytes(8 << 20)
    packed_size, size = struct.unpack_from("<II", directory_entry, 20)
    struct.pack_into("<II", directory_entry, 20, packed_size + len(extra), size + 1)
    content = bytes(local_entry + extra + directory_entry)
    content += zip_format.directory_end_records(
        1, len(directory_entry), len(local_entry) + len(extra)
    )
    tracemalloc.start()
    try:
        (message,) = read_archive(content)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.reason == "The ZIP archive is damaged: the entry differs from the directory."
    assert peak_bytes < len(extra) // 2


@pytest.mark.parametrize("export_format", EXPORT_FORMATS)
def test_truncated_archive_is_refused(export_format: ExportFormat) -> None:
    content = write_archive(
        export_format, [exported_message(f"Subject: {n}\r\n\r\nx".encode()) for n in range(5)]
    )
    assert len(read_archive(content)) == 5
    step = 97
    for length in range(
        512, len(content) - (1024 if export_format is ExportFormat.MAILDIR_TAR else 1), step
    ):
        with pytest.raises((DamagedArchiveError, UnusableMessageError)):
            read_archive(content[:length])


@given(st.sampled_from(EXPORT_FORMATS), st.data())
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_damaged_archive_is_refused_or_read_without_wrong_messages(
    export_format: ExportFormat, data: Any
) -> None:
    messages = [exported_message(f"Subject: {n}\r\n\r\nx".encode()) for n in range(3)]
    content = bytearray(write_archive(export_format, messages))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_back = read_archive(bytes(content))
    except (DamagedArchiveError, UnusableMessageError):
        return
    assert {message.raw for message in read_back if message.record and message.record.digest} <= {
        original.raw for original in messages
    }


@given(st.binary(max_size=3000))
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_random_bytes_raise_only_archive_errors(content: bytes) -> None:
    for prefix in (b"", b"PK\x03\x04", b"{", b"PK\x05\x06"):
        try:
            read_archive(prefix + content)
        except (DamagedArchiveError, UnusableMessageError):
            continue


def test_zip_directory_larger_than_the_file_is_refused() -> None:
    local_entry, directory_entry = zip_format.local_and_directory_entry(
        "a.eml", b"Subject: x\n\nx\n", NOW, 0
    )
    with pytest.raises(UnusableMessageError, match="outside"):
        read_archive(
            local_entry
            + directory_entry
            + zip_format.directory_end_records(1, 1 << 30, len(local_entry))
        )
    # The entry count needs a ZIP64 field.
    many_entries = (
        local_entry
        + directory_entry
        + zip_format.directory_end_records(70_000, len(directory_entry), len(local_entry))
    )
    assert len(read_archive(many_entries)) == 1


def test_zip64_fields_are_written_for_large_offsets() -> None:
    _, directory_entry = zip_format.local_and_directory_entry("a.eml", b"x", NOW, 5 << 30)
    end = zip_format.directory_end_records(1, len(directory_entry), 5 << 30)
    assert zip_format.END64 in end
    assert struct.pack("<Q", 5 << 30) in directory_entry


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"receivedAt": NOW}, "`mailbox` and `receivedAt` of the message are missing."),
        ({"mailbox": "a", "receivedAt": "yesterday"}, "A time of the message is invalid."),
        (
            {"mailbox": "a", "receivedAt": NOW, "flags": 5},
            "The flags or recipients of the message are not lists of strings.",
        ),
        (
            {"mailbox": "a", "receivedAt": NOW, "metadata": []},
            "`metadata` of the message is not an object.",
        ),
        (
            {"mailbox": "a", "receivedAt": NOW, "sha256": "00"},
            "The message is damaged: its digest differs from the manifest.",
        ),
        (
            {"mailbox": "a", "receivedAt": NOW, "source": "?"},
            "The source of the message is not base64.",
        ),
    ],
)
def test_invalid_record_is_reported(record: dict[str, Any], reason: str) -> None:
    account = json_lines.json_line({"kind": "account", "format": "merganser", "version": 1})
    line = json_lines.json_line({"kind": "message", "source": "eA==", **record})
    (message,) = read_archive(account + line + json_lines.json_line({"kind": "end"}))
    assert message.raw is None
    assert message.reason.startswith(reason)


def test_archive_of_another_version_is_refused() -> None:
    for version in (2, None, "1"):
        line = json_lines.json_line({"kind": "account", "format": "merganser", "version": version})
        with pytest.raises(UnusableMessageError, match="another format"):
            read_archive(line)


def test_gzip_file_is_refused_with_a_hint() -> None:
    with pytest.raises(UnusableMessageError, match="decompress it"):
        read_archive(b"\x1f\x8b\x08" + bytes(500))
