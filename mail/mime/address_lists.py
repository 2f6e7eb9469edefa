"""Address lists of header fields (RFC 5322, section 3.4, and common deviations)."""

import re
from dataclasses import dataclass, field

import idna

from mail.mime.encoded_words import collapse_whitespace, decode_encoded_words_and_drop_controls

MAX_ADDRESSES = 10_000
_MAX_DOMAIN_LENGTH = 255

_NAME_AND_ANGLE_ADDRESS = re.compile(
    r"\s*+(?:\"([^\"\\]*+)\"|([^\"(),:;<>@\[\]\\]*+))\s*+<([^\s\"(),:;<>@\[\]\\]++@[^\s\"(),:;<>@\[\]\\]++)>"
    r"\s*+(?:,|$)"
)
_BARE_ADDRESS = re.compile(r"\s*+([^\s\"(),:;<>@\[\]\\]++@[^\s\"(),:;<>@\[\]\\]++)\s*+(?:,|$)")
_TOKEN = re.compile(
    r"(?P<word>=\?[^?\s]++\?[bBqQ]\?[^?\s]*+\?=)"
    r"|\"(?P<quoted>[^\"\\]{0,2000}+(?:\\.[^\"\\]{0,2000}+){0,100}+)\""
    r"|(?P<literal>\[[^\]\s]{0,99}\])"
    r"|(?P<special>[(<>,;:])"
    r"|(?P<space>\s++)"
    r"|(?P<text>[^\"(<>,;:\s\[=]++|.)",
    re.DOTALL,
)
_SEPARATORS = re.compile(r"[\s,;]*+")
_COMMENT_EDGE = re.compile(r"[()\\]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_QUOTED_LOCAL = re.compile(r"\"[^\"]{1,64}\"@[^\s\"@]+")
_ATOM = r"[^\s\x00-\x1f\x7f()<>\[\]:;@\\,.\"]++"
_WORD = rf'(?:{_ATOM}|"(?:[^"\\\r\n]|\\.)*+")'
_ADDR_SPEC = re.compile(rf"{_WORD}(?:\.{_WORD})*+@(?:{_ATOM}(?:\.{_ATOM})*+|\[[^\[\]\\\s]*+\])")
_DOT_OR_AT = re.compile(r"([.@])")
_WORD_SEPARATORS = re.compile(r"[\s<>\"'(),;:]+")


@dataclass(frozen=True, slots=True)
class ParsedAddress:
    """A mailbox of an address header.

    If RFC 5322 does not allow the address, `name` is the text of the header and `address` is "".
    """

    name: str | None
    address: str  # as written, the domain in Unicode; "" if there is no valid one


@dataclass(slots=True)
class _AddressTokens:
    """The tokens of one address while it is read."""

    phrase: list[str] = field(default_factory=list)
    phrase_source: list[str] = field(default_factory=list)  # the phrase with its quotes
    has_at: bool = False  # the phrase contains an `@`
    angle_tokens: list[str] | None = None
    is_in_angle: bool = False
    comments: list[str] = field(default_factory=list)


def parse_address_list(value: str) -> list[ParsedAddress]:
    """Return the addresses of an unfolded header value, at most 10,000.

    Members of groups are listed like other addresses. A comment is the name of an address that has
    no other. Never raises.
    """
    addresses: list[ParsedAddress] = []
    position, end = 0, len(value)
    for _ in range(2 * MAX_ADDRESSES):  # empty addresses cost time too
        separators = _SEPARATORS.match(value, position)  # it always matches
        position = separators.end() if separators else end
        if position >= end or len(addresses) >= MAX_ADDRESSES:
            break
        angle_match = _NAME_AND_ANGLE_ADDRESS.match(value, position)
        if angle_match and _ADDR_SPEC.fullmatch(angle_match.group(3)):
            name = angle_match.group(1) or angle_match.group(2)
            addresses.append(
                ParsedAddress(
                    _decode_display_name(name) if name else None,
                    _address_with_unicode_domain(angle_match.group(3)),
                )
            )
            position = angle_match.end()
            continue
        bare_match = _BARE_ADDRESS.match(value, position)
        if bare_match and _ADDR_SPEC.fullmatch(bare_match.group(1)):
            addresses.append(ParsedAddress(None, _address_with_unicode_domain(bare_match.group(1))))
            position = bare_match.end()
            continue
        position = _parse_and_append_address(value, position, addresses)
    return addresses


def _parse_and_append_address(value: str, position: int, addresses: list[ParsedAddress]) -> int:
    """Append one address, read token by token, and return the position after it."""
    entry = _AddressTokens()
    start = end = position
    while token := _TOKEN.match(value, position):
        position, end = token.end(), token.start()
        special = token.group("special")
        if special == "(":
            position = _append_comment_and_return_end(value, position, entry)
        elif (special == ";" and not entry.is_in_angle) or (
            special == "," and not _is_in_source_route(entry)
        ):
            break
        elif special == "<" and entry.angle_tokens is not None and not entry.is_in_angle:
            position = token.start()  # a forgotten comma
            break
        elif special == ":" and not entry.is_in_angle and entry.angle_tokens is None:
            _drop_group_name_unless_address(entry)
        else:
            _append_token(entry, token)
        end = position
    _append_address(entry, addresses, value[start:end])
    return position


