"""Base64 text in lines, taken apart so that it can be written again byte for byte."""

import binascii
from dataclasses import dataclass


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
    wrapping = _wrapping(text)
    characters = text.replace(wrapping.eol, b"") if wrapping.eol else text
    try:
        content = binascii.a2b_base64(characters, strict_mode=True)
    except binascii.Error:
        return None
    if text_length(len(content), wrapping) != len(text):
        return None
    return (content, wrapping) if encode(content, wrapping, 0, len(text)) == text else None


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


def _wrapping(text: bytes) -> Wrapping:
    at = text.find(b"\n")
    if at < 0:
        return Wrapping(0, b"")
    if text[at - 1 : at] == b"\r":
        return Wrapping(at - 1, b"\r\n")
    return Wrapping(at, b"\n")
