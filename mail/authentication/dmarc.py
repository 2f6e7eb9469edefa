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
    suffix: str | None = _public_suffixes().privatesuffix(domain)
    return suffix or domain


async def find_policy_or_temperror(
    dns: MessageDns, author_domain: str
) -> DmarcPolicy | DmarcResult | None:
    """Look up the policy for a domain; None without a policy, a DmarcResult if DNS fails."""
    try:
        if policy := _parse_policy_or_none(
            await dns.query_txt(f"_dmarc.{author_domain}"), for_subdomain=False
        ):
            return policy
        above = organizational_domain(author_domain)
        return (
            _parse_policy_or_none(await dns.query_txt(f"_dmarc.{above}"), for_subdomain=True)
            if above != author_domain
            else None
        )
    except DnsUnavailable:
        return DmarcResult(AuthResult.TEMPERROR, author_domain, reason="DNS lookup failed")


def _parse_policy_or_none(txt_records: Sequence[str], *, for_subdomain: bool) -> DmarcPolicy | None:
    """Parse the policy of the only DMARC record, for the domain or for its subdomains."""
    tags_by_record = [_parse_tags(text) for text in txt_records]
    records = [
        record_tags
        for record_tags in tags_by_record
        if next(iter(record_tags.items())) == _VERSION_TAG
    ]
    if len(records) != 1:
        return None
    tags = records[0]
    policy_word = tags.get("p", "").lower()
    if for_subdomain:
        policy_word = tags.get("sp", policy_word).lower()
    if policy_word not in POLICIES:
        if "rua" not in tags:
            return None
        policy_word = "none"
    if tags.get("pct") == "0":
        policy_word = _NEXT_MILDER_POLICY.get(policy_word, policy_word)
    return DmarcPolicy(
        policy_word, tags.get("adkim", "").lower() == "s", tags.get("aspf", "").lower() == "s"
    )


_VERSION_TAG = ("v", "DMARC1")


def _parse_tags(text: str) -> dict[str, str]:
    """The tags of a record by lower-case name; of a repeated tag the first."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        tags.setdefault(name.strip().lower(), value.strip())
    return tags


def evaluate_dmarc(
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
    aligned_results = [
        result.result
        for result in dkim_results
        if _is_aligned(result.domain, author_domain, strict=policy.strict_dkim)
    ]
    if spf_result and _is_aligned(spf_result.domain, author_domain, strict=policy.strict_spf):
        aligned_results.append(spf_result.result)
    if AuthResult.PASS in aligned_results:
        return DmarcResult(AuthResult.PASS, author_domain, policy.policy)
    if AuthResult.TEMPERROR in aligned_results:
        return DmarcResult(AuthResult.TEMPERROR, author_domain, policy.policy, "DNS lookup failed")
    if spf_result is None:
        return DmarcResult(AuthResult.NONE, author_domain, policy.policy, "SPF result unknown")
    return DmarcResult(AuthResult.FAIL, author_domain, policy.policy)


def _is_aligned(domain: str, author_domain: str, *, strict: bool) -> bool:
    if not domain or strict:
        return domain == author_domain
    return organizational_domain(domain) == organizational_domain(author_domain)


def worst_dmarc_result_or_permerror(results: Sequence[DmarcResult]) -> DmarcResult:
    """The most severe result of the domains in From; permerror without a domain."""
    if not results:
        return DmarcResult(AuthResult.PERMERROR, reason="no domain in From header field")
    return max(
        results,
        key=lambda result: (
            _RESULTS_BY_SEVERITY.index(result.result),
            POLICIES.index(result.policy),
        ),
    )
