"""Decoding of encoded words (RFC 2047) and folded header values."""

import binascii
import re

from mail.mime.charsets import decode

_WORD = re.compile(
    r"=\?([^?\s*]{1,64})(?:\*[^?\s]{0,64})?\?([bBqQ])\?([^?]*+(?:\?(?!=)[^?]*+){0,4})\?="
)
_UNFOLD = re.compile(r"[\r\n]+")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]+")
_QUAD = 4


def unfolded(value: str) -> str:
    """Unfold a header value, one character per byte, and decode it (RFC 5322, section 2.2.3)."""
    if "\n" in value or "\r" in value:
        value = _UNFOLD.sub("", value)
    if not value.isascii():
        value = decode(value.encode("latin-1", "replace"), "utf-8")
    return value.strip()


def decode_words(value: str) -> str:
    """Decode the encoded words of a value and remove control characters."""
    if "=?" not in value:
        return _CONTROLS.sub("", value) if not value.isprintable() else value
    out: list[str] = []
    run: list[bytes] = []  # of one charset; a character can be split between them
    label = ""
    end = 0
    for word in _WORD.finditer(value):
        gap = value[end : word.start()]
        joined = bool(run) and not gap.strip()
        if run and not (joined and word.group(1).lower() == label):
            out.append(decode(b"".join(run), label))
            run = []
        if not joined:
            out.append(gap)
        label = word.group(1).lower()
        run.append(_bytes(word.group(2), word.group(3)))
        end = word.end()
    if run:
        out.append(decode(b"".join(run), label))
    out.append(value[end:])
    return _CONTROLS.sub("", "".join(out))


def collapsed(value: str) -> str:
    """Replace each run of white space by one space, and strip the ends."""
    return " ".join(value.split())


def _bytes(kind: str, text: str) -> bytes:
    """Decode the text of an encoded word; the encoding is B or Q."""
    body = text.encode("utf-8", "replace")
    if kind in "qQ":
        return binascii.a2b_qp(body, header=True)
    body = _NOT_BASE64.sub(b"", body.partition(b"=")[0])
    if len(body) % _QUAD == 1:
        body = body[:-1]
    return binascii.a2b_base64(body + b"==")
