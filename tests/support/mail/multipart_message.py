"""A message with a part of every kind that is stored differently."""

import base64
import hashlib
import quopri
from dataclasses import dataclass

MIB = 1 << 20
LOG = b"".join(b"%08d all is well\n" % number for number in range(120_000))  # 2.5 MB


def noise(size: int, seed: bytes = b"noise") -> bytes:
    return hashlib.shake_128(seed).digest(size)


def wrapped(content: bytes, width: int = 76, eol: bytes = b"\r\n") -> bytes:
    text = base64.b64encode(content)
    return eol.join(text[start : start + width] for start in range(0, len(text), width))


@dataclass(frozen=True)
class File:
    """An attachment: its part header, its encoded body and its content."""

    header: str
    body: bytes
    content: bytes


def base64_file(
    name: str, content: bytes, body: bytes, content_type: str = "application/pdf"
) -> File:
    header = (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment; {name}"
    )
    return File(header, body, content)


INNER = noise(70_000, b"inner")
LETTER = (
    b"From: dora@example.com\r\nSubject: Inside\r\nContent-Type: multipart/mixed; boundary=in\r\n"
    b"\r\n--in\r\n\r\nInner text\r\n--in\r\nContent-Type: application/zip\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n" + wrapped(INNER) + b"\r\n--in--\r\n"
)
PROSE = ("Grüße aus Köln. " * 6000).encode()
QUOTED = quopri.encodestring(PROSE)
PHOTO = b"\x89PNG\r\n\x1a\n" + noise(20_000)
LARGE = noise(3 * MIB)
BINARY = bytes(byte for byte in noise(100_000) if byte not in b"\r\n-")

FILES = [
    base64_file("filename=large.pdf", LARGE, wrapped(LARGE)),
    base64_file("filename*=UTF-8''%C3%9Cbersicht.log", LOG, wrapped(LOG, 75, b"\n"), "text/x-log"),
    File("Content-Type: application/octet-stream", BINARY, BINARY),
    File("Content-Type: message/rfc822", LETTER, LETTER),
    base64_file(
        'filename="photo.png"\r\nContent-ID: <photo@here>',
        PHOTO,
        wrapped(PHOTO, 10**9),
        "image/png",
    ),
    File(
        "Content-Type: text/markdown; charset=utf-8\r\nContent-Disposition: attachment\r\n"
        "Content-Transfer-Encoding: quoted-printable",
        QUOTED,
        PROSE,
    ),
    base64_file("filename=small.pdf", b"small", b"c21hbGw="),
    base64_file("filename=odd.pdf", LARGE[:90_000], b"  " + wrapped(LARGE[:90_000], 77, b" \r\n")),
]
HTML = b'<p onclick="evil()">Hello</p><img src="cid:photo@here"><img src="https://far.example/x">'
TEXT = "Grüß Gott"


def raw(files: list[File], *, subject: str = "Rich") -> bytes:
    header = (
        f"From: Carol <carol@example.com>\r\nTo: ada@example.org\r\nSubject: {subject}\r\n"
        "X-Twice: one\r\nX-Twice: =?utf-8?q?zw=C3=B6lf?=\r\nMIME-Version: 1.0\r\n"
        "Content-Type: multipart/mixed; boundary=out\r\n\r\nPreamble\r\n"
    ).encode()
    alternative_part = (
        b"Content-Type: multipart/alternative; boundary=alt\r\n\r\n"
        b"--alt\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + TEXT.encode() + b"\r\n"
        b"--alt\r\nContent-Type: text/html\r\n\r\n" + HTML + b"\r\n--alt--\r\n"
    )
    parts = [alternative_part, *(file.header.encode() + b"\r\n\r\n" + file.body for file in files)]
    return (
        header + b"".join(b"--out\r\n" + part + b"\r\n" for part in parts) + b"--out--\r\nThe end"
    )


RICH = raw(FILES)
EDGES = sorted(
    {edge for file in FILES for at in [RICH.index(file.body)] for edge in (at, at + len(file.body))}
)
