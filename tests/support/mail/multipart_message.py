"""A message with a part of every kind that is stored differently."""

import base64
import hashlib
import quopri
from dataclasses import dataclass

MIB = 1 << 20
LOG_CONTENT = b"".join(b"%08d all is well\n" % number for number in range(120_000))  # 2.5 MB


def pseudo_random_bytes(size: int, label: bytes = b"noise") -> bytes:
    return hashlib.shake_128(label).digest(size)


def base64_lines(content: bytes, width: int = 76, eol: bytes = b"\r\n") -> bytes:
    text = base64.b64encode(content)
    return eol.join(text[start : start + width] for start in range(0, len(text), width))


@dataclass(frozen=True)
class AttachmentPart:
    """An attachment: its part header, its encoded body and its content."""

    header: str
    body: bytes
    content: bytes


def base64_attachment(
    name: str, content: bytes, body: bytes, content_type: str = "application/pdf"
) -> AttachmentPart:
    header = (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment; {name}"
    )
    return AttachmentPart(header, body, content)


INNER_ATTACHMENT = pseudo_random_bytes(70_000, b"inner")
INNER_MESSAGE = (
    b"From: dora@example.com\r\nSubject: Inside\r\nContent-Type: multipart/mixed; boundary=in\r\n"
    b"\r\n--in\r\n\r\nInner text\r\n--in\r\nContent-Type: application/zip\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n"
    + base64_lines(INNER_ATTACHMENT)
    + b"\r\n--in--\r\n"
)
MARKDOWN_TEXT = ("Grüße aus Köln. " * 6000).encode()
QUOTED_PRINTABLE_TEXT = quopri.encodestring(MARKDOWN_TEXT)
PHOTO_CONTENT = b"\x89PNG\r\n\x1a\n" + pseudo_random_bytes(20_000)
LARGE_CONTENT = pseudo_random_bytes(3 * MIB)
BINARY_CONTENT = bytes(byte for byte in pseudo_random_bytes(100_000) if byte not in b"\r\n-")

ATTACHMENTS = [
    base64_attachment("filename=large.pdf", LARGE_CONTENT, base64_lines(LARGE_CONTENT)),
    base64_attachment(
        "filename*=UTF-8''%C3%9Cbersicht.log",
        LOG_CONTENT,
        base64_lines(LOG_CONTENT, 75, b"\n"),
        "text/x-log",
    ),
    AttachmentPart("Content-Type: application/octet-stream", BINARY_CONTENT, BINARY_CONTENT),
    AttachmentPart("Content-Type: message/rfc822", INNER_MESSAGE, INNER_MESSAGE),
    base64_attachment(
        'filename="photo.png"\r\nContent-ID: <photo@here>',
        PHOTO_CONTENT,
        base64_lines(PHOTO_CONTENT, 10**9),
        "image/png",
    ),
    AttachmentPart(
        "Content-Type: text/markdown; charset=utf-8\r\nContent-Disposition: attachment\r\n"
        "Content-Transfer-Encoding: quoted-printable",
        QUOTED_PRINTABLE_TEXT,
        MARKDOWN_TEXT,
    ),
    base64_attachment("filename=small.pdf", b"small", b"c21hbGw="),
    base64_attachment(
        "filename=odd.pdf",
        LARGE_CONTENT[:90_000],
        b"  " + base64_lines(LARGE_CONTENT[:90_000], 77, b" \r\n"),
    ),
]
HTML_TEXT = (
    b'<p onclick="evil()">Hello</p><img src="cid:photo@here"><img src="https://far.example/x">'
)
PLAIN_TEXT = "Grüß Gott"


def build_message(files: list[AttachmentPart], *, subject: str = "Rich") -> bytes:
    header = (
        f"From: Carol <carol@example.com>\r\nTo: ada@example.org\r\nSubject: {subject}\r\n"
        "X-Twice: one\r\nX-Twice: =?utf-8?q?zw=C3=B6lf?=\r\nMIME-Version: 1.0\r\n"
        "Content-Type: multipart/mixed; boundary=out\r\n\r\nPreamble\r\n"
    ).encode()
    alternative_part = (
        b"Content-Type: multipart/alternative; boundary=alt\r\n\r\n"
        b"--alt\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + PLAIN_TEXT.encode() + b"\r\n"
        b"--alt\r\nContent-Type: text/html\r\n\r\n" + HTML_TEXT + b"\r\n--alt--\r\n"
    )
    parts = [alternative_part, *(file.header.encode() + b"\r\n\r\n" + file.body for file in files)]
    return (
        header + b"".join(b"--out\r\n" + part + b"\r\n" for part in parts) + b"--out--\r\nThe end"
    )


MULTIPART_MESSAGE = build_message(ATTACHMENTS)
ATTACHMENT_OFFSETS = sorted(
    {
        edge
        for file in ATTACHMENTS
        for at in [MULTIPART_MESSAGE.index(file.body)]
        for edge in (at, at + len(file.body))
    }
)
