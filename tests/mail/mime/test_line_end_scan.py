"""Line ends of large texts are read in steps."""

import random

from mail import mime
from mail.mime import split
from mail.mime.part_content import STEP

HEAD = b"Content-Type: text/plain; charset=us-ascii\r\n\r\n"


def text_of(body: bytes) -> str | None:
    raw = HEAD + body
    return mime.body_text(raw, split(raw))


def test_steps_give_what_one_step_gives() -> None:
    rng = random.Random(20)  # noqa: S311 - a test's
    for length in (10, STEP - 1, STEP, STEP + 1, 3 * STEP):
        body = "".join(rng.choices("ab\r\n", k=length))
        expected = body.replace("\r\n", "\n").replace("\r", "\n")
        assert text_of(body.encode()) == expected
    edges = "\r" * STEP + "\n" + "\r\n" * STEP
    assert text_of(edges.encode()) == edges.replace("\r\n", "\n").replace("\r", "\n")
