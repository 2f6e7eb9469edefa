"""Certificate requirements for outgoing TLS, and the parser of TLS policy parameters."""

import hashlib
import re
import ssl
from dataclasses import dataclass
from enum import StrEnum

from models.errors import Invalid

PATH = ("parameters",)
NAMED = {
    "tlsv1": ssl.TLSVersion.TLSv1,
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
OLD = ("sslv2", "sslv3")  # never used, so excluding them changes nothing
ORDER = list(NAMED.values())
MOST = 50  # names or fingerprints in a policy
LONGEST = 253  # characters

_NAME = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PRINT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Check(StrEnum):
    """The kind of certificate check."""

    NOTHING = "NOTHING"
    NAMES = "NAMES"  # a trusted authority signed it for one of the names
    TLSA = "TLSA"  # a TLSA record matches it (RFC 7672)
    PRINTS = "PRINTS"  # its fingerprint is one of the given ones


@dataclass(frozen=True, slots=True)
class Tlsa:
    """A TLSA record, which identifies a certificate or public key (RFC 6698)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        """True if SMTP can use the record: usage 2 or 3 (RFC 7672, section 3.1.3)."""
        sizes = {0: len(self.data) or -1, 1: 32, 2: 64}
        known = self.usage in (2, 3) and self.selector in (0, 1)
        return known and sizes.get(self.matching) == len(self.data)

    def fits(self, certificate: bytes, key: bytes) -> bool:
        """True if the record matches this certificate or its public key, both in DER."""
        chosen = key if self.selector else certificate
        if self.matching == 1:
            chosen = hashlib.sha256(chosen).digest()
        elif self.matching:
            chosen = hashlib.sha512(chosen).digest()
        return chosen == self.data


@dataclass(frozen=True, slots=True)
class Proof:
    """What the certificate and TLS version of a server must meet."""

    check: Check = Check.NAMES
    names: tuple[str, ...] = ()  # accepted names; empty: the host name
    tlsa: tuple[Tlsa, ...] = ()
    prints: tuple[bytes, ...] = ()  # SHA-1 or SHA-256, of certificate or public key
    least: ssl.TLSVersion | None = None
    most: ssl.TLSVersion | None = None
    why: str = ""  # where the requirement comes from, for the log


ANY_NAME = Proof()


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a TLS policy in the syntax of Postfix."""

    match: tuple[str, ...] = ()  # names, "hostname", "nexthop", "dot-nexthop"; or fingerprints
    least: ssl.TLSVersion | None = None
    most: ssl.TLSVersion | None = None


def parameters(text: str | None, *, prints: bool = False) -> Parameters:
    """Parse "match=example.com:.example.com protocols=>=TLSv1.2". Raises Invalid.

    With `expects_fingerprints`, `match` has hexadecimal fingerprints, separated by |.
    """
    match: list[str] = []
    least = most = None
    for word in (text or "").replace(",", " ").split():
        name, mark, value = word.partition("=")
        if not mark or not value:
            raise Invalid(f"{word[:40]}: write name=value", constraint="parameters", path=PATH)
        if name == "match":
            match += _prints(value) if prints else _names(value)
        elif name == "protocols":
            least, most = _protocols(value)
        else:
            raise Invalid(
                f"{name[:40]} is not known: there are match and protocols",
                constraint="parameters",
                path=PATH,
            )
    if len(match) > MOST:
        raise Invalid(f"match= names at most {MOST}", constraint="parameters", path=PATH)
    return Parameters(tuple(match), least, most)


def _names(value: str) -> list[str]:
    """Server names, separated by colons. Raises Invalid."""
    names = [part.lower() for part in value.split(":")]
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > LONGEST:
            text = f"match={value[:80]}: names of servers, with : between them"
            raise Invalid(text, constraint="parameters", path=PATH)
    return names


def _prints(value: str) -> list[str]:
    """Fingerprints in lower case, without prefix and colons. Raises Invalid."""
    found = []
    for each in value.lower().split("|"):
        bare = each.removeprefix("sha256:").removeprefix("sha1:").replace(":", "")
        if not _PRINT.fullmatch(bare):
            text = "match= takes SHA-256 or SHA-1 fingerprints, with | between them"
            raise Invalid(text, constraint="parameters", path=PATH)
        found.append(bare)
    return found


def _protocols(value: str) -> tuple[ssl.TLSVersion | None, ssl.TLSVersion | None]:
    """The lowest and highest version of ">=TLSv1.2" or "!TLSv1:!TLSv1.1". Raises Invalid.

    None means no limit.
    """
    least = most = None
    without: set[ssl.TLSVersion] = set()
    only: set[ssl.TLSVersion] = set()
    for word in value.lower().split(":"):
        bare = word.lstrip("!<>=")
        if bare in OLD and word.startswith("!"):
            continue
        if bare not in NAMED:
            text = f"protocols={value[:80]}: such as >=TLSv1.2, or !TLSv1:!TLSv1.1"
            raise Invalid(text, constraint="parameters", path=PATH)
        version = NAMED[bare]
        if word.startswith(">="):
            least = version
        elif word.startswith("<="):
            most = version
        elif word.startswith("!"):
            without.add(version)
        elif word == bare:
            only.add(version)
    left = [
        candidate
        for candidate in ORDER
        if candidate not in without and (not only or candidate in only)
    ]
    left = [
        candidate
        for candidate in left
        if candidate >= (least or candidate) and candidate <= (most or candidate)
    ]
    if not left:
        raise Invalid("protocols= leaves none", constraint="parameters", path=PATH)
    low = left[0] if without or only or least else None
    high = left[-1] if without or only or most else None
    return low, high if high is not ORDER[-1] else None


def named(certificate_names: list[str], wanted: tuple[str, ...]) -> bool:
    """True if one of the certificate's names is accepted. `.domain` accepts all subdomains.

    A wildcard matches one label, the first (RFC 6125, section 6.4.3).
    """
    return any(
        _fits(name.lower(), accepted_name) for name in certificate_names for accepted_name in wanted
    )


def _fits(name: str, wanted: str) -> bool:
    """True if one name of a certificate is accepted."""
    if wanted.startswith("."):
        return name.removeprefix("*").endswith(wanted) and name != wanted
    if name.startswith("*."):
        return wanted.partition(".")[2] == name[2:] and "." in name[2:]
    return name == wanted
