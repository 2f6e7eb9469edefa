"""Quoted local parts of addresses (RFC 5321, section 4.1.2; RFC 5322, section 3.4.1).

`"robin"@example.org` and `robin@example.org` are the same address. An address is stored and written
with quotes only if its local part is not valid without them. Programs that change a local part
work on its text without quotes and escapes.
"""

import re
from typing import NamedTuple

ATOM = r"[^\s\x00-\x1f\x7f()<>\[\]:;@\\,.\"]++"  # RFC 5322, section 3.2.3
_QUOTED_STRING = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+"'
_DOT_ATOM = re.compile(rf"{ATOM}(?:\.{ATOM})*+")
_WORDS = re.compile(rf"(?:{ATOM}|{_QUOTED_STRING})(?:\.(?:{ATOM}|{_QUOTED_STRING}))*+")
_QUOTED_WORD = re.compile(_QUOTED_STRING)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NEEDS_ESCAPE = re.compile(r'["\\]')


class AddressParts(NamedTuple):
    """An address whose local part has no quotes and escapes."""

    local_text: str
    domain: str  # as written


def split_address(address: str) -> AddressParts:
    """Return the text of the local part, and the domain. Text without "@" is a domain."""
    local, _, domain = address.rpartition("@")
    return AddressParts(unquoted_local_part(local), domain)


def unquoted_local_part(local_part: str) -> str:
    """Return the text of a local part. A local part with invalid quotes stays as it is."""
    if '"' not in local_part or not _WORDS.fullmatch(local_part):
        return local_part
    return _QUOTED_WORD.sub(lambda word: _ESCAPE.sub(r"\1", word[0][1:-1]), local_part)


def join_address(local_text: str, domain: str) -> str:
    """Return the address with this text as local part, in quotes if they are needed."""
    if _DOT_ATOM.fullmatch(local_text):
        return f"{local_text}@{domain}"
    escaped = _NEEDS_ESCAPE.sub(r"\\\g<0>", local_text)
    return f'"{escaped}"@{domain}'


def remove_needless_quotes(address: str) -> str:
    """Return the address with quotes only if its local part needs them.

    An address without quotes, or with invalid ones, stays as it is.
    """
    if '"' not in address or not has_valid_quotes(address):
        return address
    return join_address(*split_address(address))


def has_valid_quotes(address: str) -> bool:
    """True if the local part has no quotes, or is a quoted string or words joined by dots."""
    local_part = address.rpartition("@")[0]
    return '"' not in address or bool(_WORDS.fullmatch(local_part))
