"""Headers and parts of which the malformed messages of tests consist."""

import base64
from collections.abc import Iterator

HEADER = b"From: Carol <carol@example.com>\r\nTo: ada@example.org\r\n"
PLAIN_TEXT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
NamedMessages = Iterator[tuple[str, bytes]]


def message(fields: bytes = b"", body: bytes = b"Hi.\r\n", header: bytes = HEADER) -> bytes:
    """A message with these additional header fields."""
    return header + fields + b"\r\n" + body


def message_of_type(value: bytes, body: bytes, fields: bytes = b"") -> bytes:
    """A message with this Content-Type and these additional header fields."""
    return message(b"MIME-Version: 1.0\r\nContent-Type: " + value + b"\r\n" + fields, body)


def mime_part(body: bytes, part_header: bytes = b"Content-Type: text/plain\r\n") -> bytes:
    return b"--x\r\n" + part_header + b"\r\n" + body + b"\r\n"


def multipart_mixed(
    *parts: bytes, end: bytes = b"--x--\r\n", parameters: bytes = b"boundary=x"
) -> bytes:
    return message_of_type(b"multipart/mixed; " + parameters, b"".join(parts) + end)


def message_with_attachment(
    name: bytes, content: bytes, content_type: bytes = b"application/octet-stream"
) -> bytes:
    """A message with this attachment."""
    part_header = (
        b"Content-Type: " + content_type + b'; name="' + name + b'"\r\n'
        b'Content-Disposition: attachment; filename="' + name + b'"\r\n'
        b"Content-Transfer-Encoding: base64\r\n"
    )
    return multipart_mixed(
        mime_part(b"See the file."), mime_part(base64.encodebytes(content), part_header)
    )
