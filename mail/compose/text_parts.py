"""Encode text as a MIME entity that decodes to exactly this text (RFC 2045, section 6)."""

import base64
import binascii
import re
from email.message import EmailMessage
from email.policy import EmailPolicy

from mail.mime import header_encoding

_LINE_END = re.compile(r"\r\n|\r")
_UNPRINTABLE = bytes({*range(0x20), 0x7F} - {*b"\t\n"})
_HEAD = (
    'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: {}\r\n'
    "MIME-Version: 1.0\r\n\r\n"
)


def text_entity(text: str) -> bytes:
    """Build a text/plain entity with its header for the end of a message.

    The entity ends with a line break, as SMTP requires of a message. If the text does not, a soft
    line break of quoted-printable ends the entity; it is not part of the text.
    """
    normalized_text = _LINE_END.sub("\n", text)
    encoding, lines = _transfer_encoding_and_encoded_text(normalized_text, is_last=True)
    if encoding == "quoted-printable" and not lines.endswith("\n"):
        lines += "=\n"
    return (_HEAD.format(encoding) + lines.replace("\n", "\r\n")).encode()


def text_part(text: str, subtype: str, policy: "EmailPolicy[EmailMessage]") -> EmailMessage:
    """Build a text part of a multipart. The line break before a boundary is not part of it."""
    encoding, lines = _transfer_encoding_and_encoded_text(_LINE_END.sub("\n", text), is_last=False)
    message = EmailMessage(policy=policy)
    message["Content-Type"] = f'text/{subtype}; charset="utf-8"'
    message["Content-Transfer-Encoding"] = encoding
    message["MIME-Version"] = "1.0"
    message.set_payload(lines)
    return message


def _transfer_encoding_and_encoded_text(text: str, *, is_last: bool) -> tuple[str, str]:
    """Return the transfer encoding for a text with LF line breaks, and its encoded lines."""
    content = text.encode()
    is_plain = text.isascii() and len(content.translate(None, _UNPRINTABLE)) == len(content)
    is_ended = not is_last or not text or text.endswith("\n")
    if is_plain and is_ended and max(map(len, text.split("\n"))) <= header_encoding.FOLD_LENGTH:
        return "7bit", text
    quoted = binascii.b2a_qp(content)
    if not text.isascii() and len(quoted) > (len(content) * 4 + 2) // 3 + len(content) // 57:
        return "base64", base64.encodebytes(content.replace(b"\n", b"\r\n")).decode()
    return "quoted-printable", quoted.decode()
