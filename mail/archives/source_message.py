"""A message of a mail source, and the conventions of Maildir and header fields."""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from mail.archives.json_lines import MessageRecord
from models.mailboxes.tables import SpecialUse

INBOX = "INBOX"
_FLAGS_BY_LETTER = {
    "S": "\\Seen",
    "F": "\\Flagged",
    "R": "\\Answered",
    "D": "\\Draft",
    "T": "\\Deleted",
}
_FLAGS_BY_LETTER |= {"P": "$Forwarded"}
_DATE_FIELD = re.compile(
    rb"^Date[ \t]*:[ \t]*(?:\r?\n[ \t]+)?(.*?)\r?$", re.IGNORECASE | re.MULTILINE
)
_BASE64_RUN = re.compile(r"&([A-Za-z0-9+,]*)-")


class UnusableMessageError(Exception):
    """An item of the source that is no message or can't be read. It is skipped."""


@dataclass(frozen=True, slots=True)
class SourceMessage:
    """A message of a source. If `raw` is None, it is skipped for a reason."""

    name: str  # for people: file, or mbox and number
    folder: str  # path of a mailbox
    checkpoint: str  # the checkpoint after this message
    progress: int  # bytes or files of the source up to here
    raw: bytes | None = None
    reason: str = ""
    received_at: datetime | None = None
    sender: str | None = None
    flags: Sequence[str] = ()
    record: MessageRecord | None = None  # of an archive of this server
    special_use: SpecialUse | None = None  # goes before `folder` if a mailbox here has it

    def with_skip_reason(self, reason: str) -> "SourceMessage":
        """Return the item with the reason why it is skipped."""
        return replace(self, reason=reason)

    def with_message(self, raw: bytes, **facts: Any) -> "SourceMessage":
        """Return the item with its message and the given fields."""
        return replace(self, raw=raw, **facts)


def parse_date_field_or_none(header: bytes) -> datetime | None:
    """Return the UTC time of the Date field, None if it is missing or invalid."""
    match = _DATE_FIELD.search(header)
    if match is None:
        return None
    try:
        parsed_date = parsedate_to_datetime(match[1].decode("ascii", "replace"))
        zoned = parsed_date if parsed_date.tzinfo else parsed_date.replace(tzinfo=UTC)
        return zoned.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def with_crlf(raw: bytes) -> bytes:
    """Return a message with CRLF line ends, unless it has a CRLF already.

    A CR is a line end only if the message has no LF.
    """
    if b"\r\n" in raw:
        return raw
    return raw.replace(b"\n" if b"\n" in raw else b"\r", b"\r\n")


def mailbox_path_from_maildir(directory_names: Sequence[str]) -> str:
    """Return the mailbox path of directories in a Maildir: Maildir++, nested or both."""
    levels: list[str] = []
    for part in directory_names:
        names = part[1:].split(".") if part.startswith(".") else [part]
        levels += [_decode_utf7(name) for name in names if name]
    return "/".join(levels) or INBOX


def _decode_utf7(name: str) -> str:
    """Decode modified UTF-7 (RFC 3501, section 5.1.3). An invalid name is not changed."""

    def decode_run(match: re.Match[str]) -> str:
        if not match[1]:
            return "&"
        text = match[1].replace(",", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("utf-16-be")

    try:
        return _BASE64_RUN.sub(decode_run, name)
    except ValueError:
        return name


def maildir_flags(file_name: str) -> list[str]:
    """Return the flags of a file name in a Maildir."""
    flag_letters = file_name.rpartition(":2,")[2] if ":2," in file_name else ""
    return [flag for flag_letter, flag in _FLAGS_BY_LETTER.items() if flag_letter in flag_letters]


def text_from_file_name(name: str) -> str:
    r"""Return a file name that databases can store: bytes that aren't UTF-8 become `\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")
