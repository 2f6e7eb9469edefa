"""DMARC (RFC 7489): the policy of the domain in From, and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from publicsuffixlist import PublicSuffixList

from mail.authentication.dkim import AuthResult, DkimResult
from mail.authentication.dns_queries import DnsUnavailable, MessageDns
from mail.authentication.spf import SpfResult

MAX_AUTHOR_DOMAINS = 3  # domains in From that are checked; there should be one
POLICIES = ("none", "quarantine", "reject")  # the strictest last
_NEXT_MILDER_POLICY = {"reject": "quarantine", "quarantine": "none"}
_RESULTS_BY_SEVERITY = (
    AuthResult.PASS,
    AuthResult.NONE,
    AuthResult.PERMERROR,
    AuthResult.TEMPERROR,
    AuthResult.FAIL,
)


@dataclass(frozen=True, slots=True)
class DmarcPolicy:
    """The DMARC policy that a domain has published."""

    policy: str  # of POLICIES
    strict_dkim: bool = False
    strict_spf: bool = False


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """The DMARC result of a domain; `policy` is what the domain requests for failing messages."""

    result: AuthResult
    domain: str = ""  # of From
    policy: str = "none"
    reason: str = ""


@lru_cache(maxsize=1)
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # reads a file of 300 KB at first use


def organizational_domain(domain: str) -> str:
    """The registered domain above this one, or the domain itself; as A-labels."""
    found: str | None = _public_suffixes().privatesuffix(domain)
    return found or domain


async def find_policy_or_temperror(
    dns: MessageDns, author_domain: str
) -> DmarcPolicy | DmarcResult | None:
    """Look up the policy for a domain; None without a policy, a DmarcResult if DNS fails."""
    try:
        if found := _parse_policy(
            await dns.query_txt(f"_dmarc.{author_domain}"), for_subdomain=False
        ):
            return found
        above = organizational_domain(author_domain)
        return (
            _parse_policy(await dns.query_txt(f"_dmarc.{above}"), for_subdomain=True)
            if above != author_domain
            else None
        )
    except DnsUnavailable:
        return DmarcResult(AuthResult.TEMPERROR, author_domain, reason="no answer of DNS")


def _parse_policy(txt_records: Sequence[str], *, for_subdomain: bool) -> DmarcPolicy | None:
    """Parse the policy of the only DMARC record, for the domain or for its subdomains."""
    found = [_parse_tags(text) for text in txt_records]
    records = [given for given in found if next(iter(given.items())) == _VERSION_TAG]
    if len(records) != 1:
        return None
    given = records[0]
    wanted = given.get("p", "").lower()
    if for_subdomain:
        wanted = given.get("sp", wanted).lower()
    if wanted not in POLICIES:
        if "rua" not in given:
            return None
        wanted = "none"
    if given.get("pct") == "0":
        wanted = _NEXT_MILDER_POLICY.get(wanted, wanted)
    return DmarcPolicy(
        wanted, given.get("adkim", "").lower() == "s", given.get("aspf", "").lower() == "s"
    )


_VERSION_TAG = ("v", "DMARC1")


def _parse_tags(text: str) -> dict[str, str]:
    """The tags of a record by lower-case name; of a repeated tag the first."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        found.setdefault(name.strip().lower(), value.strip())
    return found


def evaluate(
    author_domain: str,
    policy: DmarcPolicy | DmarcResult | None,
    spf_result: SpfResult | None,
    dkim_results: Sequence[DkimResult],
) -> DmarcResult:
    """Evaluate DMARC for a domain in From. `spf_result` is None if SPF could not be checked."""
    if isinstance(policy, DmarcResult):
        return policy
    if policy is None:
        return DmarcResult(AuthResult.NONE, author_domain)
    came = [
        each.result
        for each in dkim_results
        if _is_aligned(each.domain, author_domain, strict=policy.strict_dkim)
    ]
    if spf_result and _is_aligned(spf_result.domain, author_domain, strict=policy.strict_spf):
        came.append(spf_result.result)
    if AuthResult.PASS in came:
        return DmarcResult(AuthResult.PASS, author_domain, policy.policy)
    if AuthResult.TEMPERROR in came:
        return DmarcResult(AuthResult.TEMPERROR, author_domain, policy.policy, "no answer of DNS")
    if spf_result is None:
        return DmarcResult(AuthResult.NONE, author_domain, policy.policy, "SPF is not known")
    return DmarcResult(AuthResult.FAIL, author_domain, policy.policy)


def _is_aligned(domain: str, author_domain: str, *, strict: bool) -> bool:
    if not domain or strict:
        return domain == author_domain
    return organizational_domain(domain) == organizational_domain(author_domain)


def worst_result(results: Sequence[DmarcResult]) -> DmarcResult:
    """The most severe result of the domains in From; permerror without a domain."""
    if not results:
        return DmarcResult(AuthResult.PERMERROR, reason="no domain in From")
    return max(
        results,
        key=lambda each: (_RESULTS_BY_SEVERITY.index(each.result), POLICIES.index(each.policy)),
    )
