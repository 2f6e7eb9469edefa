"""A message in a source of mail, and how those who keep mail write what is known of it."""

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
    told: Told | None = None  # where an archive of ours tells of it

    def refused(self, reason: str) -> "Found":
        """The same, which cannot be brought in."""
        return replace(self, reason=reason)

    def with_message(self, raw: bytes, **facts: Any) -> "Found":
        """The same, read; what is known of it by field."""
        return replace(self, raw=raw, **facts)


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


def wired(raw: bytes) -> bytes:
    """The message with CRLF at its lines' ends, as mail has them, if the file has none at all."""
    return raw if b"\r\n" in raw else raw.replace(b"\n", b"\r\n")


def folder_of(parts: Sequence[str]) -> str:
    """The path of a mailbox, of its folders in a Maildir: Maildir++, nested or both."""
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


def maildir_flags(name: str) -> list[str]:
    """The flags that the name of a file in a Maildir tells of."""
    letters = name.rpartition(":2,")[2] if ":2," in name else ""
    return [flag for letter, flag in _MAILDIR.items() if letter in letters]
