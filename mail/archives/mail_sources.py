"""Mail in files: an mbox, a Maildir, a folder of .eml files, or an archive of them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mail.archives import archive_reader, mbox_format
from mail.archives.archive_reader import Packed
from mail.archives.json_lines import Account
from mail.archives.source_message import (
    INBOX,
    Found,
    Unusable,
    dated,
    folder_of,
    maildir_flags,
    wired,
)
from mail.archives.zip_format import Broken

_FROM = re.compile(rb"From (\S*) .*?\b(\d{1,2}:\d{2}.*|.*\d{4})$")
_QUOTED = re.compile(rb"^>+From ")
_WHEN = re.compile(
    rb"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) +(?P<time>\d{1,2}:\d{2}(?::\d{2})?)"
    rb"(?: +[A-Z]{2,5})?(?: +(?P<zone>[+-]\d{4}))? +(?P<year>\d{4})(?: +(?P<behind>[+-]\d{4}))?"
)
_STATUS = re.compile(rb"^(?:X-)?Status:[ \t]*([A-Za-z]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_MBOX = {"R": "\\Seen", "F": "\\Flagged", "A": "\\Answered", "T": "\\Draft", "D": "\\Deleted"}
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_STEP = 1 << 20  # bytes of a line that are read at once
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
HEAD = 4096  # first bytes that show the format of a file
_NOT_MAIL = (
    "dovecot",
    "maildirfolder",
    "courier",
    "subscriptions",
)  # files of mail servers in a Maildir


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder that messages are read from.

    `total` counts bytes of a single file, else files.
    """

    path: Path
    kind: str  # mbox, maildir, eml, zip, tar or json
    total: int
    stamp: str  # changes when checkpoints of it may be invalid
    most: int = field(default=1 << 26)  # larger messages are skipped
    account: Account | None = None  # if the archive has an account record

    @property
    def whole(self) -> bool:
        """True if it is one file, so that checkpoints in it are offsets in bytes."""
        return self.kind not in ("maildir", "eml")


def source(path: Path, most: int) -> Source:
    """Return the mail source at a path.

    Raises UnusableMessageError if it has no mail, and OSError if it can't be read.
    """
    if path.is_dir():
        if _is_maildir(path) or any(_is_maildir(each) for each in path.iterdir() if each.is_dir()):
            return Source(path, "maildir", sum(1 for _ in _maildir_files(path, None)), "", most)
        total = sum(1 for _ in _eml_files(path, None))
        return Source(path, "eml", total, "", most)
    facts = path.stat()
    with path.open("rb") as file:
        kind = "eml" if path.suffix.lower() == ".eml" else known(file.read(HEAD))
    if kind == "eml":
        return Source(path, kind, 1, "", most)
    stamp = f"{facts.st_ino}.{facts.st_size}.{facts.st_mtime_ns}"
    if kind == "mbox":
        return Source(path, kind, facts.st_size, stamp, most)
    try:
        account = archive_reader.account_of(Packed(path, kind, most))
    except (Broken, Unusable) as problem:
        raise Unusable(str(problem)) from problem
    return Source(path, kind, facts.st_size, stamp, most, account)


def known(head: bytes) -> str:
    """Return the source format of a file's first bytes. Raises UnusableMessageError."""
    first = head.partition(b"\n")[0][:1000]
    if _FROM.match(first.rstrip()):
        return "mbox"
    if kind := archive_reader.kind_of(head):
        return kind
    if head.startswith(_PACKED):
        raise Unusable("compressed as a whole: unpack it once, into a tar or an mbox")
    if b":" in first and b"\0" not in first:
        return "eml"
    raise Unusable("neither an mbox file, nor a Maildir, nor an archive of mail that we know")


def messages(origin: Source, after: str | None) -> Iterator[Found]:
    """Yield all messages after a checkpoint, with one in memory at a time."""
    if origin.kind == "mbox":
        yield from _mbox(origin, int(after or 0))
    elif origin.kind in ("zip", "tar", "json"):
        yield from archive_reader.messages(Packed(origin.path, origin.kind, origin.most), after)
    elif origin.kind == "maildir":
        yield from _files(origin, _maildir_files(origin.path, after))
    else:
        yield from _files(origin, _eml_files(origin.path, after))


def _mbox(origin: Source, start: int) -> Iterator[Found]:
    with origin.path.open("rb") as file:
        file.seek(start)
        line = file.readline(_STEP)
        while line:
            begun, head = file.tell() - len(line), line
            lines, size, line = _until_next(file, origin.most)
            end = file.tell() - len(line)
            bare = Found(f"{origin.path.name}, at byte {begun}", INBOX, str(end), end)
            raw = mbox_format.exact(lines, head)
            if size > origin.most:
                yield bare.refused("larger than MERGANSER_MESSAGE_MAX")
            elif raw is None and not lines:
                yield bare.refused("empty")
            else:
                raw = wired(b"".join(lines)) if raw is None else raw
                yield _from_mbox(bare, head, raw)


