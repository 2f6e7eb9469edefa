"""Validate the fields of relay hosts, transports and TLS policies."""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import idna

from mail.addresses.address_syntax import checked, checked_domain
from mail.network.outbound_http import host_of
from mail.routing import certificate_checks
from mail.routing.certificate_checks import MOST
from mail.text.bounded_regex import Expression
from models.errors import Invalid
from models.routing.tables import TlsPolicyLevel

PORTS = 1 << 16
NAME = 255
SECRET = 8192  # characters: tokens are long
PARAMETERS = 2000  # characters
REGEX = 200  # characters of a regular expression

_ENDED = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,6}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PRINT = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}|[0-9A-Fa-f]{64}")
_VERSION = re.compile(r"(?:>=|<=|!)?TLSv1(?:\.[1-3])?|!SSLv[23]")
NAMED = frozenset({"hostname", "nexthop", "dot-nexthop"})  # match strategies of Postfix


def port(value: int, *, path: Sequence[str] = ("port",)) -> int:
    """Return the port number. Raises InvalidInput unless it is 1 to 65535."""
    if not 0 < value < PORTS:
        raise Invalid("1 to 65535", constraint="range", path=path)
    return value


def host(text: str, *, path: Sequence[str]) -> str:
    """Return a host name in ASCII, or an IP address without brackets. Raises InvalidInput."""
    wrong = Invalid("the name of a host, or its address", constraint="host", path=path)
    text = text.strip()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_address(bare.lower().removeprefix("ipv6:")))
    except ValueError:
        pass
    try:
        name = host_of(bare)
    except (idna.IDNAError, UnicodeError):
        raise wrong from None
    labels = name.split(".")
    fits = all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal()
    if not fits or len(name) > 253:  # noqa: PLR2004 - RFC 1035, section 2.3.4
        raise wrong
    return name


def host_and_port(text: str, *, path: Sequence[str]) -> tuple[str, int | None, bool]:
    """Return host, port or None, and whether the host has brackets, of `host:port`.

    An IPv6 address with a port needs brackets. Raises InvalidInput.
    """
    text = text.strip()
    try:
        return str(ip_address(text)), None, False
    except ValueError:
        pass
    found = _ENDED.fullmatch(text)
    if not found:
        raise Invalid("host, host:port or [host]:port", constraint="host", path=path)
    number = None if found["port"] is None else port(int(found["port"]), path=path)
    return host(found["host"], path=path), number, found["host"].startswith("[")


def next_hop(text: str, *, lookup_mx: bool, path: Sequence[str] = ("nextHop",)) -> str:
    """Return the next hop of a transport as host:port, [host]:port or domain.

    Raises InvalidInput if it is not one of these, or not a domain with `lookup_mx`.
    """
    name, number, bare = host_and_port(text, path=path)
    literal = _is_address(name)
    if lookup_mx and (bare or literal):
        text = "with lookupMx it is a domain, without brackets"
        raise Invalid(text, constraint="domain", path=path)
    shown = f"[{name}]" if bare or ":" in name else name
    if number is None:
        return shown if lookup_mx else f"{shown}:25"
    return f"{shown}:{number}"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def destination(text: str, *, path: Sequence[str] = ("destination",)) -> str:
    """Return the destination of a transport: domain, .domain, address or /regular expression/.

    Raises InvalidInput if it is none of these.
    """
    text = text.strip()
    if text.startswith("/"):
        return _expression(text, path)
    if text.startswith("."):
        return f".{_domain(text[1:], path)}"
    if "@" in text:
        with _placed(path):
            local, _, domain = checked(text).rpartition("@")
        return f"{local.lower()}@{domain}"
    return _domain(text, path)


def _expression(text: str, path: Sequence[str]) -> str:
    whole = len(text) > 2 and text.endswith("/")  # noqa: PLR2004 - both slashes
    if not whole or len(text) > REGEX or not text.isprintable():
        words = f"/regular expression/, at most {REGEX} characters"
        raise Invalid(words, constraint="pattern", path=path)
    with _placed(path):
        Expression(text[1:-1], slashes=False)
    return text


def tls_destination(text: str, *, path: Sequence[str] = ("destination",)) -> str:
    """Return the destination of a TLS policy: domain, .domain, [host] or [host]:port.

    Raises InvalidInput if it is none of these.
    """
    text = text.strip()
    if text.startswith("["):
        name, number, _ = host_and_port(text, path=path)
        return f"[{name}]" if number is None else f"[{name}]:{number}"
    if text.startswith("."):
        return f".{_domain(text[1:], path)}"
    return _domain(text, path)


