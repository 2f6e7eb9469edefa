"""Mail as other programs keep it: an mbox file, a Maildir, a folder of .eml files."""

import base64
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO

INBOX = "INBOX"
_FROM = re.compile(rb"From (\S*) .*?\b(\d{1,2}:\d{2}.*|.*\d{4})$")
_QUOTED = re.compile(rb"^>+From ")
_WHEN = re.compile(
    rb"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d{1,2}) +(?P<time>\d{1,2}:\d{2}(?::\d{2})?)"
    rb"(?: +[A-Z]{2,5})?(?: +(?P<zone>[+-]\d{4}))? +(?P<year>\d{4})(?: +(?P<behind>[+-]\d{4}))?"
)
_STATUS = re.compile(rb"^(?:X-)?Status:[ \t]*([A-Za-z]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_MAILDIR = {"S": "\\Seen", "F": "\\Flagged", "R": "\\Answered", "D": "\\Draft", "T": "\\Deleted"}
_MAILDIR |= {"P": "$Forwarded"}
_MBOX = {"R": "\\Seen", "F": "\\Flagged", "A": "\\Answered", "T": "\\Draft", "D": "\\Deleted"}
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")
_NOT_MAIL = ("dovecot", "maildirfolder", "courier", "subscriptions")  # what servers keep beside it


class Unusable(Exception):
    """A piece of the source that is no message, or cannot be read: skipped, and told of."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message, or, where `raw` is None, what had to be skipped and why."""

    name: str  # for people: file, or mbox and number
    folder: str  # path of a mailbox
    after: str  # what a checkpoint says once this is done
    at: int  # bytes, or files, of the source up to here
    raw: bytes | None = None
    reason: str = ""
    received_at: datetime | None = None
    sender: str | None = None
    flags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """Where mail is read from. `total` counts bytes of an mbox, else files."""

    path: Path
    kind: str  # mbox, maildir or eml
    total: int
    stamp: str  # changes when a place in it may have become another
    most: int = field(default=1 << 26)  # bytes of a message; larger ones are skipped


def source(path: Path, most: int) -> Source:
    """What lies at this path. Unusable where it is no mail, OSError where it cannot be read."""
    if path.is_dir():
        if _is_maildir(path) or any(_is_maildir(each) for each in path.iterdir() if each.is_dir()):
            return Source(path, "maildir", sum(1 for _ in _maildir_files(path, None)), "", most)
        total = sum(1 for _ in _eml_files(path, None))
        return Source(path, "eml", total, "", most)
    facts = path.stat()
    with path.open("rb") as file:
        first = file.readline(1000)
    if _FROM.match(first.rstrip()):
        stamp = f"{facts.st_ino}.{facts.st_size}.{facts.st_mtime_ns}"
        return Source(path, "mbox", facts.st_size, stamp, most)
    if path.suffix.lower() == ".eml" or b":" in first:
        return Source(path, "eml", 1, "", most)
    raise Unusable("neither an mbox file, nor a Maildir, nor a folder of .eml files")


def messages(origin: Source, after: str | None) -> Iterator[Found]:
    """All messages, behind the place `after` where one is given; one in memory at a time."""
    if origin.kind == "mbox":
        yield from _mbox(origin, int(after or 0))
    elif origin.kind == "maildir":
        yield from _files(origin, _maildir_files(origin.path, after))
    else:
        yield from _files(origin, _eml_files(origin.path, after))


def _mbox(origin: Source, start: int) -> Iterator[Found]:
    number = 0
    with origin.path.open("rb") as file:
        file.seek(start)
        line = file.readline()
        while line:
            number += 1
            begun, head = file.tell() - len(line), line
            lines, size, line = _until_next(file, origin.most)
            end = file.tell() - len(line)
            name = f"{origin.path.name}, at byte {begun}"
            if size > origin.most:
                reason = "larger than MERGANSER_MESSAGE_MAX"
                yield Found(name, INBOX, str(end), end, reason=reason)
            elif not lines:
                yield Found(name, INBOX, str(end), end, reason="empty")
            else:
                yield _from_mbox(Found(name, INBOX, str(end), end), head, wired(b"".join(lines)))


def _until_next(file: IO[bytes], most: int) -> tuple[list[bytes], int, bytes]:
    """The unquoted lines up to the next From line, their size, and that line."""
    lines: list[bytes] = []
    size, blank = 0, True
    while line := file.readline(1 << 20):
        if blank and line.startswith(b"From ") and _FROM.match(line.rstrip()):
            break
        blank = line in (b"\n", b"\r\n")
        if _QUOTED.match(line):
            line = line[1:]
        size += len(line)
        if size <= most:
            lines.append(line)
    if lines and size <= most and lines[-1] in (b"\n", b"\r\n"):
        size -= len(lines.pop())  # it belongs to the next From line, or to the file's end
    return lines, size, line


def _from_mbox(found: Found, head: bytes, raw: bytes) -> Found:
    known = _FROM.match(head.rstrip())
    sender = known[1].decode("utf-8", "replace") if known else ""
    header = raw[: raw.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in raw else raw[: 1 << 16]
    letters = b"".join(_STATUS.findall(header)).decode().upper()
    return Found(
        found.name,
        found.folder,
        found.after,
        found.at,
        raw,
        received_at=_asctime(head) or dated(header),
        sender=sender if "@" in sender else None,
        flags=[flag for letter, flag in _MBOX.items() if letter in letters],
    )


def _asctime(line: bytes) -> datetime | None:
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


def dated(header: bytes) -> datetime | None:
    """When the Date field says a message was written; None where it does not."""
    found = re.search(rb"^Date:[ \t]*(.*?)\r?$", header, re.IGNORECASE | re.MULTILINE)
    if found is None:
        return None
    try:
        written = parsedate_to_datetime(found[1].decode("ascii", "replace"))
        zoned = written if written.tzinfo else written.replace(tzinfo=UTC)
        return zoned.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    folder: str
    key: str  # its place in the order, whatever its flags become
    reason: str = ""


def _files(origin: Source, files: Iterator[_File]) -> Iterator[Found]:
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
        letters = file.path.name.rpartition(":2,")[2] if ":2," in file.path.name else ""
    else:
        received = dated(raw[: 1 << 16]) or datetime.fromtimestamp(facts.st_mtime, UTC)
        letters = ""
    flags = [flag for letter, flag in _MAILDIR.items() if letter in letters]
    return Found(
        found.name, found.folder, found.after, found.at, raw, received_at=received, flags=flags
    )


def wired(raw: bytes) -> bytes:
    """The message with CRLF at its lines' ends, as mail has them, if the file has none at all."""
    return raw if b"\r\n" in raw else raw.replace(b"\n", b"\r\n")


def _is_maildir(path: Path) -> bool:
    return (path / "cur").is_dir() and (path / "new").is_dir()


def _maildir_files(path: Path, after: str | None) -> Iterator[_File]:
    """The messages of a Maildir and its folders, in an order that renaming files leaves."""
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
    """The path of a mailbox and its place, for each folder: Maildir++ and nested ones."""
    for place, folders, _ in os.walk(path):
        folders[:] = [each for each in folders if each not in ("cur", "new", "tmp")]
        here = Path(place)
        if _is_maildir(here):
            yield _folder(here.relative_to(path).parts), here


def _folder(parts: Sequence[str]) -> str:
    levels: list[str] = []
    for part in parts:
        names = part[1:].split(".") if part.startswith(".") else [part]
        levels += [_decoded(name) for name in names if name]
    return "/".join(levels) or INBOX


def _decoded(name: str) -> str:
    """The name of a folder, written in modified UTF-7 (RFC 3501, section 5.1.3)."""

    def letters(found: re.Match[str]) -> str:
        if not found[1]:
            return "&"
        text = found[1].replace(",", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("utf-16-be")

    try:
        return _SHIFTED.sub(letters, name)
    except ValueError:
        return name


def _eml_files(path: Path, after: str | None) -> Iterator[_File]:
    """The .eml files of a folder and those below it, by path; what is none has a reason."""
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