def _until_next(file: IO[bytes], most: int) -> tuple[list[bytes], int, bytes]:
    """Return the unquoted lines up to the next From line, their size, and that line.

    A line longer than one read comes in several pieces; only the first one begins a line.
    """
    lines: list[bytes] = []
    size, blank, begins = 0, True, True
    while line := file.readline(_STEP):
        if blank and begins and line.startswith(b"From ") and _FROM.match(line.rstrip()):
            break
        blank = begins and line in (b"\n", b"\r\n")
        if begins and _QUOTED.match(line):
            line = line[1:]
        begins = line.endswith(b"\n")
        size += len(line)
        if size <= most:
            lines.append(line)
    if blank and lines and size <= most:
        size -= len(lines.pop())  # it belongs to the next From line, or to the file's end
    return lines, size, line


def _from_mbox(found: Found, head: bytes, raw: bytes) -> Found:
    """Return a message with the sender, time and flags of its From line and header."""
    known = _FROM.match(head.rstrip())
    sender = known[1].decode("utf-8", "replace") if known else ""
    header = raw[: raw.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in raw else raw[: 1 << 16]
    letters = b"".join(_STATUS.findall(header)).decode().upper()
    return found.with_message(
        raw,
        received_at=_asctime(head) or dated(header),
        sender=sender if "@" in sender else None,
        flags=[flag for letter, flag in _MBOX.items() if letter in letters],
    )


def _asctime(line: bytes) -> datetime | None:
    """Return the UTC time of a From line, None if it can't be read."""
    found = _WHEN.search(line)
    if found is None or found["month"] not in _MONTHS:
        return None
    zone = (found["zone"] or found["behind"] or b"+0000").decode()
    month = _MONTHS.index(found["month"]) + 1
    clock = found["time"].decode()
    text = f"{found['year'].decode()}-{month:02}-{int(found['day']):02} {clock}"
    try:
        form = "%Y-%m-%d %H:%M:%S %z" if clock.count(":") > 1 else "%Y-%m-%d %H:%M %z"
        return datetime.strptime(f"{text} {zone}", form).astimezone(UTC)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _File:
    """A message file of a Maildir or folder."""

    path: Path
    folder: str
    key: str  # does not change when flags in the file name change
    reason: str = ""


def _files(origin: Source, files: Iterator[_File]) -> Iterator[Found]:
    """Yield the message of each file, or the reason why it is skipped."""
    for number, file in enumerate(files, 1):
        name = str(file.path.relative_to(origin.path) if file.path != origin.path else file.path)
        bare = Found(name, file.folder, file.key, number)
        try:
            yield _from_file(origin, bare, file)
        except OSError as problem:
            reason = (problem.strerror or "cannot be read").lower()
            yield Found(bare.name, bare.folder, bare.after, number, reason=reason)
        except Unusable as problem:
            yield Found(bare.name, bare.folder, bare.after, number, reason=str(problem))


def _from_file(origin: Source, found: Found, file: _File) -> Found:
    """Raises UnusableMessageError or OSError if the file is no message."""
    if file.reason:
        raise Unusable(file.reason)
    facts = file.path.stat()
    if facts.st_size > origin.most:
        raise Unusable("larger than MERGANSER_MESSAGE_MAX")
    if not facts.st_size:
        raise Unusable("empty")
    raw = wired(file.path.read_bytes())
    if origin.kind == "maildir":
        received = datetime.fromtimestamp(facts.st_mtime, UTC)  # the Maildir's own rule
        flags = maildir_flags(file.path.name)
    else:
        received = dated(raw[: 1 << 16]) or datetime.fromtimestamp(facts.st_mtime, UTC)
        flags = []
    return Found(
        found.name, found.folder, found.after, found.at, raw, received_at=received, flags=flags
    )


def _is_maildir(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def _maildir_files(path: Path, after: str | None) -> Iterator[_File]:
    """Yield the messages of a Maildir and its folders in an order that renaming keeps."""
    for folder, place in sorted(_maildirs(path)):
        names: list[tuple[str, str, Path]] = []
        for part in ("cur", "new"):
            with os.scandir(place / part) as entries:
                names += [
                    (f"{folder}\0{each.name.partition(':2,')[0]}", each.name, place / part)
                    for each in entries
                    if not each.name.startswith(".") and each.is_file()
                ]
        for key, name, where in sorted(names):
            if after is None or key > after:
                yield _File(where / name, folder, key)


def _maildirs(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield mailbox path and directory of each Maildir: Maildir++ and nested ones."""
    for place, folders, _ in os.walk(path):
        folders[:] = [each for each in folders if each not in ("cur", "new", "tmp")]
        here = Path(place)
        if _is_maildir(here):
            yield folder_of(here.relative_to(path).parts), here


def _eml_files(path: Path, after: str | None) -> Iterator[_File]:
    """Yield the .eml files below a folder by path; other files get a skip reason."""
    if path.is_file():
        if after is None:
            yield _File(path, INBOX, path.name)
        return
    for place, folders, names in os.walk(path):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        here = Path(place)
        folder = "/".join(here.relative_to(path).parts) or INBOX
        for name in sorted(names):
            key = f"{'/'.join(here.relative_to(path).parts)}\0{name}"
            if name.startswith(".") or (after is not None and _order(key) <= _order(after)):
                continue
            other = "" if name.lower().endswith(".eml") else "not an .eml file"
            yield _File(here / name, folder, key, other)


def _order(key: str) -> tuple[list[str], str]:
    folder, _, name = key.partition("\0")
    return folder.split("/") if folder else [], name
