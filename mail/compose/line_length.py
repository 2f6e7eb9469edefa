"""Re-encoding of lines that are longer than SMTP allows (RFC 5321, section 4.5.3.1.6).

Servers cut such lines or refuse the message, which breaks signatures. So a part with long lines is
encoded again before the message is signed; its decoded bytes stay the same. Parts that others
signed are not changed.
"""

import base64
import binascii
import re
from email.message import Message
from email.parser import BytesHeaderParser

from mail.mime.quoted_printable import decode_quoted_printable
from mail.text.run_lengths import has_longer_run

MAX_LINE_BYTES = 998  # bytes, without its end
BASE64_LINE_BYTES = 76  # bytes of a line of base64
MAX_PART_DEPTH = 20  # parts in parts

_BLANK = re.compile(rb"\r\n(?=\r\n)|\A(?=\r\n)")
_ENCODING = re.compile(
    rb"^content-transfer-encoding[ \t]*:[^\r\n]*(\r\n[ \t][^\r\n]*)*\r\n",
    re.IGNORECASE | re.MULTILINE,
)
_SIGNED = ("multipart/signed", "multipart/encrypted")


def has_long_line(data: bytes) -> bool:
    """True if a line has more than 998 bytes; lines end in CRLF."""
    return has_longer_run(data, b"\r\n", MAX_LINE_BYTES)


def reencode_parts_with_long_lines(data: bytes) -> bytes:
    """Return a message with CRLF line ends without long lines, as far as possible."""
    return _reencode_long_lines_of_entity(data, MAX_PART_DEPTH) if has_long_line(data) else data


def _reencode_long_lines_of_entity(data: bytes, remaining_depth: int) -> bytes:
    """Shorten the lines of a MIME entity that have more than 998 bytes.

    Header lines are folded at white space, and leaf parts are re-encoded. The bodies of
    multipart/signed and multipart/encrypted, of a multipart without boundary, and of parts below
    `remaining_depth` levels stay unchanged.
    """
    match = _BLANK.search(data)
    end = match.end() if match else len(data)
    head, body = data[:end], data[end:]  # the body begins with the empty line
    if has_long_line(head):
        head = b"\r\n".join(_fold_header_line(line) for line in head.split(b"\r\n"))
    if not has_long_line(body) or not remaining_depth:
        return head + body
    header: Message = BytesHeaderParser().parsebytes(head + b"\r\n")
    kind = header.get_content_type()
    encoding = str(header.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    if kind in _SIGNED:
        return head + body
    if kind.startswith("multipart/"):
        boundary = header.get_boundary()
        return head + (_reencode_multipart(body, boundary, remaining_depth) if boundary else body)
    if kind == "message/rfc822" and encoding not in ("base64", "quoted-printable"):
        return head + body[:2] + _reencode_long_lines_of_entity(body[2:], remaining_depth - 1)
    return _reencode_leaf(head, body[2:], encoding, is_text=kind.startswith("text/"))


def _reencode_multipart(body: bytes, boundary: str, remaining_depth: int) -> bytes:
    """Return a multipart with each of its parts shortened; the delimiters stay."""
    boundary_pattern = re.escape(boundary.encode("utf-8", "surrogateescape"))
    line = re.compile(rb"(?:\A|\r\n)--" + boundary_pattern + rb"(--)?[ \t]*(?=\r\n|\Z)")
    chunks, at, in_part = list[bytes](), 0, False
    for delimiter in line.finditer(body):
        between = body[at : delimiter.start()]
        chunks.append(_reencode_child(between, remaining_depth) if in_part else between)
        chunks.append(delimiter[0])
        at, in_part = delimiter.end(), not delimiter[1]
        if not in_part:
            break
    rest = body[at:]
    chunks.append(_reencode_child(rest, remaining_depth) if in_part else rest)
    return b"".join(chunks)


def _reencode_child(part_with_line_end: bytes, remaining_depth: int) -> bytes:
    """Return a part, which begins after the line end of its delimiter, without long lines."""
    return part_with_line_end[:2] + _reencode_long_lines_of_entity(
        part_with_line_end[2:], remaining_depth - 1
    )


def _reencode_leaf(head: bytes, body: bytes, encoding: str, *, is_text: bool) -> bytes:
    """Re-encode a leaf part with lines that are short enough.

    The lines of base64 are broken anew. Text and quoted-printable become quoted-printable, other
    content becomes base64.
    """
    if encoding == "base64":
        packed = b"".join(body.split())
        lines = [
            packed[at : at + BASE64_LINE_BYTES] for at in range(0, len(packed), BASE64_LINE_BYTES)
        ]
        return head + b"\r\n" + b"\r\n".join(lines) + b"\r\n"
    if encoding == "quoted-printable":
        body = decode_quoted_printable(body)
    if is_text or encoding == "quoted-printable":
        name, packed = b"quoted-printable", _quoted_printable(body)
    else:
        name, packed = b"base64", base64.encodebytes(body).replace(b"\n", b"\r\n")
    head = _ENCODING.sub(b"", head) + b"Content-Transfer-Encoding: " + name + b"\r\n"
    return head + b"\r\n" + packed


def _quoted_printable(body: bytes) -> bytes:
    """Encode a body as quoted-printable and keep its line ends."""
    return b"\r\n".join(
        binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n")
        for line in body.split(b"\r\n")
    )


def _fold_header_line(line: bytes) -> bytes:
    """Fold a header line at spaces, as far as it has some."""
    chunks = []
    while len(line) > MAX_LINE_BYTES:
        at = max(line.rfind(b" ", 1, MAX_LINE_BYTES), line.rfind(b"\t", 1, MAX_LINE_BYTES))
        if at <= 0 or not line[:at].strip():
            break
        chunks.append(line[:at])
        line = line[at:]
    return b"\r\n".join([*chunks, line])
