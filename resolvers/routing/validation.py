"""Validate the fields of relay hosts, transports and TLS policies."""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import idna

from mail.addresses.address_syntax import (
    normalize_and_validate_address,
    normalize_and_validate_domain,
)
from mail.network.outbound_http import ascii_host
from mail.routing import certificate_checks
from mail.routing.certificate_checks import MAX_MATCHES
from mail.text.bounded_regex import BoundedRegex
from models.errors import InvalidInput
from models.routing.tables import TlsPolicyLevel
from models.validation_constraints import ValidationConstraint

PORT_LIMIT = 1 << 16
MAX_USERNAME_LENGTH = 255
MAX_PASSWORD_LENGTH = 8192  # characters: tokens are long
MAX_PARAMETERS_LENGTH = 2000  # characters
MAX_REGEX_LENGTH = 200  # characters of a regular expression

_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,6}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}|[0-9A-Fa-f]{64}")
_PROTOCOL_VERSION = re.compile(r"(?:>=|<=|!)?TLSv1(?:\.[1-3])?|!SSLv[23]")
MATCH_STRATEGIES = frozenset({"hostname", "nexthop", "dot-nexthop"})  # match strategies of Postfix


def validate_port(value: int, *, path: Sequence[str] = ("port",)) -> int:
    """Return the port number. Raises InvalidInput unless it is 1 to 65535."""
    if not 0 < value < PORT_LIMIT:
        raise InvalidInput(
            "Must be from 1 to 65535.", constraint=ValidationConstraint.RANGE, path=path
        )
    return value


def validate_host(text: str, *, path: Sequence[str]) -> str:
    """Return a host name in ASCII, or an IP address without brackets. Raises InvalidInput."""
    error = InvalidInput(
        "Must be a host name or IP address.", constraint=ValidationConstraint.HOST, path=path
    )
    text = text.strip()
    without_brackets = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_address(without_brackets.lower().removeprefix("ipv6:")))
    except ValueError:
        pass
    try:
        name = ascii_host(without_brackets)
    except (idna.IDNAError, UnicodeError):
        raise error from None
    labels = name.split(".")
    is_valid = all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal()
    if not is_valid or len(name) > 253:  # noqa: PLR2004 - RFC 1035, section 2.3.4
        raise error
    return name


@dataclass(frozen=True, slots=True)
class HostAndPort:
    """A host, its port if one is given, and whether the host is written in brackets."""

    host: str
    port: int | None
    has_brackets: bool


def parse_host_and_port(text: str, *, path: Sequence[str]) -> HostAndPort:
    """Parse `host:port`.

    An IPv6 address with a port needs brackets. Raises InvalidInput.
    """
    text = text.strip()
    try:
        return HostAndPort(str(ip_address(text)), None, has_brackets=False)
    except ValueError:
        pass
    match = _HOST_AND_PORT.fullmatch(text)
    if not match:
        raise InvalidInput(
            "Must be host, host:port or [host]:port.",
            constraint=ValidationConstraint.HOST,
            path=path,
        )
    port_number = None if match["port"] is None else validate_port(int(match["port"]), path=path)
    return HostAndPort(
        validate_host(match["host"], path=path),
        port_number,
        has_brackets=match["host"].startswith("["),
    )


def validate_next_hop(text: str, *, lookup_mx: bool, path: Sequence[str] = ("nextHop",)) -> str:
    """Return the next hop of a transport as host:port, [host]:port or domain.

    Raises InvalidInput if it is not one of these, or not a domain with `lookup_mx`.
    """
    next_hop = parse_host_and_port(text, path=path)
    is_literal = _is_ip_address(next_hop.host)
    if lookup_mx and (next_hop.has_brackets or is_literal):
        text = "With `lookupMx`, the next hop must be a domain without brackets."
        raise InvalidInput(text, constraint=ValidationConstraint.DOMAIN, path=path)
    is_bracketed = next_hop.has_brackets or ":" in next_hop.host
    host_text = f"[{next_hop.host}]" if is_bracketed else next_hop.host
    if next_hop.port is None:
        return host_text if lookup_mx else f"{host_text}:25"
    return f"{host_text}:{next_hop.port}"


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def validate_destination(text: str, *, path: Sequence[str] = ("destination",)) -> str:
    """Return the destination of a transport: domain, .domain, address or /regular expression/.

    Raises InvalidInput if it is none of these.
    """
    text = text.strip()
    if text.startswith("/"):
        return _validate_regex(text, path)
    if text.startswith("."):
        return f".{_validate_destination_domain(text[1:], path)}"
    if "@" in text:
        with _errors_with_path(path):
            local, _, domain = normalize_and_validate_address(text).rpartition("@")
        return f"{local.lower()}@{domain}"
    return _validate_destination_domain(text, path)


def _validate_regex(text: str, path: Sequence[str]) -> str:
    has_slashes = len(text) > 2 and text.endswith("/")  # noqa: PLR2004 - both slashes
    if not has_slashes or len(text) > MAX_REGEX_LENGTH or not text.isprintable():
        message = (
            f"Must be a /regular expression/ of at most {MAX_REGEX_LENGTH} printable characters."
        )
        raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=path)
    with _errors_with_path(path):
        BoundedRegex(text[1:-1], allow_slashes=False)
    return text


