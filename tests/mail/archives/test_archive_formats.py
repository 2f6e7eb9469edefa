"""Archives: what is put into them comes out byte for byte, and hostile ones harm nobody."""

import hashlib
import io
import mailbox
import struct
import tarfile
import tempfile
import zipfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mail.archives import archive_writer, json_lines, mbox_format, zip_format
from mail.archives.archive_reader import MAX_COMPRESSION_RATIO, RATIO_ALLOWANCE
from mail.archives.archive_writer import ArchiveState, ExportFormat
from mail.archives.json_lines import ExportedMessage, MessageRecord
from mail.archives.mail_sources import open_source, read_messages
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError
from mail.mailboxes.paths import validate_path
from models.errors import InvalidInput

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MOST = 1 << 20
FULL = [ExportFormat.EML_ZIP, ExportFormat.MAILDIR_TAR, ExportFormat.JSON]

pieces = some.sampled_from([
    b"From ", b">From ", b">>From x Thu Nov 20 22:11:51 2026", b"From a@b Thu Nov 20 22:11:51 2026",
    b"From a@b Thu Nov 20 22:11:51 2026 noeol", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\0",
    b"\xff\xfe", b"Subject: x", b"Status: RO", b"X-Keywords: a", b"PK\x05\x06", b".", b"", b" ",
])  # fmt: skip
raws = some.one_of(some.binary(max_size=200), some.lists(pieces, max_size=20).map(b"".join))
moments = some.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001 - it wants them so
    datetime(9998, 1, 1),  # noqa: DTZ001
    timezones=some.just(UTC),
)
letters = some.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
levels = some.one_of(
    some.text(letters, min_size=1, max_size=30),
    some.sampled_from(["..", ".", "a.b", "CON", "a\\b", "a:b", "&", "&-", "-", "~", "ä" * 200,
                       "merganser", "Maildir", "cur", "new", "x.eml", "a ", " a", "..."]),
)  # fmt: skip


