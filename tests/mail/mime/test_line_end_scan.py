"""Line ends of large texts are normalized in chunks."""

import random

from mail import mime
from mail.mime import parse_structure
from mail.mime.part_content import TEXT_CHUNK

HEAD = b"Content-Type: text/plain; charset=us-ascii\r\n\r\n"


def decoded_text(body: bytes) -> str | None:
    raw = HEAD + body
    return mime.body_text(raw, parse_structure(raw))


def test_line_ends_across_chunks_are_normalized() -> None:
    rng = random.Random(20)  # noqa: S311 - not for cryptography
    for length in (10, TEXT_CHUNK - 1, TEXT_CHUNK, TEXT_CHUNK + 1, 3 * TEXT_CHUNK):
        body = "".join(rng.choices("ab\r\n", k=length))
        expected = body.replace("\r\n", "\n").replace("\r", "\n")
        assert decoded_text(body.encode()) == expected
    edges = "\r" * TEXT_CHUNK + "\n" + "\r\n" * TEXT_CHUNK
    assert decoded_text(edges.encode()) == edges.replace("\r\n", "\n").replace("\r", "\n")
