"""Messages inside of messages, byte for byte where that may be (RFC 2046, section 5.2.1)."""

import base64
import re
from collections.abc import Sequence
from email import message_from_bytes
from email.errors import MessageError
from email.message import Message
from email.policy import compat32

CODED = ("base64", "quoted-printable")
LINE = 998  # bytes (RFC 5322, section 2.1.1)

_LONG = re.compile(rb"[^\r\n]{%d}" % (LINE + 1))
_LINE_END = re.compile(rb"\r\n|\r|\n")
_POLICY = compat32.clone(linesep="\r\n", max_line_length=0)


def plain(raw: bytes) -> bytes | None:
    """The message in ASCII and lines any server takes; None where it cannot be had so.

    One that is so already stays as it is, but for the ends of its lines.
    """
    raw = _LINE_END.sub(b"\r\n", raw)
    if _fits(raw):
        return raw
    try:
        message = message_from_bytes(raw, policy=_POLICY)
        for part in message.walk():
            _encode(part)
        made = message.as_bytes(policy=_POLICY)
    except (MessageError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None  # what is no proper mail goes along as a file
    return made if _fits(made) else None


def _encode(part: Message) -> None:
    """Write a part in base64, where it has bytes or lines that not every server takes."""
    content = part.get_payload(decode=True)
    if part.is_multipart() or not isinstance(content, bytes):
        return
    if str(part.get("Content-Transfer-Encoding", "")).lower() in CODED or _fits(content):
        return
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = "base64"
    part.set_payload(base64.encodebytes(content).decode().replace("\n", "\r\n"))


def _fits(raw: bytes) -> bool:
    return raw.isascii() and b"\0" not in raw and not _LONG.search(raw)


def filled(raw: bytes, wholes: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A message we wrote, with messages in the places of these texts, each a part of its own."""
    for mark, whole in wholes:
        at = raw.index(mark)
        start = raw.rindex(b"\r\n--", 0, at)  # of the part: a boundary goes before it
        head = re.sub(
            rb"content-type: text/plain[^\r\n]*(?:\r\n[ \t][^\r\n]*)*",
            b"Content-Type: message/rfc822",
            raw[start:at],
            count=1,
            flags=re.IGNORECASE,
        )
        raw = raw[:start] + head + whole + raw[at + len(mark) :]
    return raw