def validate_tls_destination(text: str, *, path: Sequence[str] = ("destination",)) -> str:
    """Return the destination of a TLS policy: domain, .domain, [host] or [host]:port.

    Raises InvalidInput if it is none of these.
    """
    text = text.strip()
    if text.startswith("["):
        destination = parse_host_and_port(text, path=path)
        port_suffix = "" if destination.port is None else f":{destination.port}"
        return f"[{destination.host}]{port_suffix}"
    if text.startswith("."):
        return f".{_validate_destination_domain(text[1:], path)}"
    return _validate_destination_domain(text, path)


def _validate_destination_domain(text: str, path: Sequence[str]) -> str:
    if _is_ip_address(text):
        raise InvalidInput(
            "An IP address must be in brackets.", constraint=ValidationConstraint.DOMAIN, path=path
        )
    with _errors_with_path(path):
        return normalize_and_validate_domain(text)


@contextmanager
def _errors_with_path(path: Sequence[str]) -> Generator[None]:
    """Raise an InvalidInput of the block again with this path."""
    try:
        yield
    except InvalidInput as problem:
        raise InvalidInput(problem.message, constraint=problem.constraint, path=path) from None


def validate_username(text: str, *, path: Sequence[str] = ("username",)) -> str:
    """Return the username. Raises InvalidInput unless it is one printable line."""
    if not text or len(text) > MAX_USERNAME_LENGTH or not text.isprintable():
        message = f"Must have from 1 to {MAX_USERNAME_LENGTH} printable characters."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    return text


def validate_password(text: str, *, path: Sequence[str] = ("password",)) -> str:
    """Return the password. Raises InvalidInput unless it is one line without control characters."""
    has_control_characters = any(
        character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff"
        for character in text
    )
    if not text or len(text) > MAX_PASSWORD_LENGTH or has_control_characters:
        message = f"Must have from 1 to {MAX_PASSWORD_LENGTH} characters on one line."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    return text


def validate_tls_parameters(
    text: str | None, level: TlsPolicyLevel, *, path: Sequence[str] = ("parameters",)
) -> str | None:
    """Validate the parameters of a TLS policy, written as in Postfix; return them in normal form.

    Each level except NONE allows `protocols=`, for example with the value `>=TLSv1.2`. VERIFY and
    SECURE allow `match=` with host names or MATCH_STRATEGIES. FINGERPRINT requires `match=` with
    fingerprints. Returns None without parameters. Raises InvalidInput.
    """
    attributes = _parse_attributes(text or "", path)
    validators: dict[str, Callable[[str], str]] = {}
    if level is not TlsPolicyLevel.NONE:
        validators["protocols"] = lambda value: _validate_protocols(value, path)
    if level in (TlsPolicyLevel.VERIFY, TlsPolicyLevel.SECURE):
        validators["match"] = lambda value: _validate_match_names(value, path)
    if level is TlsPolicyLevel.FINGERPRINT:
        validators["match"] = lambda value: _validate_fingerprints(value, path)
        if "match" not in attributes:
            message = "FINGERPRINT requires match= with fingerprints."
            raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=path)
    for name in attributes:
        if name not in validators:
            message = f"{level} allows the parameters {' and '.join(sorted(validators)) or 'none'}."
            raise InvalidInput(message, constraint=ValidationConstraint.UNSUPPORTED, path=path)
    normalized = (
        " ".join(f"{name}={validators[name](attributes[name])}" for name in sorted(attributes))
        or None
    )
    with _errors_with_path(path):
        certificate_checks.parse_policy_parameters(
            normalized, expects_fingerprints=level is TlsPolicyLevel.FINGERPRINT
        )
    return normalized


def _parse_attributes(text: str, path: Sequence[str]) -> dict[str, str]:
    if len(text) > MAX_PARAMETERS_LENGTH or not text.isascii() or not text.isprintable():
        message = f"The parameters have at most {MAX_PARAMETERS_LENGTH} printable ASCII characters."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    attributes: dict[str, str] = {}
    for item in text.replace(",", " ").split():
        name, equals, value = item.partition("=")
        if not equals or not value or name in attributes:
            message = "Must be name=value, each name once, separated by spaces."
            raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=path)
        attributes[name] = value
    return attributes


def _validate_protocols(text: str, path: Sequence[str]) -> str:
    if not all(map(_PROTOCOL_VERSION.fullmatch, text.split(":"))):
        message = (
            "Must be protocols= with >=TLSv1.2, or with versions separated by a "
            "colon. ! excludes a version."
        )
        raise InvalidInput(message, constraint=ValidationConstraint.TLS_PROTOCOLS, path=path)
    return text


def _validate_match_names(text: str, path: Sequence[str]) -> str:
    names = [name for name in text.lower().split(":") if name]
    if not 0 < len(names) <= MAX_MATCHES:
        raise InvalidInput(
            f"match= must have from 1 to {MAX_MATCHES} names.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return ":".join(
        name if name in MATCH_STRATEGIES else _validate_match_name(name, path) for name in names
    )


def _validate_match_name(name: str, path: Sequence[str]) -> str:
    prefix = "." if name.startswith(".") else ""
    return prefix + validate_host(name.removeprefix("."), path=path)


def _validate_fingerprints(text: str, path: Sequence[str]) -> str:
    fingerprints = text.split("|")
    if len(fingerprints) > MAX_MATCHES or not all(map(_FINGERPRINT.fullmatch, fingerprints)):
        message = (
            f"match= must have from 1 to {MAX_MATCHES} SHA-256 fingerprints in "
            "hexadecimal, separated by |."
        )
        raise InvalidInput(message, constraint=ValidationConstraint.FINGERPRINT, path=path)
    return "|".join(fingerprints).replace(":", "").lower()
