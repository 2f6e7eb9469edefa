"""DMARC: policies, alignment, and what authheaders makes of the same."""

from itertools import product

import authheaders
import pytest

from mail.authentication.dkim import AuthResult, DkimResult
from mail.authentication.dmarc import (
    DmarcPolicy,
    DmarcResult,
    evaluate,
    find_policy,
    organizational_domain,
    worst_result,
)
from mail.authentication.dns_queries import TOTAL_TIMEOUT, MessageDns
from mail.authentication.spf import SpfResult
from tests.support.mail_servers.dns_zone_server import Zone, asking, quoted, zone

AUTHOR = "news.far.example"


async def policy(there: Zone, author: str = AUTHOR) -> DmarcPolicy | DmarcResult | None:
    async with asking(there) as place:
        return await find_policy(
            MessageDns(place, timeout=0.3 if there.silent else TOTAL_TIMEOUT), author
        )


@pytest.mark.parametrize(
    ("above", "own", "wanted"),
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
async def test_policies(above: str | None, own: str | None, wanted: DmarcPolicy | None) -> None:
    texts = {"_dmarc.far.example": above, f"_dmarc.{AUTHOR}": own}
    assert await policy(zone({name: text for name, text in texts.items() if text})) == wanted


async def test_two_records_are_none_and_silence_is_no_policy() -> None:
    there = Zone({(f"_dmarc.{AUTHOR}", "TXT"): [quoted("v=DMARC1; p=reject")] * 2})
    assert await policy(there) == DmarcPolicy("reject")  # the same twice is one in DNS
    there.records[f"_dmarc.{AUTHOR}", "TXT"] = [
        quoted("v=DMARC1; p=reject"),
        quoted("v=DMARC1; p=none"),
    ]
    assert await policy(there) is None
    for trouble in ("broken", "silent"):
        there = zone({})
        getattr(there, trouble).add(f"_dmarc.{AUTHOR}")
        found = await policy(there)
        assert isinstance(found, DmarcResult)
        assert found.result is AuthResult.TEMPERROR


def test_organizations() -> None:
    assert organizational_domain("a.b.example.co.uk") == "example.co.uk"
    assert organizational_domain("co.uk") == "co.uk"
    assert organizational_domain("a.xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert organizational_domain("localhost") == "localhost"


SPF = [
    None if result is None else SpfResult(result, domain)
    for result, domain in [
        (None, ""),
        *product(
            [AuthResult.PASS, AuthResult.FAIL, AuthResult.TEMPERROR],
            [AUTHOR, "far.example", "x.example"],
        ),
    ]
]
DKIM = [
    [DkimResult(result, domain)]
    for result, domain in product(
        [AuthResult.PASS, AuthResult.FAIL, AuthResult.TEMPERROR],
        [AUTHOR, "far.example", "x.example"],
    )
]


@pytest.mark.parametrize("strict", [False, True])
def test_one_aligned_pass_is_enough(strict: bool) -> None:
    wants = DmarcPolicy("reject", strict, strict)
    fits = {AUTHOR} if strict else {AUTHOR, "far.example"}
    for spf, dkim in product(SPF, DKIM):
        found = evaluate(AUTHOR, wants, spf, dkim).result
        came = [each.result for each in (spf, dkim[0]) if each and each.domain in fits]
        if AuthResult.PASS in came:
            assert found is AuthResult.PASS
        elif AuthResult.TEMPERROR in came:
            assert found is AuthResult.TEMPERROR
        else:
            assert found is (AuthResult.NONE if spf is None else AuthResult.FAIL)


@pytest.mark.parametrize("record", ["v=DMARC1; p=reject", "v=DMARC1; p=reject; adkim=s; aspf=s"])
@pytest.mark.parametrize(
    "domain", ["example.org", "news.example.org", "x.example.org", "rexample.org"]
)
async def test_another_program_says_the_same(record: str, domain: str) -> None:
    author, there = "news.example.org", {"_dmarc.example.org": record}
    wanted = await policy(zone(there), author)
    for one, other in ((AuthResult.PASS, AuthResult.FAIL), (AuthResult.FAIL, AuthResult.PASS)):
        ours = evaluate(author, wanted, SpfResult(one, domain), [DkimResult(other, domain)])
        theirs, _, _, theirs_wanted = authheaders.dmarc_per_from(
            author,
            authheaders.SPFAuthenticationResult(
                result=one.value, smtp_mailfrom=f"a@{domain}", smtp_helo="x"
            ),
            authheaders.DKIMAuthenticationResult(result=other.value, header_d=domain),
            dnsfunc=lambda name: there.get(name.rstrip("."), ""),
        )
        assert (ours.result.value, ours.policy) == (theirs, theirs_wanted)


def test_of_several_authors_the_worst_counts() -> None:
    forged = DmarcResult(AuthResult.FAIL, "bank.example", "reject")
    mild = DmarcResult(AuthResult.FAIL, "x.example", "none")
    passed = DmarcResult(AuthResult.PASS, "evil.example", "none")
    assert worst_result([passed, forged, mild]) is forged
    assert (
        worst_result([passed, DmarcResult(AuthResult.NONE, "y.example")]).result is AuthResult.NONE
    )
    assert worst_result([]).result is AuthResult.PERMERROR
