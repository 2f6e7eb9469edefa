"""Header fields of generated messages: encoded words and folding (RFC 2047, 5322, 6532)."""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mail.addresses.address_syntax import ascii_domain

LINE = 78  # characters of a line, if the value can be folded there
LONGEST = 900  # characters; a longer word becomes encoded words, which can be folded
WORD = 39  # bytes in an encoded word: with "Subject: " before it the line has at most 76

_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_LOCAL = re.compile(r"[^\s()<>\[\]:;@\\,\"]+|\"(?:[^\\\"]|\\.)*\"")  # a quoted string, or an atom
_PIECE = re.compile(r"[ \t]*[^ \t]+")
_BLANKS = re.compile(r"[ \t\r\n]+")


class Named(NamedTuple):
    """A checked address with an optional display name."""

    address: str
    name: str | None = None


def unstructured(key: str, value: str) -> bytes:
    """Encode and fold a field of free text, such as Subject, with its CRLF."""
    value = value.strip()
    pieces = _PIECE.findall(value)
    plain = value.isascii() and "=?" not in value and all(len(each) < LONGEST for each in pieces)
    if not plain:
        pieces = encoded(value)
    elif pieces:
        pieces[0] = f" {pieces[0]}"
    return _folded(key, pieces)


def addressed(key: str, people: Sequence[Named], *, utf8: bool = False) -> bytes:
    """Encode and fold a field of addresses.

    With `utf8` domains stay in Unicode, else they are written in ASCII.
    """
    pieces: list[str] = []
    for nth, (address, name) in enumerate(people):
        comma = "," if nth + 1 < len(people) else ""
        shown = _quoted(address if utf8 else on_wire(address))
        if name and name.strip():
            pieces += [*phrase(name), f" <{shown}>{comma}"]
        else:
            pieces.append(f" {shown}{comma}")
    return _folded(key, pieces)


def _quoted(address: str) -> str:
    """Quote the local part of an address if it is not an atom."""
    local, _, domain = address.rpartition("@")
    if not local or _LOCAL.fullmatch(local):
        return address
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"@{domain}'


def listed(key: str, words: Iterable[str]) -> bytes:
    """Fold a field of words separated by spaces, such as References."""
    return _folded(key, [f" {word}" for word in words])


def phrase(name: str) -> list[str]:
    """Return a display name as words that can be folded, each with a space before it."""
    name = _BLANKS.sub(" ", name).strip()
    if not name.isascii() or "=?" in name:
        return encoded(name)
    if _ATOMS.fullmatch(name):
        return [f" {word}" for word in name.split(" ")]
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return [f' "{escaped}"']


def encoded(text: str) -> list[str]:
    """Return text as encoded words, each with a space before it. No character is split."""
    words: list[str] = []
    chunk = b""
    for character in text:
        more = character.encode()
        if len(chunk) + len(more) > WORD:
            words.append(_word(chunk))
            chunk = b""
        chunk += more
    return [*words, _word(chunk)] if chunk else words


def on_wire(address: str) -> str:
    """Return the address with its domain in ASCII, if the domain can be converted."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{ascii_domain(domain)}"


def needs_utf8(address: str) -> bool:
    """True if only servers with SMTPUTF8 accept this address (RFC 6531)."""
    return not address.rpartition("@")[0].isascii()


def _word(chunk: bytes) -> str:
    return f" =?utf-8?B?{base64.b64encode(chunk).decode()}?="


def _folded(key: str, pieces: Iterable[str]) -> bytes:
    """Write a field, folded before words. Each word begins with white space."""
    lines, line, empty = list[str](), f"{key}:", True
    for piece in pieces:
        if not empty and len(line) + len(piece) > LINE:
            lines.append(line)
            line = ""
        line, empty = line + piece, False
    return "\r\n".join([*lines, line, ""]).encode()
