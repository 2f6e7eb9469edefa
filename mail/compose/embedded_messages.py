"""Messages attached as message/rfc822, byte for byte if possible (RFC 2046, section 5.2.1)."""

import base64
import re
from collections.abc import Sequence
from email import message_from_bytes
from email.errors import MessageError
from email.message import Message
from email.policy import compat32

BINARY_SAFE_ENCODINGS = ("base64", "quoted-printable")
MAX_LINE_BYTES = 998  # bytes (RFC 5322, section 2.1.1)

_LONG = re.compile(rb"[^\r\n]{%d}" % (MAX_LINE_BYTES + 1))
_LINE_END = re.compile(rb"\r\n|\r|\n")
_POLICY = compat32.clone(linesep="\r\n", max_line_length=0)


def seven_bit_form_if_possible(raw: bytes) -> bytes | None:
    """Return a message in ASCII with CRLF and short lines, None if that is impossible.

    A message that is so already keeps its bytes, except for the line ends.
    """
    raw = _LINE_END.sub(b"\r\n", raw)
    if _is_seven_bit(raw):
        return raw
    try:
        message = message_from_bytes(raw, policy=_POLICY)
        for part in message.walk():
            _make_part_seven_bit(part)
        message_bytes = message.as_bytes(policy=_POLICY)
    except (MessageError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None  # a damaged message is attached as a file
    return message_bytes if _is_seven_bit(message_bytes) else None


def _make_part_seven_bit(part: Message) -> None:
    """Encode a part in base64 if it has 8-bit bytes or long lines."""
    content = part.get_payload(decode=True)
    if part.is_multipart() or not isinstance(content, bytes):
        return
    if str(
        part.get("Content-Transfer-Encoding", "")
    ).lower() in BINARY_SAFE_ENCODINGS or _is_seven_bit(content):
        return
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = "base64"
    part.set_payload(base64.encodebytes(content).decode().replace("\n", "\r\n"))


def _is_seven_bit(raw: bytes) -> bool:
    return raw.isascii() and b"\0" not in raw and not _LONG.search(raw)


def replace_marked_parts_by_messages(
    raw: bytes, messages_by_marker: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Replace text parts that have a marker by message/rfc822 parts with these messages.

    `messages_by_marker` has pairs of marker and message. `raw` must be a message that this platform
    has built. For each marker, only the first part that has it is replaced. Raises ValueError if no
    part has it.
    """
    for marker, message in messages_by_marker:
        at = raw.index(marker)
        start = raw.rindex(b"\r\n--", 0, at)  # the boundary before the part
        head = re.sub(
            rb"content-type: text/plain[^\r\n]*(?:\r\n[ \t][^\r\n]*)*",
            b"Content-Type: message/rfc822",
            raw[start:at],
            count=1,
            flags=re.IGNORECASE,
        )
        # the text has a line end of its own before that of the boundary
        rest = raw[at + len(marker) :].removeprefix(b"\r\n")
        raw = raw[:start] + head + message + rest
    return raw
