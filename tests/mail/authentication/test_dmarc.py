"""DMARC: policies, alignment, and what authheaders makes of the same."""

from itertools import product

import authheaders
import pytest

from mail.authentication.dkim import Result, Verdict
from mail.authentication.dmarc import Dmarc, Policy, judged, organization, published, worst
from mail.authentication.dns_queries import SECONDS, Names
from mail.authentication.spf import Spf
from tests.support.mail_servers.dns_zone_server import Zone, asking, quoted, zone

AUTHOR = "news.far.example"


async def policy(there: Zone, author: str = AUTHOR) -> Policy | Dmarc | None:
    async with asking(there) as place:
        return await published(Names(place, seconds=0.3 if there.silent else SECONDS), author)


@pytest.mark.parametrize(
    ("above", "own", "wanted"),
    [
        (None, None, None),
        ("v=DMARC1; p=reject", None, Policy("reject")),
        ("v=DMARC1; p=reject; sp=none", None, Policy("none")),
        ("v=DMARC1; p=reject; sp=none", "v=DMARC1; p=quarantine", Policy("quarantine")),
        ("v=DMARC1; p=none", "no record", Policy("none")),
        (None, "V = DMARC1 ; P = Reject ; adkim=s; aspf=S", Policy("reject", True, True)),
        (None, "v=DMARC1;p=Reject;adkim=s;aspf=S;;x", Policy("reject", True, True)),
        (None, "v=DMARC1; p=maybe", None),
        (None, "v=DMARC1; p=maybe; rua=mailto:a@far.example", Policy("none")),
        (None, "p=reject; v=DMARC1", None),
        (None, "v=DMARC1; p=reject; pct=0", Policy("quarantine")),
        (None, "v=DMARC1; p=quarantine; pct=0", Policy("none")),
        (None, "v=DMARC1; p=quarantine; pct=50", Policy("quarantine")),
        (None, "v=DMARC1; p=\udcff", None),
        (None, ";" * 9000, None),
    ],
)
async def test_policies(above: str | None, own: str | None, wanted: Policy | None) -> None:
    texts = {"_dmarc.far.example": above, f"_dmarc.{AUTHOR}": own}
    assert await policy(zone({name: text for name, text in texts.items() if text})) == wanted


async def test_two_records_are_none_and_silence_is_no_policy() -> None:
    there = Zone({(f"_dmarc.{AUTHOR}", "TXT"): [quoted("v=DMARC1; p=reject")] * 2})
    assert await policy(there) == Policy("reject")  # the same twice is one in DNS
    there.records[f"_dmarc.{AUTHOR}", "TXT"] = [
        quoted("v=DMARC1; p=reject"),
        quoted("v=DMARC1; p=none"),
    ]
    assert await policy(there) is None
    for trouble in ("broken", "silent"):
        there = zone({})
        getattr(there, trouble).add(f"_dmarc.{AUTHOR}")
        found = await policy(there)
        assert isinstance(found, Dmarc)
        assert found.result is Result.TEMPERROR


def test_organizations() -> None:
    assert organization("a.b.example.co.uk") == "example.co.uk"
    assert organization("co.uk") == "co.uk"
    assert organization("a.xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert organization("localhost") == "localhost"


SPF = [
    None if result is None else Spf(result, domain)
    for result, domain in [
        (None, ""),
        *product(
            [Result.PASS, Result.FAIL, Result.TEMPERROR], [AUTHOR, "far.example", "x.example"]
        ),
    ]
]
DKIM = [
    [Verdict(result, domain)]
    for result, domain in product(
        [Result.PASS, Result.FAIL, Result.TEMPERROR], [AUTHOR, "far.example", "x.example"]
    )
]


@pytest.mark.parametrize("strict", [False, True])
def test_one_aligned_pass_is_enough(strict: bool) -> None:
    wants = Policy("reject", strict, strict)
    fits = {AUTHOR} if strict else {AUTHOR, "far.example"}
    for spf, dkim in product(SPF, DKIM):
        found = judged(AUTHOR, wants, spf, dkim).result
        came = [each.result for each in (spf, dkim[0]) if each and each.domain in fits]
        if Result.PASS in came:
            assert found is Result.PASS
        elif Result.TEMPERROR in came:
            assert found is Result.TEMPERROR
        else:
            assert found is (Result.NONE if spf is None else Result.FAIL)


@pytest.mark.parametrize("record", ["v=DMARC1; p=reject", "v=DMARC1; p=reject; adkim=s; aspf=s"])
@pytest.mark.parametrize(
    "domain", ["example.org", "news.example.org", "x.example.org", "rexample.org"]
)
async def test_another_program_says_the_same(record: str, domain: str) -> None:
    author, there = "news.example.org", {"_dmarc.example.org": record}
    wanted = await policy(zone(there), author)
    for one, other in ((Result.PASS, Result.FAIL), (Result.FAIL, Result.PASS)):
        ours = judged(author, wanted, Spf(one, domain), [Verdict(other, domain)])
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
    forged = Dmarc(Result.FAIL, "bank.example", "reject")
    mild = Dmarc(Result.FAIL, "x.example", "none")
    passed = Dmarc(Result.PASS, "evil.example", "none")
    assert worst([passed, forged, mild]) is forged
    assert worst([passed, Dmarc(Result.NONE, "y.example")]).result is Result.NONE
    assert worst([]).result is Result.PERMERROR
