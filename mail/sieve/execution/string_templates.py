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


def decode_encoded_characters(text: str) -> str:
    """Replace ${hex:} and ${unicode:} by their characters.

    Raises ValueError if a number is no character or the bytes are no UTF-8.
    """
    if "${" not in text:
        return text
    raw = b"".join(_decoded_pieces(text))
    try:
        decoded_text = raw.decode()
    except UnicodeDecodeError as problem:
        raise ValueError("The bytes of ${hex:} are not UTF-8.") from problem
    if "\0" in decoded_text:
        raise ValueError("A string can't contain NUL.")
    return decoded_text


def parse_variable_references(text: str, *, allow_globals: bool) -> SieveString:
    """Parse the references to variables in a text.

    Text that only looks like a reference is not changed. Raises ValueError for an unknown namespace
    or a number that is too large.
    """
    template_parts: list[str | VariableReference | MatchReference] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        if match.start() > end:
            template_parts.append(text[end : match.start()])
        template_parts.append(
            _parse_reference(match[1].lower(), match[2].lower(), allow_globals=allow_globals)
        )
        end = match.end()
    if not template_parts:
        return text
    if end < len(text):
        template_parts.append(text[end:])
    return StringTemplate(tuple(template_parts))


def parse_variable_name(text: str, *, allow_globals: bool) -> str:
    """Return the name of a variable that can be set, in lower case.

    Raises ValueError if it is invalid.
    """
    name = text.lower()
    bare = name.removeprefix(_GLOBAL) if allow_globals else name
    if not _NAME.fullmatch(bare):
        raise ValueError(f'"{text[:40]}" is not a variable name.')
    return name


def _decoded_pieces(text: str) -> list[bytes]:
    """Return the text in pieces with `${hex:}` and `${unicode:}` decoded. Raises ValueError."""
    out: list[bytes] = []
    end = 0
    for match in _ENCODED.finditer(text):
        out.append(text[end : match.start()].encode())
        end = match.end()
        if match["hex"]:
            out.append(bytes(int(hex_byte, 16) for hex_byte in match["bytes"].split()))
            continue
        for digits in match["points"].split():
            point = int(digits, 16) if len(digits.lstrip("0")) <= len("10FFFF") else -1
            if not 0 <= point <= _LAST_POINT or point in _SURROGATES:
                raise ValueError(f"${{unicode:}} does not know the character {digits[:20]}.")
            out.append(chr(point).encode())
    out.append(text[end:].encode())
    return out


def _parse_reference(
    namespace: str, name: str, *, allow_globals: bool
) -> VariableReference | MatchReference:
    if namespace and not (allow_globals and namespace == _GLOBAL and not name.isdigit()):
        raise ValueError(f'Unknown variable namespace "{namespace[:40]}".')
    if not name.isdigit():
        return VariableReference(namespace + name)
    digits = name.lstrip("0") or "0"
    if (
        len(digits) > len(str(limits.MAX_MATCH_VARIABLES))
        or int(digits) >= limits.MAX_MATCH_VARIABLES
    ):
        raise ValueError(f"Numbered variables go up to {limits.MAX_MATCH_VARIABLES - 1}.")
    return MatchReference(int(digits))
