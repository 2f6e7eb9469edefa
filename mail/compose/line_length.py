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

from mail.text.run_lengths import longer

LONGEST = 998  # bytes, without its end
WRAPPED = 76  # bytes of a line of base64
DEEPEST = 20  # parts in parts

_BLANK = re.compile(rb"\r\n(?=\r\n)|\A(?=\r\n)")
_ENCODING = re.compile(
    rb"^content-transfer-encoding[ \t]*:[^\r\n]*(\r\n[ \t][^\r\n]*)*\r\n",
    re.IGNORECASE | re.MULTILINE,
)
_SIGNED = ("multipart/signed", "multipart/encrypted")


def too_long(data: bytes) -> bool:
    """True if a line has more than 998 bytes; lines end in CRLF."""
    return longer(data, b"\r\n", LONGEST)


def mended(data: bytes) -> bytes:
    """Return a message with CRLF line ends without long lines, as far as possible."""
    return _part(data, DEEPEST) if too_long(data) else data


def _part(data: bytes, depth: int) -> bytes:
    """Return a MIME entity without long lines."""
    found = _BLANK.search(data)
    end = found.end() if found else len(data)
    head, body = data[:end], data[end:]  # the body begins with the empty line
    if too_long(head):
        head = b"\r\n".join(_folded(line) for line in head.split(b"\r\n"))
    if not too_long(body) or not depth:
        return head + body
    told: Message = BytesHeaderParser().parsebytes(head + b"\r\n")
    kind = told.get_content_type()
    encoding = str(told.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    if kind in _SIGNED:
        return head + body
    if kind.startswith("multipart/"):
        boundary = told.get_boundary()
        return head + (_parts(body, boundary, depth) if boundary else body)
    if kind == "message/rfc822" and encoding not in ("base64", "quoted-printable"):
        return head + body[:2] + _part(body[2:], depth - 1)
    return _leaf(head, body[2:], encoding, text=kind.startswith("text/"))


def _parts(body: bytes, boundary: str, depth: int) -> bytes:
    """Return a multipart with each of its parts shortened; the delimiters stay."""
    mark = re.escape(boundary.encode("utf-8", "surrogateescape"))
    line = re.compile(rb"(?:\A|\r\n)--" + mark + rb"(--)?[ \t]*(?=\r\n|\Z)")
    pieces, at, inside = list[bytes](), 0, False
    for found in line.finditer(body):
        between = body[at : found.start()]
        pieces.append(_child(between, depth) if inside else between)
        pieces.append(found[0])
        at, inside = found.end(), not found[1]
        if not inside:
            break
    rest = body[at:]
    pieces.append(_child(rest, depth) if inside else rest)
    return b"".join(pieces)


def _child(between: bytes, depth: int) -> bytes:
    """Return a part, which begins after the line end of its delimiter, without long lines."""
    return between[:2] + _part(between[2:], depth - 1)


def _leaf(head: bytes, body: bytes, encoding: str, *, text: bool) -> bytes:
    """Return a leaf part in base64 or quoted-printable."""
    if encoding == "base64":
        packed = b"".join(body.split())
        lines = [packed[at : at + WRAPPED] for at in range(0, len(packed), WRAPPED)]
        return head + b"\r\n" + b"\r\n".join(lines) + b"\r\n"
    if encoding == "quoted-printable":
        body = binascii.a2b_qp(body)
    if text or encoding == "quoted-printable":
        name, packed = b"quoted-printable", _quoted(body)
    else:
        name, packed = b"base64", base64.encodebytes(body).replace(b"\n", b"\r\n")
    head = _ENCODING.sub(b"", head) + b"Content-Transfer-Encoding: " + name + b"\r\n"
    return head + b"\r\n" + packed


def _quoted(body: bytes) -> bytes:
    """Encode a body as quoted-printable and keep its line ends."""
    return b"\r\n".join(
        binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n")
        for line in body.split(b"\r\n")
    )


def _folded(line: bytes) -> bytes:
    """Fold a header line at spaces, as far as it has some."""
    pieces = []
    while len(line) > LONGEST:
        at = max(line.rfind(b" ", 1, LONGEST), line.rfind(b"\t", 1, LONGEST))
        if at <= 0 or not line[:at].strip():
            break
        pieces.append(line[:at])
        line = line[at:]
    return b"\r\n".join([*pieces, line])