def _domain(text: str, path: Sequence[str]) -> str:
    if _is_address(text):
        raise Invalid("an address stands in brackets", constraint="domain", path=path)
    with _placed(path):
        return checked_domain(text)


@contextmanager
def _placed(path: Sequence[str]) -> Generator[None]:
    """Raise an InvalidInput of the block again with this path."""
    try:
        yield
    except Invalid as problem:
        raise Invalid(problem.message, constraint=problem.constraint, path=path) from None


def username(text: str, *, path: Sequence[str] = ("username",)) -> str:
    """Return the username. Raises InvalidInput unless it is one printable line."""
    if not text or len(text) > NAME or not text.isprintable():
        words = f"1 to {NAME} printable characters"
        raise Invalid(words, constraint="length", path=path)
    return text


def password(text: str, *, path: Sequence[str] = ("password",)) -> str:
    """Return the password. Raises InvalidInput unless it is one line without control characters."""
    odd = any(sign < " " or sign == "\x7f" or "\ud800" <= sign <= "\udfff" for sign in text)
    if not text or len(text) > SECRET or odd:
        words = f"1 to {SECRET} characters on one line"
        raise Invalid(words, constraint="length", path=path)
    return text


def parameters(
    text: str | None, policy: TlsPolicyLevel, *, path: Sequence[str] = ("parameters",)
) -> str | None:
    """Return the parameters of a TLS policy, written as in Postfix, in normal form.

    `protocols=>=TLSv1.2` is for every level with TLS, `match=` for levels that compare names,
    or with fingerprints for FINGERPRINT, which requires it. Raises InvalidInput.
    """
    given = _attributes(text or "", path)
    most: dict[str, Callable[[str], str]] = {}
    if policy is not TlsPolicyLevel.NONE:
        most["protocols"] = lambda value: _protocols(value, path)
    if policy in (TlsPolicyLevel.VERIFY, TlsPolicyLevel.SECURE):
        most["match"] = lambda value: _names(value, path)
    if policy is TlsPolicyLevel.FINGERPRINT:
        most["match"] = lambda value: _prints(value, path)
        if "match" not in given:
            words = "FINGERPRINT needs match= and fingerprints"
            raise Invalid(words, constraint="required", path=path)
    for name in given:
        if name not in most:
            words = f"{policy} takes {' and '.join(sorted(most)) or 'none'}"
            raise Invalid(words, constraint="unsupported", path=path)
    made = " ".join(f"{name}={most[name](given[name])}" for name in sorted(given)) or None
    with _placed(path):
        certificate_checks.parameters(made, prints=policy is TlsPolicyLevel.FINGERPRINT)
    return made


def _attributes(text: str, path: Sequence[str]) -> dict[str, str]:
    if len(text) > PARAMETERS or not text.isascii() or not text.isprintable():
        words = f"at most {PARAMETERS} printable characters of ASCII"
        raise Invalid(words, constraint="length", path=path)
    found: dict[str, str] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        if not equals or not value or name in found:
            words = "name=value, each name once, with spaces between them"
            raise Invalid(words, constraint="pattern", path=path)
        found[name] = value
    return found


def _protocols(text: str, path: Sequence[str]) -> str:
    if not all(map(_VERSION.fullmatch, text.split(":"))):
        words = "protocols= and >=TLSv1.2, or versions with : between them, ! before those without"
        raise Invalid(words, constraint="protocols", path=path)
    return text


def _names(text: str, path: Sequence[str]) -> str:
    each = [name for name in text.lower().split(":") if name]
    if not 0 < len(each) <= MOST:
        raise Invalid(f"1 to {MOST} names", constraint="max", path=path)
    return ":".join(name if name in NAMED else _compared(name, path) for name in each)


def _compared(name: str, path: Sequence[str]) -> str:
    dot = "." if name.startswith(".") else ""
    return dot + host(name.removeprefix("."), path=path)


def _prints(text: str, path: Sequence[str]) -> str:
    each = text.split("|")
    if len(each) > MOST or not all(map(_PRINT.fullmatch, each)):
        words = f"1 to {MOST} fingerprints of SHA-256 in hex, with | between them"
        raise Invalid(words, constraint="fingerprint", path=path)
    return "|".join(each).replace(":", "").lower()
