"""Base64 text in lines, taken apart so that it can be written again byte for byte."""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

WHITE = b" \t\r\n"
_BLANK = re.compile(rb"[ \t\r\n]*")
STEP = 256 * 1024  # bytes of text, about, that are decoded at once


class Irregular(ValueError):
    """The text is not what `encode` would make of its content."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Characters of a full line, and what stands between lines. One line only: 0 and b""."""

    width: int
    eol: bytes


def text_length(size: int, wrapping: Wrapping) -> int:
    """The length of the text that `size` bytes of content make; its last line has no end."""
    characters = -(-size // 3) * 4
    breaks = (characters - 1) // wrapping.width if wrapping.width and characters else 0
    return characters + breaks * len(wrapping.eol)


def decode(text: bytes) -> tuple[bytes, Wrapping] | None:
    """Content and wrapping, of which `encode` makes `text` again; None where it would not."""
    wrapping = wrapping_of(text, 0, len(text))
    try:
        return b"".join(decoded(text, 0, len(text), wrapping)), wrapping
    except Irregular:
        return None


def decoded(raw: bytes, start: int, end: int, wrapping: Wrapping) -> Iterator[bytes]:
    """The content of the text from `start` to `end`, in pieces, of which `encode` makes it again.

    Irregular, at the latest behind the last piece, where it would not.
    """
    stride = wrapping.width + len(wrapping.eol)
    step = max(STEP // (4 * stride), 1) * 4 * stride if wrapping.width else STEP  # whole quads
    for at in range(start, end, step):
        text = raw[at : min(at + step, end)]
        last = at + step >= end
        whole = len(text) if last else len(text) - len(wrapping.eol)
        characters = text.replace(wrapping.eol, b"") if wrapping.eol else text
        try:
            content = binascii.a2b_base64(characters, strict_mode=True)
        except binascii.Error as problem:
            raise Irregular from problem
        if text_length(len(content), wrapping) != whole or not (
            last or text.endswith(wrapping.eol)
        ):
            raise Irregular
        if not last and len(characters) != len(content) // 3 * 4:
            raise Irregular  # it is padded before its end
        if encode(content, wrapping, 0, whole) != text[:whole]:
            raise Irregular
        yield content


def encode(content: bytes, wrapping: Wrapping, start: int, end: int) -> bytes:
    """The text of `content` from offset `start` of the text to `end`; only that is made."""
    if not wrapping.width:
        return _characters(content, start, end)
    width, stride = wrapping.width, wrapping.width + len(wrapping.eol)
    row = start // stride
    rows = end // stride + 2  # a line more than asked for: its presence ends the one before
    characters = _characters(content, row * width, rows * width)
    lines = (characters[at : at + width] for at in range(0, len(characters), width))
    return wrapping.eol.join(lines)[start - row * stride : end - row * stride]


def _characters(content: bytes, start: int, end: int) -> bytes:
    """Base64 characters of `content` without line ends, from `start` to `end`."""
    quad, quads = start // 4, -(-end // 4)
    characters = binascii.b2a_base64(content[quad * 3 : quads * 3], newline=False)
    return characters[start - quad * 4 : end - quad * 4]


def trimmed(raw: bytes, start: int, end: int) -> tuple[int, int]:
    """The places without the white space at both ends."""
    found = _BLANK.match(raw, start, end)
    start = found.end() if found else start
    while start < end:
        tail = raw[max(start, end - STEP) : end]
        kept = len(tail.rstrip(WHITE))
        end -= len(tail) - kept
        if kept:
            break
    return start, end


def wrapping_of(raw: bytes, start: int, end: int) -> Wrapping:
    """How the text from `start` to `end` is broken, by its first line."""
    at = raw.find(b"\n", start, end)
    if at < 0:
        return Wrapping(0, b"")
    if at > start and raw[at - 1 : at] == b"\r":
        return Wrapping(at - 1 - start, b"\r\n")
    return Wrapping(at - start, b"\n")