@some.composite
def folders(draw: Any) -> str:
    depth = draw(some.sampled_from([1, 1, 2, 3, 128]))
    path = "/".join(draw(some.lists(levels, min_size=min(depth, 3), max_size=3)))
    if depth > 3:
        path = "/".join([path] * (depth // 3))[:20_000]
    try:
        return validate_path(path)
    except InvalidInput:
        return "INBOX"


@some.composite
def letters_out(draw: Any) -> ExportedMessage:
    raw = draw(raws)
    flags = draw(some.lists(some.sampled_from(
        ["\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "$Forwarded", "wörk", "a"]
    ), unique=True))  # fmt: skip
    told = MessageRecord(
        draw(folders()),
        draw(moments),
        flags,
        draw(some.none() | moments),
        draw(some.none() | some.dictionaries(some.text(letters, max_size=9), some.integers(0, 9))),
        draw(some.none() | some.emails()),
        draw(some.lists(some.emails(), max_size=2)),
        hashlib.sha256(raw).hexdigest(),
    )
    return ExportedMessage(raw, told, draw(some.integers(1, 1 << 62)), 0)


def whole(kind: ExportFormat, bag: list[ExportedMessage], together: int = 3) -> bytes:
    """The archive of these, written chunk by chunk, the state of each through a checkpoint."""
    state = ArchiveState()
    boxes = [{"path": each.record.mailbox} for each in bag]
    chunks = [
        archive_writer.start_archive(kind, state, {"mailboxes": boxes, "messages": len(bag)}, NOW)
    ]
    for at in range(0, len(bag), together):
        state = ArchiveState(**state.checkpoint())
        named = [
            ExportedMessage(each.raw, each.record, each.mailbox_id, at + nth)
            for nth, each in enumerate(bag[at : at + together], 1)
        ]
        chunks.append(archive_writer.write_messages(kind, state, named, NOW))
    last, end = archive_writer.finish_archive(kind, state)
    data = b"".join(each.data for each in chunks)
    directory = b"".join(each.directory for each in chunks)
    assert (state.offset, state.directory) == (len(data), len(directory))
    return data + last + directory + end


def files(content: bytes, kind: ExportFormat) -> dict[str, bytes]:
    """What others find in an archive of ours."""
    file = io.BytesIO(content)
    if kind is ExportFormat.EML_ZIP:
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(fileobj=file) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def read(content: bytes, after: str | None = None, most: int = MOST) -> list[SourceMessage]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return list(read_messages(open_source(Path(file.name), most), after))


def letter(raw: bytes) -> ExportedMessage:
    return ExportedMessage(
        raw, MessageRecord("INBOX", NOW, digest=hashlib.sha256(raw).hexdigest()), 7, 0
    )


def packed(*entries: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def tarred(*entries: tarfile.TarInfo, content: bytes = b"Subject: x\n\nx\n") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in entries:
            one.size = len(content) if one.isreg() else 0
            archive.addfile(one, io.BytesIO(content) if one.isreg() else None)
    return file.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "/etc/passwd"
    return made


# there and back


@given(some.lists(letters_out(), max_size=8), some.sampled_from(FULL))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_an_archive_is_told_comes_back_and_every_byte(
    bag: list[ExportedMessage], kind: ExportFormat
) -> None:
    content = whole(kind, bag)
    found = read(content)
    assert [each.raw for each in found] == [each.raw for each in bag]
    assert [each.record for each in found] == [each.record for each in bag]
    assert [each.folder for each in found] == [each.record.mailbox for each in bag]
    for done, each in enumerate(found, 1):  # at each of its messages it is gone on with
        rest = read(content, each.checkpoint)
        assert [(one.raw, one.checkpoint) for one in rest] == [
            (one.raw, one.checkpoint) for one in found[done:]
        ]


@given(some.lists(raws, max_size=8), moments)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_mbox_of_ours_gives_back_every_byte(bag: list[bytes], at: datetime) -> None:
    at = at.replace(microsecond=0)
    content = b"".join(mbox_format.mbox_entry(raw, "a@example.org", at) for raw in bag)
    found = read(content) if bag else []
    assert [each.raw for each in found] == bag
    assert {each.received_at for each in found} <= {at}
    for done, each in enumerate(found, 1):
        assert [one.raw for one in read(content, each.checkpoint)] == bag[done:]


@given(some.lists(letters_out(), min_size=1, max_size=6), some.sampled_from(FULL[:2]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_other_programs_read_what_we_write(bag: list[ExportedMessage], kind: ExportFormat) -> None:
    there = files(whole(kind, bag), kind)
    mail = [raw for name, raw in there.items() if not name.startswith(json_lines.RECORDS_FOLDER)]
    assert mail == [each.raw for each in bag]
    for name in there:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert len(name.encode()) < 250


def test_other_programs_read_our_mailbox_file(tmp_path: Path) -> None:
    raw = b"Subject: x\n\nFrom here\n>From there\n"
    (tmp_path / "a").write_bytes(mbox_format.mbox_entry(raw, "a@b.example", NOW) * 2)
    with closing(mailbox.mbox(tmp_path / "a")) as box:
        one, two = box
    assert one["Subject"] == two["Subject"] == "x"
    assert one.get_from() == "a@b.example Tue Jan  1 00:00:00 2030 asis"


def test_what_others_have_packed_is_read_by_its_names() -> None:
    raw = b"Subject: x\nDate: Tue, 6 Jan 2026 10:00:00 +0000\n\nx\n"
    content = packed(("Archive/2019/a.eml", raw), ("b.EML", raw), ("notes.txt", b"x"))
    one, two, other = read(content)
    assert (one.folder, two.folder) == ("Archive/2019", "INBOX")
    assert one.raw == raw.replace(b"\n", b"\r\n")
    assert one.received_at == datetime(2026, 1, 6, 10, tzinfo=UTC)
    assert (other.raw, other.reason) == (None, "neither an .eml file nor one of a Maildir")
    maildir = tarred(
        info("Maildir/cur/1:2,FS"), info("Maildir/.Sent.&ZeVnLIqe-/new/2"), info("Old/cur/3:2,")
    )
    one, two, three = read(maildir)
    assert [each.folder for each in (one, two, three)] == ["INBOX", "Sent/日本語", "Old"]
    assert set(one.flags) == {"\\Flagged", "\\Seen"}


# what is hostile


@pytest.mark.parametrize("name", ["/etc/a.eml", "../a.eml", "a/../../b.eml", "a//b.eml"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    assert [each.reason for each in read(packed((name, b"Subject: x\n\nx")))] == [
        "a name that leads out of the archive"
    ]
    (found,) = read(tarred(info(name)))
    assert found.raw is None


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_file_is_refused(kind: bytes) -> None:
    (found,) = read(tarred(info("cur/a.eml", kind)))
    assert (found.raw, found.reason) == (None, "not a file")


def test_a_link_in_a_zip_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a.eml")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert [each.reason for each in read(file.getvalue())] == ["not a file"]


def test_a_bomb_goes_off_nowhere() -> None:
    one = packed(("a.eml", bytes(50 << 20)))
    assert [each.reason for each in read(one)] == ["larger than MERGANSER_MESSAGE_MAX"]
    many = packed(*((f"{n}.eml", b"Subject: x\n\n" + bytes(1 << 20)) for n in range(300)))
    assert len(many) * MAX_COMPRESSION_RATIO + RATIO_ALLOWANCE < 300 << 20
    with pytest.raises(DamagedArchiveError, match="100 times its size"):
        read(many, most=2 << 20)


def test_entries_that_share_their_bytes_are_refused() -> None:
    local, told = zip_format.zip_entry("a.eml", b"Subject: x\n\nx\n", NOW, 0)
    content = local + told * 2 + zip_format.end_of_directory(2, 2 * len(told), len(local))
    with pytest.raises(DamagedArchiveError, match="lie in each other"):
        read(content)


def test_claims_of_sizes_are_not_believed() -> None:
    local, told = zip_format.zip_entry("a.eml", b"Subject: x\n\nx\n", NOW, 0)
    for at in (20, 24):  # packed, and not
        huge = told[:at] + struct.pack("<I", (10 << 30) & 0xFFFFFFFE) + told[at + 4 :]
        content = local + huge + zip_format.end_of_directory(1, len(huge), len(local))
        try:
            (found,) = read(content)
        except (DamagedArchiveError, UnusableMessageError):
            continue
        assert found.raw is None
    entry = bytearray(tarred(info("cur/a")))
    entry[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    entry[148:156] = b"%06o\0 " % (sum(entry[:148]) + 8 * 32 + sum(entry[156:512]))
    with pytest.raises(UnusableMessageError, match="cut off"):
        read(bytes(entry))


@pytest.mark.parametrize("kind", FULL)
def test_an_archive_that_was_cut_off_says_so(kind: ExportFormat) -> None:
    content = whole(kind, [letter(f"Subject: {n}\r\n\r\nx".encode()) for n in range(5)])
    assert len(read(content)) == 5
    step = 97
    for cut in range(512, len(content) - (1024 if kind is ExportFormat.MAILDIR_TAR else 1), step):
        with pytest.raises((DamagedArchiveError, UnusableMessageError)):
            read(content[:cut])


@given(some.sampled_from(FULL), some.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_told_or_does_no_harm(kind: ExportFormat, data: Any) -> None:
    bag = [letter(f"Subject: {n}\r\n\r\nx".encode()) for n in range(3)]
    content = bytearray(whole(kind, bag))
    for _ in range(data.draw(some.integers(1, 4))):
        content[data.draw(some.integers(0, len(content) - 1))] = data.draw(some.integers(0, 255))
    try:
        found = read(bytes(content))
    except (DamagedArchiveError, UnusableMessageError):
        return
    assert {each.raw for each in found if each.record and each.record.digest} <= {
        b.raw for b in bag
    }


@given(some.binary(max_size=3000))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_anything_else_is_no_archive(content: bytes) -> None:
    for begin in (b"", b"PK\x03\x04", b"{", b"PK\x05\x06"):
        try:
            read(begin + content)
        except (DamagedArchiveError, UnusableMessageError):
            continue


def test_a_directory_of_more_than_there_is_is_refused() -> None:
    local, told = zip_format.zip_entry("a.eml", b"Subject: x\n\nx\n", NOW, 0)
    with pytest.raises(UnusableMessageError, match="outside"):
        read(local + told + zip_format.end_of_directory(1, 1 << 30, len(local)))
    far = (
        local + told + zip_format.end_of_directory(70_000, len(told), len(local))
    )  # a number of its own field
    assert len(read(far)) == 1


def test_far_places_are_written_in_wide_fields() -> None:
    _, told = zip_format.zip_entry("a.eml", b"x", NOW, 5 << 30)
    end = zip_format.end_of_directory(1, len(told), 5 << 30)
    assert zip_format.END64 in end
    assert struct.pack("<Q", 5 << 30) in told


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"receivedAt": NOW}, "mailbox and receivedAt are not told of it"),
        ({"mailbox": "a", "receivedAt": "yesterday"}, "a time that is told of it is none"),
        ({"mailbox": "a", "receivedAt": NOW, "flags": 5}, "its flags, or recipients, are no lists"),
        ({"mailbox": "a", "receivedAt": NOW, "metaData": []}, "its metaData is no object"),
        ({"mailbox": "a", "receivedAt": NOW, "sha256": "00"}, "damaged: it has another digest"),
        ({"mailbox": "a", "receivedAt": NOW, "source": "?"}, "its source is not base64"),
    ],
)
def test_a_record_that_is_none_is_told_of(record: dict[str, Any], reason: str) -> None:
    account = json_lines.json_line({"kind": "account", "format": "merganser", "version": 1})
    line = json_lines.json_line({"kind": "message", "source": "eA==", **record})
    (found,) = read(account + line + json_lines.json_line({"kind": "end"}))
    assert found.raw is None
    assert found.reason.startswith(reason)


def test_an_archive_of_another_version_is_refused() -> None:
    for version in (2, None, "1"):
        line = json_lines.json_line({"kind": "account", "format": "merganser", "version": version})
        with pytest.raises(UnusableMessageError, match="another format"):
            read(line)


def test_what_is_compressed_as_a_whole_says_what_to_do() -> None:
    with pytest.raises(UnusableMessageError, match="unpack it"):
        read(b"\x1f\x8b\x08" + bytes(500))
