"""Address lists of header fields (RFC 5322, section 3.4, and common deviations)."""

import re
from dataclasses import dataclass, field

import idna

from mail.addresses.quoted_local_part import ATOM, remove_needless_quotes
from mail.mime.encoded_words import collapse_whitespace, decode_encoded_words_and_drop_controls
from mail.mime.header_fields import SPACE_AROUND_DOT

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
_WORD = rf'(?:{ATOM}|"(?:[^"\\\r\n]|\\.)*+")'
_ADDR_SPEC = re.compile(rf"{_WORD}(?:\.{_WORD})*+@(?:{ATOM}(?:\.{ATOM})*+|\[[^\[\]\\\s]*+\])")
_SPACE_AROUND_AT = re.compile(r"(?<!\s)\s*+(@)\s*+")
_COMMENT_MARK = "()"  # token in the place of a comment
_QUOTED, _COMMENT = "\0", "\1"  # characters in the place of quoted strings and comments
_MASK_CHARACTERS = re.compile(r"[\0\1]")
_WORD_SEPARATORS = re.compile(r"[\s<>\"'(),;:]+")


@dataclass(frozen=True, slots=True)
class ParsedAddress:
    """A mailbox of an address header.

    If RFC 5322 does not allow the address, `name` is the text of the header and `address` is "".
    """

    name: str | None
    # without needless quotes, else as written; the domain in Unicode; "" if there is no valid one
    address: str


@dataclass(slots=True)
class _AddressTokens:
    """The tokens of one address while it is read."""

    phrase: list[str] = field(default_factory=list)
    # the phrase with its quotes, and a mark for each comment
    phrase_source: list[str] = field(default_factory=list)
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
    if entry.is_in_angle and entry.angle_tokens is not None:
        entry.angle_tokens.append(" ")  # a comment separates atoms, like white space
    else:
        entry.phrase.append(" ")
        entry.phrase_source.append(_COMMENT_MARK)
    return position


def _append_address(
    entry: _AddressTokens, addresses: list[ParsedAddress], source_text: str
) -> None:
    """Build an address of the tokens and append it, unless name and address are empty."""
    phrase = "".join(entry.phrase)
    if entry.angle_tokens is not None:
        address = _without_space_around_dots(entry.angle_tokens)
        if address.startswith("@"):
            address = address.rpartition(":")[2].strip()  # a route, RFC 5322, section 4.4
        name = _decode_display_name(phrase)
        if not address and "@" in phrase:
            name, address = _name_and_address_without_angle(entry)
    else:
        name, address = _name_and_address_without_angle(entry)
    if name is None and entry.comments:
        name = _decode_display_name(_ESCAPE.sub(r"\1", entry.comments[-1]))
    if address and not _ADDR_SPEC.fullmatch(address):
        name, address = _decode_display_name(source_text), ""
    if name or address:
        address = remove_needless_quotes(address)
        addresses.append(ParsedAddress(name, _address_with_unicode_domain(address)))


def _name_and_address_without_angle(entry: _AddressTokens) -> tuple[str | None, str]:
    """Return the name and the address of an entry whose address is not in angle brackets.

    If a comment is inside the address, the address is returned with white space instead.
    """
    masked = _masked_text(entry.phrase_source)
    tight = _SPACE_AROUND_AT.sub(r"\1", masked.replace(_COMMENT, " ").strip())
    tight = _unmasked_text(tight, entry.phrase_source)
    if _ADDR_SPEC.fullmatch(tight):
        return None, tight
    text = decode_encoded_words_and_drop_controls("".join(entry.phrase))
    if "@" in text:
        if _is_comment_in_or_after_address(masked):
            return None, _without_space_around_dots(entry.phrase_source)
        return _split_name_and_address(text)
    words = text.split()
    if len(words) == 1:
        return None, words[0]
    return collapse_whitespace(text) or None, ""


def _is_comment_in_or_after_address(masked_phrase: str) -> bool:
    """True if a comment is beside or behind the word with "@", with more text after the comment."""
    pieces = [piece for piece in masked_phrase.split(_COMMENT) if piece.strip()]
    if len(pieces) <= 1:
        return False
    *before, last = pieces
    return any("@" in piece for piece in before) or not last[:1].isspace()


def _without_space_around_dots(tokens: list[str]) -> str:
    """Return the text of tokens without comments and without white space around dots and "@"."""
    spaced = _masked_text(tokens).replace(_COMMENT, " ")
    return _unmasked_text(SPACE_AROUND_DOT.sub(r"\1", spaced).strip(), tokens)


def _masked_text(tokens: list[str]) -> str:
    """Return the text of tokens with one character for each quoted string and each comment."""
    return "".join(
        _COMMENT
        if token == _COMMENT_MARK
        else _QUOTED
        if _is_quoted_string(token)
        else _MASK_CHARACTERS.sub("\x7f", token)
        for token in tokens
    )


def _unmasked_text(masked_text: str, tokens: list[str]) -> str:
    """Return the text with the quoted strings of the tokens in their places."""
    first, *rest = masked_text.split(_QUOTED)
    quoted_strings = filter(_is_quoted_string, tokens)
    return first + "".join(
        f"{quoted}{text}" for quoted, text in zip(quoted_strings, rest, strict=True)
    )


def _is_quoted_string(token: str) -> bool:
    return token[0] == '"' and len(token) > 1


def _split_name_and_address(text: str) -> tuple[str | None, str]:
    """Return the name and the address of text without angle brackets."""
    tight = text.strip()
    if text.count("@") > 1 or (" " not in tight and "<" not in tight):
        return None, tight
    words = _WORD_SEPARATORS.split(text)
    address = next((word for word in words if "@" in word[1:-1]), None)
    if address is None:
        return None, SPACE_AROUND_DOT.sub(r"\1", text).strip()
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
