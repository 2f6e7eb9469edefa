"""What DNS should say of a domain, and what is judged of what it says."""

from collections.abc import Callable, Sequence

import pytest

from mail.domains.dns_advice import (
    NOT_CONFIGURED,
    DnsState,
    DomainDnsFacts,
    RecordCheck,
    advise_records,
)

HOST = "mx.example.org"


def judge(
    type_: str, begin: str, *, backup: bool = False
) -> Callable[[Sequence[str]], RecordCheck]:
    ours = DomainDnsFacts("example.org", HOST, backup)
    (one,) = (
        each for each in advise_records(ours) if each.type == type_ and each.value.startswith(begin)
    )
    assert one.check_published
    return one.check_published


def test_everything_is_named_whether_there_is_a_key_or_not() -> None:
    advised = advise_records(DomainDnsFacts("bücher.example", "MX.example.org"))
    said = {(one.type, one.name): one.value for one in advised}
    unset = {key for key, value in said.items() if value.startswith(NOT_CONFIGURED)}
    assert unset == {
        ("TXT", "dkim._domainkey.xn--bcher-kva.example"),
        ("TXT", "_mta-sts.xn--bcher-kva.example"),
        ("CNAME", "mta-sts.xn--bcher-kva.example"),
        ("TLSA", "_25._tcp.mx.example.org"),
        ("CNAME", "autoconfig.xn--bcher-kva.example"),
        ("SRV", "_autodiscover._tcp.xn--bcher-kva.example"),
        ("SRV", "_imaps._tcp.xn--bcher-kva.example"),
        ("SRV", "_submissions._tcp.xn--bcher-kva.example"),
    }
    assert {key: value for key, value in said.items() if key not in unset} == {
        ("MX", "xn--bcher-kva.example"): "10 mx.example.org.",
        ("TXT", "xn--bcher-kva.example"): "v=spf1 mx a:mx.example.org ~all",
        ("TXT", "_dmarc.xn--bcher-kva.example"): "v=DMARC1; p=quarantine; "
        "rua=mailto:postmaster@xn--bcher-kva.example",
        ("TXT", "_smtp._tls.xn--bcher-kva.example"): "v=TLSRPTv1; "
        "rua=mailto:postmaster@xn--bcher-kva.example",
    }
    assert all(
        (one.check_published is None) is one.value.startswith(NOT_CONFIGURED) for one in advised
    )


def test_what_we_advise_is_right() -> None:
    for backup in (False, True):
        for one in advise_records(
            DomainDnsFacts("example.org", HOST, backup, spki_sha256="ab" * 32)
        ):
            if one.check_published:
                assert one.check_published([one.value]) == RecordCheck(DnsState.OK, (one.value,))
                assert one.check_published([]) == RecordCheck(DnsState.MISSING)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([f"3 1 1 {'AB' * 32}"], "OK"),
        ([f"3 1 1 {'ab' * 28} {'ab' * 4}"], "OK"),
        ([f"3 1 1 {'cd' * 32}", f"3 1 1 {'ab' * 32}"], "OK"),  # while a key is changed
        ([f"3 1 1 {'cd' * 32}"], "DIFFERENT"),
        ([f"3 0 1 {'ab' * 32}"], "DIFFERENT"),
        ([f"2 1 1 {'ab' * 32}"], "UNKNOWN"),
        (["", "x"], "DIFFERENT"),
        ([], "MISSING"),
    ],
)
def test_a_record_of_dane_names_the_key_that_is_shown(found: list[str], wanted: str) -> None:
    (one,) = (
        each
        for each in advise_records(DomainDnsFacts("example.org", HOST, spki_sha256="ab" * 32))
        if each.type == "TLSA"
    )
    assert (one.name, one.value) == (f"_25._tcp.{HOST}", f"3 1 1 {'ab' * 32}")
    assert one.check_published
    assert one.check_published(found).state == wanted


def test_a_machine_without_a_name_is_told_so() -> None:
    values = {
        one.type: one.value
        for one in reversed(advise_records(DomainDnsFacts("example.org", "localhost")))
    }
    assert values["MX"].startswith(NOT_CONFIGURED)
    assert values["TXT"].startswith(NOT_CONFIGURED)
    assert "MERGANSER_HOSTNAME" in values["MX"]


