"""Decoding of encoded words (RFC 2047) and folded header values."""

import binascii
import re

from mail.mime.charsets import decode_header_text
from mail.mime.quoted_printable import decode_quoted_printable

_WORD = re.compile(
    r"=\?([^?\s*]{1,64})(?:\*[^?\s]{0,64})?\?([bBqQ])\?([^?]*+(?:\?(?!=)[^?]*+){0,4})\?="
)
_UNFOLD = re.compile(r"[\r\n]+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]+")
_BASE64_GROUP = 4


def unfold_and_decode_utf8(value: str) -> str:
    """Unfold a header value, one character per byte, and decode it (RFC 5322, section 2.2.3)."""
    if "\n" in value or "\r" in value:
        value = _UNFOLD.sub("", value)
    if not value.isascii():
        value = decode_header_text(value.encode("latin-1", "replace"), "utf-8")
    return value.strip()


def decode_encoded_words_and_drop_controls(value: str) -> str:
    """Decode the encoded words of a value and remove control characters."""
    if "=?" not in value:
        return _CONTROLS.sub("", value) if not value.isprintable() else value
    out: list[str] = []
    adjacent_words: list[bytes] = []  # of one charset; a character can be split between them
    charset = ""
    end = 0
    for word in _WORD.finditer(value):
        gap = value[end : word.start()]
        joined = bool(adjacent_words) and not gap.strip()
        if adjacent_words and not (joined and word.group(1).lower() == charset):
            out.append(decode_header_text(b"".join(adjacent_words), charset))
            adjacent_words = []
        if not joined:
            out.append(gap)
        charset = word.group(1).lower()
        adjacent_words.append(_decode_word_leniently(word.group(2), word.group(3)))
        end = word.end()
    if adjacent_words:
        out.append(decode_header_text(b"".join(adjacent_words), charset))
    out.append(value[end:])
    return _CONTROLS.sub("", "".join(out))


def collapse_whitespace(value: str) -> str:
    """Replace each run of white space by one space, and strip the ends."""
    return " ".join(value.split())


def _decode_word_leniently(encoding: str, text: str) -> bytes:
    """Decode the text of an encoded word, B or Q. Characters that are not base64 are skipped."""
    body = text.encode("utf-8", "replace")
    if encoding in "qQ":
        return decode_quoted_printable(body, is_encoded_word=True)
    body = _NOT_BASE64.sub(b"", body.partition(b"=")[0])
    if len(body) % _BASE64_GROUP == 1:
        body = body[:-1]
    return binascii.a2b_base64(body + b"==")
