"""Base64 text in lines that is decoded and later encoded again byte for byte."""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

WHITESPACE = b" \t\r\n"
_BLANK = re.compile(rb"[ \t\r\n]*")
CHUNK_BYTES = 256 * 1024  # approximate bytes of text that are decoded at once


class IrregularBase64(ValueError):
    """The text differs from what `encode_range` makes of its content."""


@dataclass(frozen=True, slots=True)
class LineWrapping:
    """Characters of a full line and the line break. Width 0 and break b"": one line."""

    width: int
    eol: bytes


def encoded_length(content_size: int, wrapping: LineWrapping) -> int:
    """Return the bytes of the text for content of a size; no line break at the end."""
    characters = -(-content_size // 3) * 4
    breaks = (characters - 1) // wrapping.width if wrapping.width and characters else 0
    return characters + breaks * len(wrapping.eol)


def decode_restorable_chunks(
    raw: bytes, start: int, end: int, wrapping: LineWrapping
) -> Iterator[bytes]:
    """Yield the content of the text from `start` to `end` in chunks.

    Raises IrregularBase64, at the latest after the last chunk, if `encode_range` would not restore
    the text.
    """
    stride = wrapping.width + len(wrapping.eol)
    # whole quads
    step = max(CHUNK_BYTES // (4 * stride), 1) * 4 * stride if wrapping.width else CHUNK_BYTES
    for at in range(start, end, step):
        text = raw[at : min(at + step, end)]
        last = at + step >= end
        text_end = len(text) if last else len(text) - len(wrapping.eol)
        characters = text.replace(wrapping.eol, b"") if wrapping.eol else text
        try:
            content = binascii.a2b_base64(characters, strict_mode=True)
        except binascii.Error as problem:
            raise IrregularBase64 from problem
        if encoded_length(len(content), wrapping) != text_end or not (
            last or text.endswith(wrapping.eol)
        ):
            raise IrregularBase64
        if not last and len(characters) != len(content) // 3 * 4:
            raise IrregularBase64  # it is padded before its end
        if encode_range(content, wrapping, 0, text_end) != text[:text_end]:
            raise IrregularBase64
        yield content


def encode_range(content: bytes, wrapping: LineWrapping, text_start: int, text_end: int) -> bytes:
    """Encode `content` and return the bytes of the text from `text_start` to `text_end`.

    Only the part of the content that this range needs is encoded.
    """
    if not wrapping.width:
        return _encode_base64_range(content, text_start, text_end)
    width, stride = wrapping.width, wrapping.width + len(wrapping.eol)
    row = text_start // stride
    rows = text_end // stride + 2  # one more line, so that the line before it gets its line break
    characters = _encode_base64_range(content, row * width, rows * width)
    lines = (characters[at : at + width] for at in range(0, len(characters), width))
    return wrapping.eol.join(lines)[text_start - row * stride : text_end - row * stride]


def _encode_base64_range(content: bytes, start: int, end: int) -> bytes:
    """Return the Base64 characters from `start` to `end`, counted without line breaks."""
    quad, quads = start // 4, -(-end // 4)
    characters = binascii.b2a_base64(content[quad * 3 : quads * 3], newline=False)
    return characters[start - quad * 4 : end - quad * 4]


def range_without_whitespace(raw: bytes, start: int, end: int) -> tuple[int, int]:
    """Return start and end of the range without the white space at both ends."""
    match = _BLANK.match(raw, start, end)
    start = match.end() if match else start
    while start < end:
        tail = raw[max(start, end - CHUNK_BYTES) : end]
        text_length = len(tail.rstrip(WHITESPACE))
        end -= len(tail) - text_length
        if text_length:
            break
    return start, end


def detect_wrapping(raw: bytes, start: int, end: int) -> LineWrapping:
    """Return the wrapping of the text from `start` to `end`, by its first line."""
    at = raw.find(b"\n", start, end)
    if at < 0:
        return LineWrapping(0, b"")
    if at > start and raw[at - 1 : at] == b"\r":
        return LineWrapping(at - 1 - start, b"\r\n")
    return LineWrapping(at - start, b"\n")
