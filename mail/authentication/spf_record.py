"""Parser of SPF records (RFC 7208, sections 5 to 7)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import quote

IpAddress = IPv4Address | IPv6Address

MAX_NAME_LENGTH = 253  # characters of a domain name
MAX_TERMS = 500  # of one record
MAX_TERM_LENGTH = 500  # characters of a term

_MACRO = r"%\{[slodiphv][0-9]*r?[.\-+,/_=]*\}"
_TEXT = re.compile(rf"(?:{_MACRO}|%[%_-]|[!-$&-~])*", re.IGNORECASE)
_LABEL = r"(?:[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*|[A-Za-z0-9]+-[A-Za-z0-9-]*[A-Za-z0-9])"
_END = re.compile(rf"(?:\.{_LABEL}\.?|{_MACRO}|%[%_-])\Z", re.IGNORECASE)
_ANY_MACRO = re.compile(r"%\{([A-Za-z])([0-9]*)(r?)([.\-+,/_=]*)\}|%([%_-])")
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)=(.*)")
_MECHANISM = re.compile(r"([+?~-]?)([A-Za-z][A-Za-z0-9._-]*)(?::(.*?))?(/[0-9/]*)?")
_LENGTHS = re.compile(r"(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?")
_PLAIN = {"%": "%", "_": " ", "-": "%20"}


class SpfPermError(Exception):
    """The SPF record has an error: permerror."""


@dataclass(frozen=True, slots=True)
class SpfTerm:
    """A mechanism of an SPF record."""

    qualifier: str
    name: str  # in lower case
    target: str | None = None  # with macros in it; None: the domain itself
    ipv4_prefix: int = 32  # bits
    ipv6_prefix: int = 128
    network: IPv4Network | IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class SpfRecord:
    """The mechanisms of an SPF record in their order, and its redirect."""

    terms: list[SpfTerm] = field(default_factory=list)
    redirect: str | None = None


def is_spf_record(text: str) -> bool:
    """True if a TXT record is an SPF record."""
    return text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")


def parse_spf_record(text: str) -> SpfRecord:
    """Parse an SPF record. Raises SpfPermError for any syntax error."""
    words = [word for word in text.split(" ")[1:] if word]
    if (
        not text.isascii()
        or len(words) > MAX_TERMS
        or any(len(word) > MAX_TERM_LENGTH for word in words)
    ):
        raise SpfPermError("invalid SPF record")
    terms, modifiers = [], dict[str, str]()
    for word in words:
        if match := _MODIFIER.fullmatch(word):
            name, value = match[1].lower(), match[2]
            if name in ("redirect", "exp"):
                _validated_target(value)
                if name in modifiers:
                    raise SpfPermError(f"duplicate modifier {name}")
            elif not _TEXT.fullmatch(value):
                raise SpfPermError("invalid modifier")
            modifiers[name] = value
        else:
            terms.append(_parse_term(word))
    return SpfRecord(terms, modifiers.get("redirect"))


def _parse_term(word: str) -> SpfTerm:
    match = _MECHANISM.fullmatch(word)
    if not match:
        raise SpfPermError("unknown or invalid mechanism")
    qualifier, name, target, length = match[1] or "+", match[2].lower(), match[3], match[4] or ""
    if name in ("ip4", "ip6"):
        return _parse_network_term(qualifier, name, (target or "") + length)
    if name == "all" and target is None and not length:
        return SpfTerm(qualifier, name)
    if name in ("include", "exists") and target and not length:
        return SpfTerm(qualifier, name, _validated_target(target))
    if name == "ptr" and not length:
        return SpfTerm(qualifier, name, None if target is None else _validated_target(target))
    if name not in ("a", "mx"):
        raise SpfPermError("unknown or invalid mechanism")
    bits = _LENGTHS.fullmatch(length)
    v4, v6 = (int(bits[1] or 32), int(bits[2] or 128)) if bits else (33, 129)
    if v4 > 32 or v6 > 128:  # noqa: PLR2004 - bits of an address
        raise SpfPermError("invalid prefix length")
    return SpfTerm(qualifier, name, None if target is None else _validated_target(target), v4, v6)


def _parse_network_term(qualifier: str, name: str, text: str) -> SpfTerm:
    address, slash, length = text.partition("/")
    try:
        if slash and not re.fullmatch("0|[1-9][0-9]{0,2}", length):
            raise SpfPermError("invalid prefix length")
        network = ip_network(text, strict=False)
    except ValueError as problem:
        raise SpfPermError("invalid IP network") from problem
    if network.version != int(name[-1]) or "%" in address:
        raise SpfPermError("invalid IP network")
    return SpfTerm(qualifier, name, network=network)


def _validated_target(text: str) -> str:
    """Return the domain name with macros. Raises SpfPermError if it is none."""
    if not (_TEXT.fullmatch(text) and _END.search(text)):
        raise SpfPermError("invalid domain-spec")
    return text


def needs_client_name(text: str) -> bool:
    """True if the text contains the macro p, the validated name of the client."""
    return "%{p" in text.lower()


def expand_macros(text: str, values_by_letter: Mapping[str, str]) -> str:
    """Expand the macros of a text; the result is at most as long as a DNS name.

    Raises SpfPermError for a wrong macro.
    """

    def macro_value(match: re.Match[str]) -> str:
        macro_letter, digits, backwards, delimiters, plain = match.groups()
        if plain:
            return _PLAIN[plain]
        value = values_by_letter[macro_letter.lower()]
        parts = re.split(f"[{re.escape(delimiters)}]" if delimiters else r"\.", value)
        if backwards:
            parts.reverse()
        if digits:
            if not int(digits[:9]):
                raise SpfPermError("invalid macro")
            parts = parts[-int(digits[:9]) :]
        macro_text = ".".join(parts)
        return quote(macro_text, safe="") if macro_letter.isupper() else macro_text

    name = _ANY_MACRO.sub(macro_value, text)
    while len(name) > MAX_NAME_LENGTH and "." in name:
        name = name.partition(".")[2]
    return name


def dotted_address(ip: IpAddress) -> str:
    """The address as the macro i expands to it."""
    if ip.version == 4:  # noqa: PLR2004 - of IP
        return str(ip)
    return ".".join(ip.exploded.replace(":", ""))
