"""DMARC policies and alignment, compared with authheaders."""

from functools import cache
from itertools import product

import authheaders
import pytest
from authheaders import dmarc_lookup

from mail.authentication.dkim import AuthResult, DkimResult
from mail.authentication.dmarc import (
    DmarcPolicy,
    DmarcResult,
    evaluate_dmarc,
    find_policy_or_temperror,
    organizational_domain,
    worst_dmarc_result_or_permerror,
)
from mail.authentication.dns_queries import TOTAL_TIMEOUT, MessageDns
from mail.authentication.spf import SpfResult
from tests.support.mail_servers.dns_zone_server import (
    DnsZoneServer,
    make_dns_zone,
    run_dns_zone,
    txt_rdata,
)

AUTHOR = "news.far.example"


async def lookup_policy(
    dns_server: DnsZoneServer, author: str = AUTHOR
) -> DmarcPolicy | DmarcResult | None:
    async with run_dns_zone(dns_server) as dns_address:
        return await find_policy_or_temperror(
            MessageDns(dns_address, timeout=0.3 if dns_server.silent_names else TOTAL_TIMEOUT),
            author,
        )


@pytest.mark.parametrize(
    ("organizational_record", "author_record", "expected"),
    [
        (None, None, None),
        ("v=DMARC1; p=reject", None, DmarcPolicy("reject")),
        ("v=DMARC1; p=reject; sp=none", None, DmarcPolicy("none")),
        ("v=DMARC1; p=reject; sp=none", "v=DMARC1; p=quarantine", DmarcPolicy("quarantine")),
        ("v=DMARC1; p=none", "no record", DmarcPolicy("none")),
        (None, "V = DMARC1 ; P = Reject ; adkim=s; aspf=S", DmarcPolicy("reject", True, True)),
        (None, "v=DMARC1;p=Reject;adkim=s;aspf=S;;x", DmarcPolicy("reject", True, True)),
        (None, "v=DMARC1; p=maybe", None),
        (None, "v=DMARC1; p=maybe; rua=mailto:a@far.example", DmarcPolicy("none")),
        (None, "p=reject; v=DMARC1", None),
        (None, "v=DMARC1; p=reject; pct=0", DmarcPolicy("quarantine")),
        (None, "v=DMARC1; p=quarantine; pct=0", DmarcPolicy("none")),
        (None, "v=DMARC1; p=quarantine; pct=50", DmarcPolicy("quarantine")),
        (None, "v=DMARC1; p=\udcff", None),
        (None, ";" * 9000, None),
    ],
)
async def test_policy_is_read_from_the_author_or_organizational_domain(
    organizational_record: str | None, author_record: str | None, expected: DmarcPolicy | None
) -> None:
    txt_records = {"_dmarc.far.example": organizational_record, f"_dmarc.{AUTHOR}": author_record}
    assert (
        await lookup_policy(
            make_dns_zone({name: text for name, text in txt_records.items() if text})
        )
        == expected
    )


async def test_two_records_are_ignored_and_dns_failure_is_temperror() -> None:
    dns_server = DnsZoneServer({(f"_dmarc.{AUTHOR}", "TXT"): [txt_rdata("v=DMARC1; p=reject")] * 2})
    assert await lookup_policy(dns_server) == DmarcPolicy("reject")  # DNS merges equal records
    dns_server.records[f"_dmarc.{AUTHOR}", "TXT"] = [
        txt_rdata("v=DMARC1; p=reject"),
        txt_rdata("v=DMARC1; p=none"),
    ]
    assert await lookup_policy(dns_server) is None
    for failure_kind in ("servfail_names", "silent_names"):
        dns_server = make_dns_zone({})
        getattr(dns_server, failure_kind).add(f"_dmarc.{AUTHOR}")
        outcome = await lookup_policy(dns_server)
        assert isinstance(outcome, DmarcResult)
        assert outcome.result is AuthResult.TEMPERROR


