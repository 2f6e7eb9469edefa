"""Address lists of header fields (RFC 5322, section 3.4, and common deviations)."""

import re
from dataclasses import dataclass, field

import idna

from mail.mime.encoded_words import collapsed, decode_words

MOST_ADDRESSES = 10_000
_LONGEST_DOMAIN = 255

_USUAL = re.compile(
    r"\s*+(?:\"([^\"\\]*+)\"|([^\"(),:;<>@\[\]\\]*+))\s*+<([^\s\"(),:;<>@\[\]\\]++@[^\s\"(),:;<>@\[\]\\]++)>"
    r"\s*+(?:,|$)"
)
_BARE = re.compile(r"\s*+([^\s\"(),:;<>@\[\]\\]++@[^\s\"(),:;<>@\[\]\\]++)\s*+(?:,|$)")
_TOKEN = re.compile(
    r"(?P<word>=\?[^?\s]++\?[bBqQ]\?[^?\s]*+\?=)"
    r"|\"(?P<quoted>[^\"\\]{0,2000}+(?:\\.[^\"\\]{0,2000}+){0,100}+)\""
    r"|(?P<literal>\[[^\]\s]{0,99}\])"
    r"|(?P<special>[(<>,;:])"
    r"|(?P<space>\s++)"
    r"|(?P<text>[^\"(<>,;:\s\[=]++|.)",
    re.DOTALL,
)
_NOTHING = re.compile(r"[\s,;]*+")
_COMMENT_EDGE = re.compile(r"[()\\]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_QUOTED_LOCAL = re.compile(r"\"[^\"]{1,64}\"@[^\s\"@]+")
_ATOM = r"[^\s\x00-\x1f\x7f()<>\[\]:;@\\,.\"]++"
_WORD = rf'(?:{_ATOM}|"(?:[^"\\\r\n]|\\.)*+")'
_ADDR_SPEC = re.compile(rf"{_WORD}(?:\.{_WORD})*+@(?:{_ATOM}(?:\.{_ATOM})*+|\[[^\[\]\\\s]*+\])")
_AROUND_DOT = re.compile(r"\s*([.@])\s*")
_EDGES = re.compile(r"[\s<>\"'(),;:]+")


@dataclass(frozen=True, slots=True)
class MailAddress:
    """A mailbox of an address header.

    If RFC 5322 does not allow the address, `name` is the text of the header and `address` is "".
    """

    name: str | None
    address: str  # as written, the domain in Unicode; "" if there is no valid one


@dataclass(slots=True)
class _Entry:
    """The tokens of one address while it is read."""

    phrase: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # the phrase with its quotes
    angle: list[str] | None = None
    is_in_angle: bool = False
    comments: list[str] = field(default_factory=list)


def addresses(value: str) -> list[MailAddress]:
    """Return the addresses of an unfolded header value, at most 10,000.

    Members of groups are listed like other addresses. A comment is the name of an address that has
    no other. Never raises.
    """
    found: list[MailAddress] = []
    at, end = 0, len(value)
    for _ in range(2 * MOST_ADDRESSES):  # empty addresses cost time too
        nothing = _NOTHING.match(value, at)  # it always matches
        at = nothing.end() if nothing else end
        if at >= end or len(found) >= MOST_ADDRESSES:
            break
        usual = _USUAL.match(value, at)
        if usual and _ADDR_SPEC.fullmatch(usual.group(3)):
            name = usual.group(1) or usual.group(2)
            found.append(MailAddress(_name(name) if name else None, _shown(usual.group(3))))
            at = usual.end()
            continue
        bare = _BARE.match(value, at)
        if bare and _ADDR_SPEC.fullmatch(bare.group(1)):
            found.append(MailAddress(None, _shown(bare.group(1))))
            at = bare.end()
            continue
        at = _slowly(value, at, found)
    return found


def _slowly(value: str, at: int, found: list[MailAddress]) -> int:
    """Append one address, read token by token, and return the position after it."""
    entry = _Entry()
    start = end = at
    while token := _TOKEN.match(value, at):
        at, end = token.end(), token.start()
        special = token.group("special")
        if special == "(":
            at = _comment(value, at, entry)
        elif (special == ";" and not entry.is_in_angle) or (
            special == "," and not _is_in_route(entry)
        ):
            break
        elif special == "<" and entry.angle is not None and not entry.is_in_angle:
            at = token.start()  # a forgotten comma
            break
        elif special == ":" and not entry.is_in_angle and entry.angle is None:
            _colon(entry)
        else:
            _take(entry, token)
        end = at
    _finish(entry, found, value[start:end])
    return at


