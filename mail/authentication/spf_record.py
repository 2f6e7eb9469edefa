"""Parser of SPF records (RFC 7208, sections 5 to 7)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import quote

Ip = IPv4Address | IPv6Address

LONGEST = 253  # characters of a domain name
TERMS = 500  # of one record
WORD = 500  # characters of a term

_MACRO = r"%\{[slodiphv][0-9]*r?[.\-+,/_=]*\}"
_TEXT = re.compile(rf"(?:{_MACRO}|%[%_-]|[!-$&-~])*", re.IGNORECASE)
_LABEL = r"(?:[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*|[A-Za-z0-9]+-[A-Za-z0-9-]*[A-Za-z0-9])"
_END = re.compile(rf"(?:\.{_LABEL}\.?|{_MACRO}|%[%_-])\Z", re.IGNORECASE)
_ANY_MACRO = re.compile(r"%\{([A-Za-z])([0-9]*)(r?)([.\-+,/_=]*)\}|%([%_-])")
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)=(.*)")
_MECHANISM = re.compile(r"([+?~-]?)([A-Za-z][A-Za-z0-9._-]*)(?::(.*?))?(/[0-9/]*)?")
_LENGTHS = re.compile(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?")
_PLAIN = {"%": "%", "_": " ", "-": "%20"}


class Wrong(Exception):
    """The SPF record has an error: permerror."""


@dataclass(frozen=True, slots=True)
class Term:
    """A mechanism of an SPF record."""

    qualifier: str
    name: str  # in lower case
    target: str | None = None  # with macros in it; None: the domain itself
    v4: int = 32  # bits
    v6: int = 128
    network: IPv4Network | IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The mechanisms of an SPF record in their order, and its redirect."""

    terms: list[Term] = field(default_factory=list)
    redirect: str | None = None


def is_record(text: str) -> bool:
    """True if a TXT record is an SPF record."""
    return text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")


def parsed(text: str) -> Record:
    """Parse an SPF record. Raises SpfPermError for any syntax error."""
    words = [word for word in text.split(" ")[1:] if word]
    if not text.isascii() or len(words) > TERMS or any(len(word) > WORD for word in words):
        raise Wrong("no text of SPF")
    terms, modifiers = [], dict[str, str]()
    for word in words:
        if found := _MODIFIER.fullmatch(word):
            name, value = found[1].lower(), found[2]
            if name in ("redirect", "exp"):
                _target(value)
                if name in modifiers:
                    raise Wrong(f"{name} twice")
            elif not _TEXT.fullmatch(value):
                raise Wrong("no modifier")
            modifiers[name] = value
        else:
            terms.append(_term(word))
    return Record(terms, modifiers.get("redirect"))


def _term(word: str) -> Term:
    found = _MECHANISM.fullmatch(word)
    if not found:
        raise Wrong("no mechanism")
    qualifier, name, target, length = found[1] or "+", found[2].lower(), found[3], found[4] or ""
    if name in ("ip4", "ip6"):
        return _network(qualifier, name, (target or "") + length)
    if name == "all" and target is None and not length:
        return Term(qualifier, name)
    if name in ("include", "exists") and target and not length:
        return Term(qualifier, name, _target(target))
    if name == "ptr" and not length:
        return Term(qualifier, name, None if target is None else _target(target))
    if name not in ("a", "mx"):
        raise Wrong("no mechanism")
    bits = _LENGTHS.fullmatch(length)
    v4, v6 = (int(bits[1] or 32), int(bits[2] or 128)) if bits else (33, 129)
    if v4 > 32 or v6 > 128:  # noqa: PLR2004 - bits of an address
        raise Wrong("no such length")
    return Term(qualifier, name, None if target is None else _target(target), v4, v6)


def _network(qualifier: str, name: str, text: str) -> Term:
    address, mark, length = text.partition("/")
    try:
        if mark and not re.fullmatch("0|[1-9][0-9]{0,2}", length):
            raise Wrong("no such length")
        network = ip_network(text, strict=False)
    except ValueError as problem:
        raise Wrong("no network") from problem
    if network.version != int(name[-1]) or "%" in address:
        raise Wrong("no network")
    return Term(qualifier, name, network=network)


def _target(text: str) -> str:
    """Return the domain name with macros. Raises SpfPermError if it is none."""
    if not (_TEXT.fullmatch(text) and _END.search(text)):
        raise Wrong("no name")
    return text


def needs_name(text: str) -> bool:
    """True if the text contains the macro p, the validated name of the client."""
    return "%{p" in text.lower()


def expanded(text: str, known: Mapping[str, str]) -> str:
    """Expand the macros of a text; the result is at most as long as a DNS name.

    Raises SpfPermError for a wrong macro.
    """

    def replaced(found: re.Match[str]) -> str:
        letter, digits, backwards, delimiters, plain = found.groups()
        if plain:
            return _PLAIN[plain]
        value = known[letter.lower()]
        parts = re.split(f"[{re.escape(delimiters)}]" if delimiters else r"\.", value)
        if backwards:
            parts.reverse()
        if digits:
            if not int(digits[:9]):
                raise Wrong("no part of a macro")
            parts = parts[-int(digits[:9]) :]
        made = ".".join(parts)
        return quote(made, safe="") if letter.isupper() else made

    name = _ANY_MACRO.sub(replaced, text)
    while len(name) > LONGEST and "." in name:
        name = name.partition(".")[2]
    return name


def dotted(ip: Ip) -> str:
    """The address as the macro i expands to it."""
    if ip.version == 4:  # noqa: PLR2004 - of IP
        return str(ip)
    return ".".join(ip.exploded.replace(":", ""))
