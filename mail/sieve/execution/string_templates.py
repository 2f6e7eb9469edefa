"""Strings of a script: encoded characters (RFC 5228, section 2.4.2.4), variables (RFC 5229)."""

import re
from dataclasses import dataclass

from mail.sieve import limits

_ENCODED = re.compile(
    r"\$\{(?:(?P<hex>hex):(?P<bytes>[ \t\r\n]*+[0-9a-f]{1,2}(?:[ \t\r\n]++[0-9a-f]{1,2})*+)"
    r"|unicode:(?P<points>[ \t\r\n]*+[0-9a-f]++(?:[ \t\r\n]++[0-9a-f]++)*+))[ \t\r\n]*+\}",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"\$\{((?:[a-z_][a-z0-9_]*+\.(?:[a-z0-9_]++\.)*+)?)([a-z_][a-z0-9_]*+|[0-9]++)\}",
    re.IGNORECASE | re.ASCII,
)
_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE | re.ASCII)
_GLOBAL = "global."
_LAST_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class VariableReference:
    """A reference to a variable; the name is in lower case.

    Variables of the namespace `global` (RFC 6609) have "global." before their name.
    """

    name: str


@dataclass(frozen=True, slots=True)
class MatchReference:
    """A reference to the text of a wildcard or group; 0 is the whole match."""

    number: int


@dataclass(frozen=True, slots=True)
class StringTemplate:
    """A string with references to variables."""

    pieces: tuple[str | VariableReference | MatchReference, ...]


SieveString = str | StringTemplate


def decode_characters(text: str) -> str:
    """Replace ${hex:} and ${unicode:} by their characters.

    Raises ValueError if a number is no character or the bytes are no UTF-8.
    """
    if "${" not in text:
        return text
    raw = b"".join(_decoded_pieces(text))
    try:
        found = raw.decode()
    except UnicodeDecodeError as problem:
        raise ValueError("the bytes of ${hex:} make no UTF-8") from problem
    if "\0" in found:
        raise ValueError("no text holds a NUL")
    return found


def parse_template(text: str, *, allow_globals: bool) -> SieveString:
    """Parse the references to variables in a text.

    Text that only looks like a reference is not changed. Raises ValueError for an unknown namespace
    or a number that is too large.
    """
    pieces: list[str | VariableReference | MatchReference] = []
    end = 0
    for found in _REFERENCE.finditer(text):
        if found.start() > end:
            pieces.append(text[end : found.start()])
        pieces.append(
            _parse_reference(found[1].lower(), found[2].lower(), allow_globals=allow_globals)
        )
        end = found.end()
    if not pieces:
        return text
    if end < len(text):
        pieces.append(text[end:])
    return StringTemplate(tuple(pieces))


def parse_variable_name(text: str, *, allow_globals: bool) -> str:
    """Return the name of a variable that can be set, in lower case.

    Raises ValueError if it is invalid.
    """
    name = text.lower()
    bare = name.removeprefix(_GLOBAL) if allow_globals else name
    if not _NAME.fullmatch(bare):
        raise ValueError(f'"{text[:40]}" is no name of a variable')
    return name


def _decoded_pieces(text: str) -> list[bytes]:
    out: list[bytes] = []
    end = 0
    for found in _ENCODED.finditer(text):
        out.append(text[end : found.start()].encode())
        end = found.end()
        if found["hex"]:
            out.append(bytes(int(one, 16) for one in found["bytes"].split()))
            continue
        for digits in found["points"].split():
            point = int(digits, 16) if len(digits.lstrip("0")) <= len("10FFFF") else -1
            if not 0 <= point <= _LAST_POINT or point in _SURROGATES:
                raise ValueError(f"${{unicode:}} knows no character {digits[:20]}")
            out.append(chr(point).encode())
    out.append(text[end:].encode())
    return out


def _parse_reference(
    namespace: str, name: str, *, allow_globals: bool
) -> VariableReference | MatchReference:
    if namespace and not (allow_globals and namespace == _GLOBAL and not name.isdigit()):
        raise ValueError(f'there is no namespace "{namespace[:40]}" of variables')
    if not name.isdigit():
        return VariableReference(namespace + name)
    digits = name.lstrip("0") or "0"
    if (
        len(digits) > len(str(limits.MAX_MATCH_VARIABLES))
        or int(digits) >= limits.MAX_MATCH_VARIABLES
    ):
        raise ValueError(f"numbered variables go up to {limits.MAX_MATCH_VARIABLES - 1}")
    return MatchReference(int(digits))
