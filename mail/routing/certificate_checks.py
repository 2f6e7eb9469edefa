"""What a server has to show before mail goes there: names, keys, and which TLS."""

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
OLD = ("sslv2", "sslv3")  # never spoken
ORDER = list(NAMED.values())
MOST = 50  # names or fingerprints of a policy
LONGEST = 253  # characters of a name

_NAME = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PRINT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Check(StrEnum):
    """What of a certificate is looked at."""

    NOTHING = "NOTHING"
    NAMES = "NAMES"  # an authority we trust says it is for this name
    TLSA = "TLSA"  # DNS names it (RFC 7672)
    PRINTS = "PRINTS"  # it is one of those we know


@dataclass(frozen=True, slots=True)
class Tlsa:
    """A record of DNS that names a certificate or key (RFC 6698)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        """Whether mail can go by it (RFC 7672, section 3.1.3): usages 0 and 1 cannot."""
        sizes = {0: len(self.data) or -1, 1: 32, 2: 64}
        known = self.usage in (2, 3) and self.selector in (0, 1)
        return known and sizes.get(self.matching) == len(self.data)

    def fits(self, certificate: bytes, key: bytes) -> bool:
        """Whether it names this certificate, or this public key."""
        chosen = key if self.selector else certificate
        if self.matching == 1:
            chosen = hashlib.sha256(chosen).digest()
        elif self.matching:
            chosen = hashlib.sha512(chosen).digest()
        return chosen == self.data


@dataclass(frozen=True, slots=True)
class Proof:
    """What a server has to show."""

    check: Check = Check.NAMES
    names: tuple[str, ...] = ()  # that its certificate may be for; none: its own
    tlsa: tuple[Tlsa, ...] = ()
    prints: tuple[bytes, ...] = ()  # SHA-1 or SHA-256, of certificate or public key
    least: ssl.TLSVersion | None = None
    most: ssl.TLSVersion | None = None
    why: str = ""  # who asks for it: what is told of the connection


ANY_NAME = Proof()


@dataclass(frozen=True, slots=True)
class Parameters:
    """What stands behind a TLS policy, as Postfix spells it."""

    match: tuple[str, ...] = ()  # names, "hostname", "nexthop", "dot-nexthop"; or fingerprints
    least: ssl.TLSVersion | None = None
    most: ssl.TLSVersion | None = None


def parameters(text: str | None, *, prints: bool = False) -> Parameters:
    """Read "match=example.com:.example.com protocols=>=TLSv1.2"; Invalid names what is wrong.

    With `prints` what fits are fingerprints, in hexadecimal digits, with | between them.
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
    names = [each.lower() for each in value.split(":")]
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > LONGEST:
            text = f"match={value[:80]}: names of servers, with : between them"
            raise Invalid(text, constraint="parameters", path=PATH)
    return names


def _prints(value: str) -> list[str]:
    found = []
    for each in value.lower().split("|"):
        bare = each.removeprefix("sha256:").removeprefix("sha1:").replace(":", "")
        if not _PRINT.fullmatch(bare):
            text = "match= takes SHA-256 or SHA-1 fingerprints, with | between them"
            raise Invalid(text, constraint="parameters", path=PATH)
        found.append(bare)
    return found


def _protocols(value: str) -> tuple[ssl.TLSVersion | None, ssl.TLSVersion | None]:
    """The oldest and the newest that may be spoken: of ">=TLSv1.2", or "!TLSv1:!TLSv1.1"."""
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
    left = [each for each in ORDER if each not in without and (not only or each in only)]
    left = [each for each in left if each >= (least or each) and each <= (most or each)]
    if not left:
        raise Invalid("protocols= leaves none", constraint="parameters", path=PATH)
    low = left[0] if without or only or least else None
    high = left[-1] if without or only or most else None
    return low, high if high is not ORDER[-1] else None


def named(certificate_names: list[str], wanted: tuple[str, ...]) -> bool:
    """Whether a certificate for these names is one for what is wanted: `.domain` is all below it.

    A * stands for one label, the first (RFC 6125, section 6.4.3).
    """
    return any(_fits(name.lower(), each) for name in certificate_names for each in wanted)


def _fits(name: str, wanted: str) -> bool:
    if wanted.startswith("."):
        return name.removeprefix("*").endswith(wanted) and name != wanted
    if name.startswith("*."):
        return wanted.partition(".")[2] == name[2:] and "." in name[2:]
    return name == wanted
