"""The decoded content of a part: transfer encoding and charset (RFC 2045, RFC 3676)."""

import binascii
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress

from mail.mime import base64_lines
from mail.mime.byte_source import ByteSource, read_range
from mail.mime.charsets import declared_html_charset_or_none, decode_text
from mail.mime.mime_tree import ParsedPart
from mail.mime.quoted_printable import decode_quoted_printable

_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_NOT_BASE64 = bytes(byte for byte in range(256) if byte not in _ALPHABET)
_UU_BEGIN = re.compile(rb"^begin [0-7]{3,4} [^\r\n]*\r?\n", re.MULTILINE)
_QUOTES = re.compile(r"(?:> ?)*+")
_BASE64_GROUP = 4
TEXT_CHUNK = 64 * 1024  # characters
LARGE_PART_BYTES = 1024 * 1024  # bytes; smaller parts are decoded at once
_UU_MASK = 63


def decoded_content(raw: bytes | ByteSource, part: ParsedPart) -> bytes:
    """Return the body of a part with its transfer encoding decoded. Never raises."""
    return decode_transfer_encoding(read_range(raw, part.body_start, part.body_end), part.encoding)


def decode_transfer_encoding(body: bytes, encoding: str) -> bytes:
    """Decode a body by the normalized encoding name. Unknown encodings change nothing."""
    if encoding == "base64":
        return _decode_base64(body)
    if encoding == "quoted-printable":
        return decode_quoted_printable(body)
    return _decode_uuencode(body) if encoding == "x-uuencode" else body


def content_size_and_hash(raw: bytes | ByteSource, part: ParsedPart) -> tuple[int, str]:
    """Return the size and SHA-256, in hex, of a part's content.

    Large parts are decoded in chunks to save memory.
    """
    if isinstance(raw, bytes) and part.body_end - part.body_start > LARGE_PART_BYTES:
        with suppress(base64_lines.IrregularBase64):
            if steps := _content_chunks(raw, part):
                size, digest = 0, hashlib.sha256()
                for step in steps:
                    size += len(step)
                    digest.update(step)
                return size, digest.hexdigest()
    body = decoded_content(raw, part)
    return len(body), hashlib.sha256(body).hexdigest()


def _content_chunks(raw: bytes, part: ParsedPart) -> Iterator[bytes] | None:
    """Return the content in chunks, None for an encoding that can't be decoded in chunks."""
    if part.encoding == "base64":
        start, end = base64_lines.range_without_whitespace(raw, part.body_start, part.body_end)
        return base64_lines.decode_restorable_chunks(
            raw, start, end, base64_lines.detect_wrapping(raw, start, end)
        )
    if part.encoding in ("quoted-printable", "x-uuencode"):
        return None
    at = range(part.body_start, part.body_end, base64_lines.CHUNK_BYTES)
    return (
        raw[position : min(position + base64_lines.CHUNK_BYTES, part.body_end)] for position in at
    )


def part_text(raw: bytes | ByteSource, part: ParsedPart) -> str:
    """Return the text of a part: charset decoded, LF line ends, format=flowed unfolded."""
    body = decoded_content(raw, part)
    label = part.params.get("charset")
    if label is None and part.content_type == "text/html":
        label = declared_html_charset_or_none(body)
    text = decode_text(body, label)
    if "\r" in text:
        text = _normalize_line_ends(text)
    if part.params.get("format", "").lower() == "flowed":
        return _unfold_flowed(text, delete_space=part.params.get("delsp", "").lower() == "yes")
    return text


def _normalize_line_ends(text: str) -> str:
    """Replace CRLF and CR by LF, in chunks, since one call would hold the GIL too long."""
    chunks: list[str] = []
    at, size = 0, len(text)
    while at < size:
        end = min(at + TEXT_CHUNK, size)
        while end < size and text[end - 1] == "\r":
            end += 1
        # split and join are quicker than replacing two characters by one
        chunks.append("\n".join(text[at:end].split("\r\n")).replace("\r", "\n"))
        at = end
    return "".join(chunks)


def _decode_base64(body: bytes) -> bytes:
    """Decode Base64 up to the first padding, ignoring other characters.

    Mailing lists often append a footer after the padding.
    """
    padding = body.find(b"=")
    if padding >= 0:
        body = body[:padding]
    try:
        return binascii.a2b_base64(body + b"==")
    except binascii.Error:
        body = body.translate(None, _NOT_BASE64)
        if len(body) % _BASE64_GROUP == 1:
            body = body[:-1]  # six bits are no byte
        return binascii.a2b_base64(body + b"==")


def _decode_uuencode(body: bytes) -> bytes:
    begin = _UU_BEGIN.search(body)
    if begin is None:
        return body
    out: list[bytes] = []
    for line in body[begin.end() :].splitlines():
        if line.strip() in (b"end", b""):
            break
        out.append(_decode_uuencoded_line(line))
    return b"".join(out)


def _decode_uuencoded_line(line: bytes) -> bytes:
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:
        # Some encoders count wrong, or pad with other characters than blanks.
        length = (((line[0] - 32) & _UU_MASK) * 4 + 5) // 3
        try:
            return binascii.a2b_uu(line[:length])
        except binascii.Error:
            return b""


def _unfold_flowed(text: str, *, delete_space: bool) -> str:
    """Join the lines that a format=flowed sender broke (RFC 3676, section 4)."""
    out: list[str] = []
    chunks: list[str] = []  # of the open paragraph
    depth = 0
    for line in text.split("\n"):
        quotes = _QUOTES.match(line)
        quote_marks = quotes.group() if quotes else ""
        level = quote_marks.count(">")
        # One blank after the quote marks, or at the line's start, is stuffing.
        rest = line[len(quote_marks) :] if level else line.removeprefix(" ")
        if chunks and (level != depth or rest == "-- "):
            out.append(_with_quote_marks("".join(chunks), depth))
            chunks = []
        depth = level
        if rest.endswith(" ") and rest != "-- ":
            chunks.append(rest[:-1] if delete_space else rest)
            continue
        chunks.append(rest)
        out.append(_with_quote_marks("".join(chunks), depth))
        chunks = []
    if chunks:
        out.append(_with_quote_marks("".join(chunks), depth))
    return "\n".join(out)


def _with_quote_marks(text: str, depth: int) -> str:
    return f"{'>' * depth} {text}" if depth else text