def _is_in_route(entry: _Entry) -> bool:
    """True inside a source route: `<@host,@host:` (RFC 5322, section 4.4)."""
    return entry.is_in_angle and bool(entry.angle) and (entry.angle or [""])[0].startswith("@")


def _colon(entry: _Entry) -> None:
    """Drop the name of a group.

    A colon after an `@` begins no group; it stays in the address as damage.
    """
    if any("@" in word for word in entry.phrase):
        entry.phrase.append(":")
    else:
        entry.phrase.clear()
        entry.written.clear()
        entry.comments.clear()


def _take(entry: _Entry, token: re.Match[str]) -> None:
    """Append a token to the angle address or to the phrase."""
    special = token.group("special")
    if special == "<":
        entry.is_in_angle, entry.angle = True, []
    elif special == ">":
        entry.is_in_angle = False
    elif entry.is_in_angle and entry.angle is not None:
        entry.angle.append(token.group())
    else:
        quoted = token.group("quoted")
        entry.phrase.append(token.group() if quoted is None else _ESCAPE.sub(r"\1", quoted))
        entry.written.append(token.group())


def _comment(value: str, at: int, entry: _Entry) -> int:
    """Add the comment that began before `position`, and return the position after it.

    Comments can be nested (RFC 5322, section 3.2.2).
    """
    depth, start = 1, at
    while depth and (edge := _COMMENT_EDGE.search(value, at)):
        at = edge.end()
        if edge.group() == "\\":
            at += 1
        else:
            depth += 1 if edge.group() == "(" else -1
    if depth:
        at = len(value)
    entry.comments.append(value[start : at - 1] if not depth else value[start:])
    return at


def _finish(entry: _Entry, found: list[MailAddress], raw: str) -> None:
    """Build an address of the tokens and append it, unless name and address are empty."""
    phrase = "".join(entry.phrase)
    if entry.angle is not None:
        address = "".join(entry.angle).strip()
        if '"' not in address:
            address = _AROUND_DOT.sub(r"\1", address)
        if address.startswith("@"):
            address = address.rpartition(":")[2]  # a route, RFC 5322, section 4.4
        name = _name(phrase)
        if not address and "@" in phrase:
            name, address = _apart(decode_words(phrase))
    elif _QUOTED_LOCAL.fullmatch(written := "".join(entry.written).strip()):
        name, address = None, written
    elif "@" in (text := decode_words(phrase)):
        name, address = _apart(text)
    else:
        words = text.split()
        name, address = (None, words[0]) if len(words) == 1 else (collapsed(text) or None, "")
    if name is None and entry.comments:
        name = _name(_ESCAPE.sub(r"\1", entry.comments[-1]))
    if address and not _ADDR_SPEC.fullmatch(address):
        name, address = _name(raw), ""
    if name or address:
        found.append(MailAddress(name, _shown(address)))


def _apart(text: str) -> tuple[str | None, str]:
    """Return the name and the address of text without angle brackets."""
    tight = text.strip()
    if text.count("@") > 1 or (" " not in tight and "<" not in tight):
        return None, tight
    words = _EDGES.split(text)
    address = next((word for word in words if "@" in word[1:-1]), None)
    if address is None:
        return None, "".join(text.split())
    words.remove(address)
    return collapsed(" ".join(words)) or None, address


def _name(phrase: str) -> str | None:
    return collapsed(decode_words(phrase)) or None


def _shown(address: str) -> str:
    """Convert a punycode domain to Unicode. A domain that can't be converted stays."""
    if "xn--" not in address and "XN--" not in address:
        return address if address.isprintable() else decode_words(address)
    local, at, domain = address.rpartition("@")
    if len(domain) > _LONGEST_DOMAIN:
        return address
    try:
        return f"{local}{at}{idna.decode(domain)}"
    except (idna.IDNAError, UnicodeError, ValueError, IndexError):
        return address
