"""Header fields of generated messages: encoded words and folding (RFC 2047, 5322, 6532)."""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import idna

from mail.addresses.address_syntax import ascii_domain
from mail.addresses.quoted_local_part import join_address, split_address

FOLD_LENGTH = 78  # characters of a line, if the value can be folded there
MAX_PLAIN_WORD = 900  # characters; a longer word becomes encoded words, which can be folded
ENCODED_WORD_BYTES = (
    39  # bytes in an encoded word: with "Subject: " before it the line has at most 76
)

_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_ATOM = re.compile(r"[^\s()<>\[\]:;@\\,\"]+")  # or several with dots
_WORD_WITH_SPACE = re.compile(r"[ \t]*[^ \t]+")
_WHITESPACE = re.compile(r"[ \t\r\n]+")


class NamedAddress(NamedTuple):
    """A checked address with an optional display name."""

    address: str
    name: str | None = None


def unstructured_field(field_name: str, free_text: str) -> bytes:
    """Encode and fold a field of free text, such as Subject, with its CRLF."""
    free_text = free_text.strip()
    words = _WORD_WITH_SPACE.findall(free_text)
    plain = (
        free_text.isascii()
        and "=?" not in free_text
        and all(len(word) < MAX_PLAIN_WORD for word in words)
    )
    if not plain:
        words = encoded_words(free_text)
    elif words:
        words[0] = f" {words[0]}"
    return _fold_field(field_name, words)


def address_field(
    field_name: str, addresses: Sequence[NamedAddress], *, utf8: bool = False
) -> bytes:
    """Encode and fold a field of addresses.

    With `utf8` domains stay in Unicode, else they are written in ASCII.
    """
    chunks: list[str] = []
    for nth, (address, name) in enumerate(addresses):
        comma = "," if nth + 1 < len(addresses) else ""
        shown_address = _quote_local_part(address if utf8 else with_ascii_domain(address))
        if name and name.strip():
            chunks += [*phrase_words(name), f" <{shown_address}>{comma}"]
        else:
            chunks.append(f" {shown_address}{comma}")
    return _fold_field(field_name, chunks)


def _quote_local_part(address: str) -> str:
    """Quote the local part of an address if it is not an atom."""
    local = address.rpartition("@")[0]
    if not local or _ATOM.fullmatch(local):
        return address
    return join_address(*split_address(address))


def words_field(field_name: str, words: Iterable[str]) -> bytes:
    """Fold a field of words separated by spaces, such as References."""
    return _fold_field(field_name, [f" {word}" for word in words])


def phrase_words(display_name: str) -> list[str]:
    """Return a display name as words that can be folded, each with a space before it."""
    display_name = _WHITESPACE.sub(" ", display_name).strip()
    if not display_name.isascii() or "=?" in display_name:
        return encoded_words(display_name)
    if _ATOMS.fullmatch(display_name):
        return [f" {word}" for word in display_name.split(" ")]
    escaped = display_name.replace("\\", "\\\\").replace('"', '\\"')
    return [f' "{escaped}"']


def encoded_words(text: str) -> list[str]:
    """Return text as encoded words, each with a space before it. No character is split."""
    words: list[str] = []
    chunk = b""
    for character in text:
        encoded_character = character.encode()
        if len(chunk) + len(encoded_character) > ENCODED_WORD_BYTES:
            words.append(_encoded_word(chunk))
            chunk = b""
        chunk += encoded_character
    return [*words, _encoded_word(chunk)] if chunk else words


def with_ascii_domain(address: str) -> str:
    """Return the address with its domain in ASCII. Raises idna.IDNAError if it has no such form."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{ascii_domain(domain)}"


def ascii_address_or_same(address: str) -> str:
    """Return the address with its domain in ASCII; unchanged if the domain has no such form."""
    try:
        return with_ascii_domain(address)
    except idna.IDNAError:
        return address


def needs_smtputf8(address: str) -> bool:
    """True if only servers with SMTPUTF8 accept this address (RFC 6531)."""
    return not address.rpartition("@")[0].isascii()


def _encoded_word(chunk: bytes) -> str:
    return f" =?utf-8?B?{base64.b64encode(chunk).decode()}?="


def _fold_field(field_name: str, words: Iterable[str]) -> bytes:
    """Write a field, folded before words. Each word begins with white space."""
    lines, line, empty = list[str](), f"{field_name}:", True
    for word in words:
        if not empty and len(line) + len(word) > FOLD_LENGTH:
            lines.append(line)
            line = ""
        line, empty = line + word, False
    return "\r\n".join([*lines, line, ""]).encode()