def test_organizational_domain_follows_the_public_suffix_list() -> None:
    assert organizational_domain("a.b.example.co.uk") == "example.co.uk"
    assert organizational_domain("co.uk") == "co.uk"
    assert organizational_domain("a.xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert organizational_domain("localhost") == "localhost"


SPF_RESULTS = [
    None if result is None else SpfResult(result, domain)
    for result, domain in [
        (None, ""),
        *product(
            [AuthResult.PASS, AuthResult.FAIL, AuthResult.TEMPERROR],
            [AUTHOR, "far.example", "x.example"],
        ),
    ]
]
DKIM_RESULTS = [
    [DkimResult(result, domain)]
    for result, domain in product(
        [AuthResult.PASS, AuthResult.FAIL, AuthResult.TEMPERROR],
        [AUTHOR, "far.example", "x.example"],
    )
]


@pytest.mark.parametrize("strict", [False, True])
def test_one_aligned_pass_is_dmarc_pass(strict: bool) -> None:
    dmarc_policy = DmarcPolicy("reject", strict, strict)
    aligned_domains = {AUTHOR} if strict else {AUTHOR, "far.example"}
    for spf, dkim in product(SPF_RESULTS, DKIM_RESULTS):
        outcome = evaluate_dmarc(AUTHOR, dmarc_policy, spf, dkim).result
        aligned_results = [
            item.result for item in (spf, dkim[0]) if item and item.domain in aligned_domains
        ]
        if AuthResult.PASS in aligned_results:
            assert outcome is AuthResult.PASS
        elif AuthResult.TEMPERROR in aligned_results:
            assert outcome is AuthResult.TEMPERROR
        else:
            assert outcome is (AuthResult.NONE if spf is None else AuthResult.FAIL)


# authheaders parses the public suffix list for each domain.
cached_organizational_domain = cache(dmarc_lookup.get_org_domain_from_suffix_list)


@pytest.mark.parametrize("record", ["v=DMARC1; p=reject", "v=DMARC1; p=reject; adkim=s; aspf=s"])
@pytest.mark.parametrize(
    "domain", ["example.org", "news.example.org", "x.example.org", "rexample.org"]
)
async def test_authheaders_returns_the_same_result_and_policy(
    record: str, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        dmarc_lookup, "get_org_domain_from_suffix_list", cached_organizational_domain
    )
    author, txt_records = "news.example.org", {"_dmarc.example.org": record}
    dmarc_policy = await lookup_policy(make_dns_zone(txt_records), author)
    for spf_result, dkim_result in (
        (AuthResult.PASS, AuthResult.FAIL),
        (AuthResult.FAIL, AuthResult.PASS),
    ):
        our_evaluation = evaluate_dmarc(
            author, dmarc_policy, SpfResult(spf_result, domain), [DkimResult(dkim_result, domain)]
        )
        their_result, _, _, their_policy = authheaders.dmarc_per_from(
            author,
            authheaders.SPFAuthenticationResult(
                result=spf_result.value, smtp_mailfrom=f"a@{domain}", smtp_helo="x"
            ),
            authheaders.DKIMAuthenticationResult(result=dkim_result.value, header_d=domain),
            dnsfunc=lambda name: txt_records.get(name.rstrip("."), ""),
        )
        assert (our_evaluation.result.value, our_evaluation.policy) == (their_result, their_policy)


def test_worst_result_of_several_authors_counts() -> None:
    forged = DmarcResult(AuthResult.FAIL, "bank.example", "reject")
    mild = DmarcResult(AuthResult.FAIL, "x.example", "none")
    passed = DmarcResult(AuthResult.PASS, "evil.example", "none")
    assert worst_dmarc_result_or_permerror([passed, forged, mild]) is forged
    assert (
        worst_dmarc_result_or_permerror([passed, DmarcResult(AuthResult.NONE, "y.example")]).result
        is AuthResult.NONE
    )
    assert worst_dmarc_result_or_permerror([]).result is AuthResult.PERMERROR