@pytest.mark.parametrize(
    ("found", "primary", "backup"),
    [
        (["10 MX.Example.ORG."], "OK", "OK"),
        (["0 mx.example.org."], "OK", "OK"),
        (["10 mx.example.org.", "20 other.example."], "OK", "OK"),
        (["10 mx.example.org.", "10 other.example."], "OK", "OK"),
        (["10 mx.example.org.", "5 other.example."], "DIFFERENT", "OK"),
        (["10 other.example."], "DIFFERENT", "DIFFERENT"),
        (["0 ."], "DIFFERENT", "DIFFERENT"),
        (["10 notmx.example.org."], "DIFFERENT", "DIFFERENT"),
        ([], "MISSING", "MISSING"),
    ],
)
def test_of_servers_ours_is_the_best(found: list[str], primary: str, backup: str) -> None:
    assert judge("MX", "10")(found).state == primary
    assert judge("MX", "20", backup=True)(found).state == backup


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (["v=spf1 mx -all"], "OK"),
        (["V=SPF1 +MX ~ALL", "google-site-verification=x"], "OK"),
        (["v=spf1 include:x.example a:mx.example.org. -all"], "OK"),
        (["v=spf1 mx:example.org -all"], "OK"),
        (["v=spf1 ?mx -all"], "DIFFERENT"),
        (["v=spf1 -mx all"], "DIFFERENT"),
        (["v=spf1 include:mx -all"], "DIFFERENT"),
        (["v=spf1 a:notmx.example.org -all"], "DIFFERENT"),
        (["v=spf1 mx -all", "v=spf1 mx -all"], "DIFFERENT"),
        (["v=spf10 mx -all"], "MISSING"),
        (["google-site-verification=x"], "MISSING"),
        (["v=spf1"], "DIFFERENT"),
    ],
)
def test_an_spf_record_lets_our_mail_in(found: list[str], state: str) -> None:
    judged = judge("TXT", "v=spf1")(found)
    assert judged.state == state
    assert not any("google" in text for text in judged.found)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (["v=DMARC1; p=reject"], "OK"),
        (["v=DMARC1;p=QUARANTINE;rua=mailto:x@y.example"], "OK"),
        (["v=DMARC1; p=none"], "DIFFERENT"),
        (["v=DMARC1; p=reject; pct=10"], "DIFFERENT"),
        (["v=DMARC1; p=reject", "v=DMARC1; p=none"], "DIFFERENT"),
        (["hello"], "DIFFERENT"),
        (["v=DMARC1"], "DIFFERENT"),
        ([";=;;"], "DIFFERENT"),
    ],
)
def test_a_dmarc_record_is_as_strict_as_ours(found: list[str], state: str) -> None:
    assert judge("TXT", "v=DMARC1")(found).state == state


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (["v=TLSRPTv1; rua=https://r.example/"], "OK"),
        (["v=TLSRPTv1"], "DIFFERENT"),
        (["v=TLSRPTv1; rua=mailto:a@b", "v=TLSRPTv1; rua=mailto:a@b"], "DIFFERENT"),
        (["x"], "DIFFERENT"),
    ],
)
def test_reports_of_failed_encryption_go_to_somebody(found: list[str], state: str) -> None:
    assert judge("TXT", "v=TLSRPT")(found).state == state


def test_a_policy_is_advised_where_there_is_one() -> None:
    ours = DomainDnsFacts("example.org", HOST, mta_sts_mode="enforce")
    found = {one.name: one for one in advise_records(ours) if "mta-sts" in one.name}
    text, host = found["_mta-sts.example.org"], found["mta-sts.example.org"]
    assert (text.check_published and text.check_published([text.value, "other"])) == RecordCheck(
        DnsState.OK, (text.value, "other")
    )
    assert (host.value, host.check_published and host.check_published([host.value]).state) == (
        f"{HOST}.",
        "OK",
    )
    for wrong in (["v=STSv1; id=1;"], [text.value] * 2, ["v=STSv1"]):
        assert text.check_published
        assert text.check_published(wrong).state == "DIFFERENT"
    testing = DomainDnsFacts("example.org", HOST, mta_sts_mode="testing")
    assert text.value not in {one.value for one in advise_records(testing)}  # it is to be read anew
    for none in (
        DomainDnsFacts("example.org", HOST, is_backup_mx=True, mta_sts_mode="enforce"),
        DomainDnsFacts("example.org", "localhost", mta_sts_mode="enforce"),
    ):
        values = [one.value for one in advise_records(none) if "mta-sts" in one.name]
        assert len(values) == 2
        assert all(value.startswith(NOT_CONFIGURED) for value in values)


def test_what_is_shown_has_an_end() -> None:
    judged = judge("TXT", "v=DMARC1")(["x" * 5000] * 50)
    assert (len(judged.found), {len(text) for text in judged.found}) == (10, {1000})
