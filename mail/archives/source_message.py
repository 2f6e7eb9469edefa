"""A message of a mail source, and the conventions of Maildir and header fields."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from mail.archives.json_lines import Told

INBOX = "INBOX"
_MAILDIR = {"S": "\\Seen", "F": "\\Flagged", "R": "\\Answered", "D": "\\Draft", "T": "\\Deleted"}
_MAILDIR |= {"P": "$Forwarded"}
_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")


class Unusable(Exception):
    """An item of the source that is no message or can't be read. It is skipped."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message of a source. If `raw` is None, it is skipped for a reason."""

    name: str  # for people: file, or mbox and number
    folder: str  # path of a mailbox
    after: str  # the checkpoint after this message
    at: int  # bytes or files of the source up to here
    raw: bytes | None = None
    reason: str = ""
    received_at: datetime | None = None
    sender: str | None = None
    flags: Sequence[str] = ()
    told: Told | None = None  # of an archive of this server

    def refused(self, reason: str) -> "Found":
        """Return the item with the reason why it is skipped."""
        return replace(self, reason=reason)

    def with_message(self, raw: bytes, **facts: Any) -> "Found":
        """Return the item with its message and the given fields."""
        return replace(self, raw=raw, **facts)


def dated(header: bytes) -> datetime | None:
    """Return the UTC time of the Date field, None if it is missing or invalid."""
    found = re.search(rb"^Date:[ \t]*(.*?)\r?$", header, re.IGNORECASE | re.MULTILINE)
    if found is None:
        return None
    try:
        written = parsedate_to_datetime(found[1].decode("ascii", "replace"))
        zoned = written if written.tzinfo else written.replace(tzinfo=UTC)
        return zoned.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def wired(raw: bytes) -> bytes:
    """Return a message with CRLF line ends, unless it has a CRLF already."""
    return raw if b"\r\n" in raw else raw.replace(b"\n", b"\r\n")


def folder_of(parts: Sequence[str]) -> str:
    """Return the mailbox path of directories in a Maildir: Maildir++, nested or both."""
    levels: list[str] = []
    for part in parts:
        names = part[1:].split(".") if part.startswith(".") else [part]
        levels += [_decoded(name) for name in names if name]
    return "/".join(levels) or INBOX


def _decoded(name: str) -> str:
    """Decode modified UTF-7 (RFC 3501, section 5.1.3). An invalid name is not changed."""

    def letters(found: re.Match[str]) -> str:
        if not found[1]:
            return "&"
        text = found[1].replace(",", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("utf-16-be")

    try:
        return _SHIFTED.sub(letters, name)
    except ValueError:
        return name


def maildir_flags(name: str) -> list[str]:
    """Return the flags of a file name in a Maildir."""
    letters = name.rpartition(":2,")[2] if ":2," in name else ""
    return [flag for letter, flag in _MAILDIR.items() if letter in letters]