def _is_in_source_route(entry: _AddressTokens) -> bool:
    """True inside a source route: `<@host,@host:` (RFC 5322, section 4.4)."""
    return (
        entry.is_in_angle
        and bool(entry.angle_tokens)
        and (entry.angle_tokens or [""])[0].startswith("@")
    )


def _drop_group_name_unless_address(entry: _AddressTokens) -> None:
    """Drop the name of a group.

    A colon after an `@` begins no group; it stays in the address as damage.
    """
    if entry.has_at:
        entry.phrase.append(":")
    else:
        entry.phrase.clear()
        entry.phrase_source.clear()
        entry.comments.clear()


def _append_token(entry: _AddressTokens, token: re.Match[str]) -> None:
    """Append a token to the angle address or to the phrase."""
    special = token.group("special")
    if special == "<":
        entry.is_in_angle, entry.angle_tokens = True, []
    elif special == ">":
        entry.is_in_angle = False
    elif entry.is_in_angle and entry.angle_tokens is not None:
        entry.angle_tokens.append(token.group())
    else:
        quoted = token.group("quoted")
        entry.phrase.append(token.group() if quoted is None else _ESCAPE.sub(r"\1", quoted))
        entry.phrase_source.append(token.group())
        entry.has_at = entry.has_at or "@" in entry.phrase[-1]


def _append_comment_and_return_end(value: str, position: int, entry: _AddressTokens) -> int:
    """Add the comment that began before `position`, and return the position after it.

    Comments can be nested (RFC 5322, section 3.2.2).
    """
    depth, start = 1, position
    while depth and (edge := _COMMENT_EDGE.search(value, position)):
        position = edge.end()
        if edge.group() == "\\":
            position += 1
        else:
            depth += 1 if edge.group() == "(" else -1
    if depth:
        position = len(value)
    entry.comments.append(value[start : position - 1] if not depth else value[start:])
    return position


def _append_address(
    entry: _AddressTokens, addresses: list[ParsedAddress], source_text: str
) -> None:
    """Build an address of the tokens and append it, unless name and address are empty."""
    phrase = "".join(entry.phrase)
    if entry.angle_tokens is not None:
        address = "".join(entry.angle_tokens).strip()
        if '"' not in address:
            address = "".join(word.strip() for word in _DOT_OR_AT.split(address))
        if address.startswith("@"):
            address = address.rpartition(":")[2]  # a route, RFC 5322, section 4.4
        name = _decode_display_name(phrase)
        if not address and "@" in phrase:
            name, address = _split_name_and_address(decode_encoded_words_and_drop_controls(phrase))
    elif _QUOTED_LOCAL.fullmatch(written_address := "".join(entry.phrase_source).strip()):
        name, address = None, written_address
    elif "@" in (text := decode_encoded_words_and_drop_controls(phrase)):
        name, address = _split_name_and_address(text)
    else:
        words = text.split()
        name, address = (
            (None, words[0]) if len(words) == 1 else (collapse_whitespace(text) or None, "")
        )
    if name is None and entry.comments:
        name = _decode_display_name(_ESCAPE.sub(r"\1", entry.comments[-1]))
    if address and not _ADDR_SPEC.fullmatch(address):
        name, address = _decode_display_name(source_text), ""
    if name or address:
        addresses.append(ParsedAddress(name, _address_with_unicode_domain(address)))


def _split_name_and_address(text: str) -> tuple[str | None, str]:
    """Return the name and the address of text without angle brackets."""
    tight = text.strip()
    if text.count("@") > 1 or (" " not in tight and "<" not in tight):
        return None, tight
    words = _WORD_SEPARATORS.split(text)
    address = next((word for word in words if "@" in word[1:-1]), None)
    if address is None:
        return None, "".join(text.split())
    words.remove(address)
    return collapse_whitespace(" ".join(words)) or None, address


def _decode_display_name(phrase: str) -> str | None:
    return collapse_whitespace(decode_encoded_words_and_drop_controls(phrase)) or None


def _address_with_unicode_domain(address: str) -> str:
    """Convert a punycode domain to Unicode. A domain that can't be converted stays."""
    if "xn--" not in address and "XN--" not in address:
        return address if address.isprintable() else decode_encoded_words_and_drop_controls(address)
    local, at, domain = address.rpartition("@")
    if len(domain) > _MAX_DOMAIN_LENGTH:
        return address
    try:
        return f"{local}{at}{idna.decode(domain)}"
    except (idna.IDNAError, UnicodeError, ValueError, IndexError):
        return address
