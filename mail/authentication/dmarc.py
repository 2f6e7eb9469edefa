"""What the domain of From wants of mail that it has not sent (DMARC, RFC 7489)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from publicsuffixlist import PublicSuffixList

from mail.authentication.dkim import Result, Verdict
from mail.authentication.dns_queries import Names, Unanswered
from mail.authentication.spf import Spf

AUTHORS = 3  # domains in From that are judged; there should be one
POLICIES = ("none", "quarantine", "reject")  # the strictest last
_MILDER = {"reject": "quarantine", "quarantine": "none"}
_ORDER = (Result.PASS, Result.NONE, Result.PERMERROR, Result.TEMPERROR, Result.FAIL)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain has published."""

    wanted: str  # of POLICIES
    strict_dkim: bool = False
    strict_spf: bool = False


@dataclass(frozen=True, slots=True)
class Dmarc:
    """What came of it; `policy` is what the domain wants to be done with what fails."""

    result: Result
    domain: str = ""  # of From
    policy: str = "none"
    why: str = ""


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # reads a file of 300 KB: when it is needed first


def organization(domain: str) -> str:
    """The domain that somebody has registered, above this one or itself; in ASCII."""
    found: str | None = _suffixes().privatesuffix(domain)
    return found or domain


async def published(names: Names, author: str) -> Policy | Dmarc | None:
    """The policy for mail from a domain; None where there is none, Dmarc where DNS fails."""
    try:
        if found := _parsed(await names.texts(f"_dmarc.{author}"), below=False):
            return found
        above = organization(author)
        return (
            _parsed(await names.texts(f"_dmarc.{above}"), below=True) if above != author else None
        )
    except Unanswered:
        return Dmarc(Result.TEMPERROR, author, why="no answer of DNS")


def _parsed(texts: Sequence[str], *, below: bool) -> Policy | None:
    """The policy of the one record there is, for the domain or for those below it."""
    found = [_tags(text) for text in texts]
    records = [given for given in found if next(iter(given.items())) == _FIRST]
    if len(records) != 1:
        return None
    given = records[0]
    wanted = given.get("p", "").lower()
    if below:
        wanted = given.get("sp", wanted).lower()
    if wanted not in POLICIES:
        if "rua" not in given:
            return None
        wanted = "none"
    if given.get("pct") == "0":
        wanted = _MILDER.get(wanted, wanted)
    return Policy(
        wanted, given.get("adkim", "").lower() == "s", given.get("aspf", "").lower() == "s"
    )


_FIRST = ("v", "DMARC1")


def _tags(text: str) -> dict[str, str]:
    """Tags, names in lower case; of one that is there twice the first."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        found.setdefault(name.strip().lower(), value.strip())
    return found


def judged(
    author: str, policy: Policy | Dmarc | None, spf: Spf | None, dkim: Sequence[Verdict]
) -> Dmarc:
    """What came of it for a domain of From. `spf` is None where that could not be checked."""
    if isinstance(policy, Dmarc):
        return policy
    if policy is None:
        return Dmarc(Result.NONE, author)
    came = [
        each.result for each in dkim if _aligned(each.domain, author, strict=policy.strict_dkim)
    ]
    if spf and _aligned(spf.domain, author, strict=policy.strict_spf):
        came.append(spf.result)
    if Result.PASS in came:
        return Dmarc(Result.PASS, author, policy.wanted)
    if Result.TEMPERROR in came:
        return Dmarc(Result.TEMPERROR, author, policy.wanted, "no answer of DNS")
    if spf is None:
        return Dmarc(Result.NONE, author, policy.wanted, "SPF is not known")
    return Dmarc(Result.FAIL, author, policy.wanted)


def _aligned(domain: str, author: str, *, strict: bool) -> bool:
    if not domain or strict:
        return domain == author
    return organization(domain) == organization(author)


def worst(found: Sequence[Dmarc]) -> Dmarc:
    """That of the domains of From which speaks most against a message."""
    if not found:
        return Dmarc(Result.PERMERROR, why="no domain in From")
    return max(found, key=lambda each: (_ORDER.index(each.result), POLICIES.index(each.policy)))
