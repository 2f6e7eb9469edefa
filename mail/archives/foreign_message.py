"""Messages that other programs wrote to files: the start of the header and the line ends."""

import re

from mail.archives.source_message import UnusableMessageError, with_crlf
from mail.mime.header_fields import UTF8_BOM

MAX_LINES_BEFORE_HEADER = 10
_FIELD_START = re.compile(rb"[!-9;-~]+[ \t]*:")
_FROM_LINE_START = re.compile(rb">*From ")
# Fields that begin the header of a real message. Other text has lines with a colon, too.
_COMMON_FIELD = re.compile(
    rb"^(?:From|To|Cc|Bcc|Sender|Reply-To|Subject|Date|Message-ID|In-Reply-To|References|Received"
    rb"|Return-Path|Delivered-To|Envelope-To|MIME-Version|Content-Type|Status|DKIM-Signature"
    rb"|DomainKey-Signature|Authentication-Results|Received-SPF|ARC-[A-Za-z-]+|List-[A-Za-z-]+"
    rb"|X-[!-9;-~]+)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)


def header_start_or_none(raw: bytes) -> int | None:
    """Return the offset of the first header field, None if the message has no header.

    Before it can be a byte order mark, blank lines, From lines (also with `>`), and lines such as
    `Microsoft Mail Internet Headers Version 2.0`. If such a line or a blank line is skipped, the
    first field must have a common name, or else the text is a body without header.
    """
    offset = len(UTF8_BOM) if raw.startswith(UTF8_BOM) else 0
    has_skipped_text = has_skipped_blank_line = False
    for _ in range(MAX_LINES_BEFORE_HEADER + 1):
        if _FIELD_START.match(raw, offset):
            is_header = not (has_skipped_text or has_skipped_blank_line)
            return offset if is_header or _COMMON_FIELD.match(raw, offset) else None
        line_end = raw.find(b"\n", offset) + 1
        if not line_end:
            return None
        if not raw[offset:line_end].strip():
            if has_skipped_text:
                return None  # the skipped lines are a body, and no lines before a header
            has_skipped_blank_line = True
        elif not _FROM_LINE_START.match(raw, offset):
            has_skipped_text = True
        offset = line_end
    return None


def read_foreign_message(raw: bytes) -> bytes:
    """Return a message with CRLF line ends that begins with its first header field.

    Raises UnusableMessageError if it has no header field.
    """
    raw = with_crlf(raw)
    start = header_start_or_none(raw)
    if start is None:
        raise UnusableMessageError("The message has no header fields.")
    return raw[start:]


def is_start_of_message(first_bytes: bytes) -> bool:
    """True if the first bytes of a file are a header with at least one common field."""
    first_bytes = with_crlf(first_bytes)
    start = header_start_or_none(first_bytes)
    if start is None:
        return False
    header = first_bytes[start:].partition(b"\r\n\r\n")[0]
    return b"\0" not in header and _COMMON_FIELD.search(header) is not None
