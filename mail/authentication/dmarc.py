"""DMARC (RFC 7489): the policy of the domain in From, and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from publicsuffixlist import PublicSuffixList

from mail.authentication.dkim import Result, Verdict
from mail.authentication.dns_queries import Names, Unanswered
from mail.authentication.spf import Spf

AUTHORS = 3  # domains in From that are checked; there should be one
POLICIES = ("none", "quarantine", "reject")  # the strictest last
_MILDER = {"reject": "quarantine", "quarantine": "none"}
_ORDER = (Result.PASS, Result.NONE, Result.PERMERROR, Result.TEMPERROR, Result.FAIL)


@dataclass(frozen=True, slots=True)
class Policy:
    """The DMARC policy that a domain has published."""

    wanted: str  # of POLICIES
    strict_dkim: bool = False
    strict_spf: bool = False


@dataclass(frozen=True, slots=True)
class Dmarc:
    """The DMARC result of a domain; `policy` is what the domain requests for failing messages."""

    result: Result
    domain: str = ""  # of From
    policy: str = "none"
    why: str = ""


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # reads a file of 300 KB at first use


def organization(domain: str) -> str:
    """The registered domain above this one, or the domain itself; as A-labels."""
    found: str | None = _suffixes().privatesuffix(domain)
    return found or domain


async def published(names: Names, author: str) -> Policy | Dmarc | None:
    """Look up the policy for a domain; None without a policy, a DmarcResult if DNS fails."""
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
    """Parse the policy of the only DMARC record, for the domain or for its subdomains."""
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
    """The tags of a record by lower-case name; of a repeated tag the first."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        found.setdefault(name.strip().lower(), value.strip())
    return found


def judged(
    author: str, policy: Policy | Dmarc | None, spf: Spf | None, dkim: Sequence[Verdict]
) -> Dmarc:
    """Evaluate DMARC for a domain in From. `spf_result` is None if SPF could not be checked."""
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
    """The most severe result of the domains in From; permerror without a domain."""
    if not found:
        return Dmarc(Result.PERMERROR, why="no domain in From")
    return max(found, key=lambda each: (_ORDER.index(each.result), POLICIES.index(each.policy)))
