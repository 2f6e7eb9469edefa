"""The mbox format (RFC 4155) with mboxrd quoting, so that messages are restored exactly.

A line that begins with any number of `>` and From gets one more `>`. If reading would change a
message, words after the date of its From line say so: `asis` keeps the line ends and the lines
before the header, `noeol` means that the last line has no line end.
"""

import re
from datetime import UTC, datetime

from mail.archives.foreign_message import header_start_or_none

AS_IS, NO_EOL = b"asis", b"noeol"
_FROM_LINE = re.compile(rb"^(>*From )", re.MULTILINE)
_WHITESPACE = re.compile(r"\s")
_EXACT_WORDS = re.compile(rb"\d{4}((?: (?:asis|noeol))+)\r?\n$")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def encode_mbox_entry(raw: bytes, sender: str | None, received_at: datetime) -> bytes:
    """Return a message as an entry of an mbox file."""
    ends_with_newline = raw.endswith(b"\n")
    keeps_line_ends = b"\r\n" in raw or b"\n" not in raw
    words = [] if keeps_line_ends and header_start_or_none(raw) == 0 else [AS_IS]
    words += [] if ends_with_newline else [NO_EOL]
    end = b"\n" if ends_with_newline else b"\n\n"
    return (
        b" ".join([encode_mbox_from_line(sender, received_at), *words])
        + b"\n"
        + _FROM_LINE.sub(rb">\1", raw)
        + end
    )


def encode_mbox_from_line(sender: str | None, received_at: datetime) -> bytes:
    """Return a From line without line end.

    It can't contain a sender with white space in a quoted local part.
    """
    name = sender if sender and not _WHITESPACE.search(sender) else "MAILER-DAEMON"
    received_at = received_at.astimezone(UTC)
    day, month = _DAYS[received_at.weekday()], _MONTHS[received_at.month - 1]
    when = f"{day} {month} {received_at.day:2} {received_at:%H:%M:%S} {received_at.year:04}"
    return f"From {name} {when}".encode(errors="replace")


def exact_words(from_line: bytes) -> list[bytes]:
    """Return the words after the date of a From line that this server wrote."""
    match = _EXACT_WORDS.search(from_line)
    return match[1].split() if match else []


def restore_exact_message_or_none(raw: bytes, from_line: bytes) -> bytes | None:
    """Return the exact message of an entry that this server wrote, else None."""
    exact_text = exact_words(from_line)
    if not exact_text:
        return None
    return raw.removesuffix(b"\n") if NO_EOL in exact_text else raw
