"""Certificate requirements for outgoing TLS, and the parser of TLS policy parameters."""

import hashlib
import re
import ssl
from dataclasses import dataclass
from enum import StrEnum

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

ERROR_PATH = ("parameters",)
VERSION_BY_NAME = {
    "tlsv1": ssl.TLSVersion.TLSv1,
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
OBSOLETE_VERSIONS = ("sslv2", "sslv3")  # never used, so excluding them changes nothing
VERSIONS = list(VERSION_BY_NAME.values())
MAX_MATCHES = 50  # names or fingerprints in a policy
MAX_NAME_LENGTH = 253  # characters

_NAME = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_FINGERPRINT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class CertificateCheck(StrEnum):
    """The kind of certificate check."""

    NOTHING = "NOTHING"
    NAMES = "NAMES"  # a trusted authority signed it for one of the names
    TLSA = "TLSA"  # a TLSA record matches it (RFC 7672)
    PRINTS = "PRINTS"  # its fingerprint is one of the given ones


@dataclass(frozen=True, slots=True)
class TlsaRecord:
    """A TLSA record, which identifies a certificate or public key (RFC 6698)."""

    usage: int
    selector: int
    matching_type: int
    association_data: bytes

    @property
    def is_usable(self) -> bool:
        """True if SMTP can use the record: usage 2 or 3 (RFC 7672, section 3.1.3)."""
        valid_sizes = {0: len(self.association_data) or -1, 1: 32, 2: 64}
        is_known = self.usage in (2, 3) and self.selector in (0, 1)
        return is_known and valid_sizes.get(self.matching_type) == len(self.association_data)

    def matches(self, certificate: bytes, public_key: bytes) -> bool:
        """True if the record matches this certificate or its public key, both in DER."""
        compared = public_key if self.selector else certificate
        if self.matching_type == 1:
            compared = hashlib.sha256(compared).digest()
        elif self.matching_type:
            compared = hashlib.sha512(compared).digest()
        return compared == self.association_data


@dataclass(frozen=True, slots=True)
class CertificateRequirement:
    """What the certificate and TLS version of a server must meet."""

    check: CertificateCheck = CertificateCheck.NAMES
    names: tuple[str, ...] = ()  # accepted names; empty: the host name
    tlsa_records: tuple[TlsaRecord, ...] = ()
    fingerprints: tuple[bytes, ...] = ()  # SHA-1 or SHA-256, of certificate or public key
    minimum_version: ssl.TLSVersion | None = None
    maximum_version: ssl.TLSVersion | None = None
    source: str = ""  # where the requirement comes from, for the log


HOST_NAME_REQUIRED = CertificateRequirement()


@dataclass(frozen=True, slots=True)
class TlsPolicyParameters:
    """The parameters of a TLS policy in the syntax of Postfix."""

    match_values: tuple[
        str, ...
    ] = ()  # names, "hostname", "nexthop", "dot-nexthop"; or fingerprints
    minimum_version: ssl.TLSVersion | None = None
    maximum_version: ssl.TLSVersion | None = None


def parse_policy_parameters(
    parameter_text: str | None, *, expects_fingerprints: bool = False
) -> TlsPolicyParameters:
    """Parse "match=example.com:.example.com protocols=>=TLSv1.2". Raises InvalidInput.

    With `expects_fingerprints`, `match` has hexadecimal fingerprints, separated by |.
    """
    match_values: list[str] = []
    minimum_version = maximum_version = None
    for word in (parameter_text or "").replace(",", " ").split():
        name, equals_sign, value = word.partition("=")
        if not equals_sign or not value:
            raise InvalidInput(
                f"{word[:40]}: must be name=value.",
                constraint=ValidationConstraint.PARAMETERS,
                path=ERROR_PATH,
            )
        if name == "match":
            match_values += (
                _parse_fingerprints(value) if expects_fingerprints else _parse_match_names(value)
            )
        elif name == "protocols":
            minimum_version, maximum_version = _parse_lowest_and_highest_protocol(value)
        else:
            raise InvalidInput(
                f"{name[:40]} is unknown: use match and protocols.",
                constraint=ValidationConstraint.PARAMETERS,
                path=ERROR_PATH,
            )
    if len(match_values) > MAX_MATCHES:
        raise InvalidInput(
            f"match= has at most {MAX_MATCHES} names.",
            constraint=ValidationConstraint.PARAMETERS,
            path=ERROR_PATH,
        )
    return TlsPolicyParameters(tuple(match_values), minimum_version, maximum_version)


def _parse_match_names(value: str) -> list[str]:
    """Server names, separated by colons. Raises InvalidInput."""
    names = [part.lower() for part in value.split(":")]
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
            text = f"match={value[:80]}: must be server names, separated by a colon."
            raise InvalidInput(text, constraint=ValidationConstraint.PARAMETERS, path=ERROR_PATH)
    return names


def _parse_fingerprints(value: str) -> list[str]:
    """Fingerprints in lower case, without prefix and colons. Raises InvalidInput."""
    fingerprints = []
    for value_part in value.lower().split("|"):
        digits = value_part.removeprefix("sha256:").removeprefix("sha1:").replace(":", "")
        if not _FINGERPRINT.fullmatch(digits):
            text = "match= must have SHA-256 or SHA-1 fingerprints, separated by |."
            raise InvalidInput(text, constraint=ValidationConstraint.PARAMETERS, path=ERROR_PATH)
        fingerprints.append(digits)
    return fingerprints


def _parse_lowest_and_highest_protocol(
    value: str,
) -> tuple[ssl.TLSVersion | None, ssl.TLSVersion | None]:
    """The lowest and highest version of ">=TLSv1.2" or "!TLSv1:!TLSv1.1". Raises InvalidInput.

    None means no limit.
    """
    lowest = highest = None
    excluded: set[ssl.TLSVersion] = set()
    listed: set[ssl.TLSVersion] = set()
    for word in value.lower().split(":"):
        version_name = word.lstrip("!<>=")
        if version_name in OBSOLETE_VERSIONS and word.startswith("!"):
            continue
        if version_name not in VERSION_BY_NAME:
            text = f"protocols={value[:80]}: must be such as >=TLSv1.2 or !TLSv1:!TLSv1.1."
            raise InvalidInput(text, constraint=ValidationConstraint.PARAMETERS, path=ERROR_PATH)
        version = VERSION_BY_NAME[version_name]
        if word.startswith(">="):
            lowest = version
        elif word.startswith("<="):
            highest = version
        elif word.startswith("!"):
            excluded.add(version)
        elif word == version_name:
            listed.add(version)
    allowed = [
        candidate
        for candidate in VERSIONS
        if candidate not in excluded and (not listed or candidate in listed)
    ]
    allowed = [
        candidate
        for candidate in allowed
        if candidate >= (lowest or candidate) and candidate <= (highest or candidate)
    ]
    if not allowed:
        raise InvalidInput(
            "protocols= excludes every version.",
            constraint=ValidationConstraint.PARAMETERS,
            path=ERROR_PATH,
        )
    minimum = allowed[0] if excluded or listed or lowest else None
    maximum = allowed[-1] if excluded or listed or highest else None
    return minimum, maximum if maximum is not VERSIONS[-1] else None


def matches_names(certificate_names: list[str], accepted_names: tuple[str, ...]) -> bool:
    """True if one of the certificate's names is accepted. `.domain` accepts all subdomains.

    A wildcard matches one label, the first (RFC 6125, section 6.4.3).
    """
    return any(
        _matches_name(name.lower(), accepted_name)
        for name in certificate_names
        for accepted_name in accepted_names
    )


def _matches_name(name: str, accepted_name: str) -> bool:
    """True if one name of a certificate is accepted."""
    if accepted_name.startswith("."):
        return name.removeprefix("*").endswith(accepted_name) and name != accepted_name
    if name.startswith("*."):
        return accepted_name.partition(".")[2] == name[2:] and "." in name[2:]
    return name == accepted_name
