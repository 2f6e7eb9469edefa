"""Advised DNS records of a domain, and the check of published records."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mail.domains.dns_advice import (
    DnsState,
    DomainDnsFacts,
    RecordCheck,
    advise_records,
    check_srv,
    reverse_record_advice,
)
from mail.domains.submission_servers import (
    SubmissionServer,
    SubmissionTlsMode,
    public_https_host_or_empty,
)
from models.domains.dns_record_values import DnsRecordPurpose
from models.runtime.options import Options

HOST = "mx.example.org"


def record_check(
    record_type: str, value_prefix: str, *, is_backup_mx: bool = False
) -> Callable[[Sequence[str]], RecordCheck]:
    facts = DomainDnsFacts("example.org", HOST, is_backup_mx)
    (record,) = (
        record
        for record in advise_records(facts)
        if record.type == record_type and (record.value or "").startswith(value_prefix)
    )
    assert record.check_published
    return record.check_published


def test_all_records_are_listed_also_if_not_configured() -> None:
    advised = advise_records(DomainDnsFacts("bücher.example", "MX.example.org"))
    values = {(record.type, record.name): record.value for record in advised}
    addresses = {("A", "mx.example.org"), ("AAAA", "mx.example.org")}
    not_configured = {key for key, value in values.items() if value is None} - addresses
    assert not_configured == {
        ("TXT", "dkim._domainkey.xn--bcher-kva.example"),
        ("TXT", "_mta-sts.xn--bcher-kva.example"),
        ("CNAME", "mta-sts.xn--bcher-kva.example"),
        ("TLSA", "_25._tcp.mx.example.org"),
        ("CNAME", "autoconfig.xn--bcher-kva.example"),
        ("SRV", "_autodiscover._tcp.xn--bcher-kva.example"),
        ("SRV", "_imaps._tcp.xn--bcher-kva.example"),
        ("SRV", "_submissions._tcp.xn--bcher-kva.example"),
    }
    assert {key: value for key, value in values.items() if value is not None} == {
        ("MX", "xn--bcher-kva.example"): "10 mx.example.org.",
        ("TXT", "xn--bcher-kva.example"): "v=spf1 mx a:mx.example.org ~all",
        ("TXT", "_dmarc.xn--bcher-kva.example"): "v=DMARC1; p=quarantine; "
        "rua=mailto:postmaster@xn--bcher-kva.example",
        ("TXT", "_smtp._tls.xn--bcher-kva.example"): "v=TLSRPTv1; "
        "rua=mailto:postmaster@xn--bcher-kva.example",
    }
    for record in advised:
        assert (record.check_published is None) is ((record.type, record.name) in not_configured)
        assert (record.instruction is None) is (record.value is not None)
    optional_types = {record.type for record in advised if record.optional_reason}
    assert optional_types == {"AAAA", "TLSA"}


SUBMISSION_SERVERS = (
    SubmissionServer("mx.example.org", 465, SubmissionTlsMode.IMPLICIT),
    SubmissionServer("mx.example.org", 587, SubmissionTlsMode.STARTTLS),
)


def test_service_records_follow_the_submission_servers() -> None:
    def advise_services(**fields: Any) -> dict[str, tuple[str | None, str | None]]:
        return {
            record.purpose: (record.value, record.instruction)
            for record in advise_records(DomainDnsFacts("example.org", HOST, **fields))
            if record.purpose in {"AUTOCONFIG", "AUTODISCOVER", "SUBMISSIONS"}
        }

    not_offered = (None, "This server does not offer the service.")
    no_web_host = (None, "Set MERGANSER_PUBLIC_URL to an https URL with port 443.")
    offered = {"submission_servers": SUBMISSION_SERVERS}
    assert advise_services(**offered, web_host="Mail.example.org") == {
        "AUTOCONFIG": ("mail.example.org.", None),
        "AUTODISCOVER": ("0 0 443 mail.example.org.", None),
        "SUBMISSIONS": ("0 1 465 mx.example.org.", None),
    }
    assert advise_services(submission_servers=SUBMISSION_SERVERS[1:]) == {
        "AUTOCONFIG": no_web_host,
        "AUTODISCOVER": no_web_host,
        "SUBMISSIONS": not_offered,
    }
    backup = advise_services(**offered, web_host="mail.example.org", is_backup_mx=True)
    assert set(backup.values()) == {not_offered}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (["0 0 443 MAIL.example.org."], "OK"),
        (["5 0 443 old.example.org.", "0 0 443 mail.example.org."], "OK"),
        (["0 0 8443 mail.example.org."], "MISMATCH"),
        (["0 0 0 ."], "MISMATCH"),
        ([], "MISSING"),
    ],
)
def test_srv_record_must_have_host_and_port(found: list[str], state: str) -> None:
    assert check_srv(found, host="mail.example.org", port=443).state == state


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Mail.example.org", "mail.example.org"),
        ("https://mail.example.org:443/path", "mail.example.org"),
        ("https://mail.example.org:8443", ""),
        ("https://mail.example.org:99999", ""),
        ("http://mail.example.org", ""),
        ("", ""),
    ],
)
def test_web_host_is_the_host_of_an_https_url(url: str, host: str) -> None:
    assert public_https_host_or_empty(Options(public_url=url)) == host


def test_advised_records_pass_their_own_check() -> None:
    for backup in (False, True):
        for record in advise_records(
            DomainDnsFacts(
                "example.org",
                HOST,
                backup,
                spki_sha256="ab" * 32,
                submission_servers=SUBMISSION_SERVERS,
                web_host="mail.example.org",
            )
        ):
            if record.check_published and record.value is not None:
                assert record.check_published([record.value]) == RecordCheck(
                    DnsState.OK, (record.value,)
                )
                assert record.check_published([]) == RecordCheck(DnsState.MISSING)


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ([f"3 1 1 {'AB' * 32}"], "OK"),
        ([f"3 1 1 {'ab' * 28} {'ab' * 4}"], "OK"),
        ([f"3 1 1 {'cd' * 32}", f"3 1 1 {'ab' * 32}"], "OK"),  # during a key change
        ([f"3 1 1 {'cd' * 32}"], "MISMATCH"),
        ([f"3 0 1 {'ab' * 32}"], "UNKNOWN"),
        ([f"3 1 2 {'ab' * 64}", f"3 1 1 {'cd' * 32}"], "UNKNOWN"),
        ([f"3 0 1 {'cd' * 32}", f"3 1 1 {'ab' * 32}"], "OK"),
        ([f"3 1 3 {'ab' * 32}"], "MISMATCH"),
        ([f"2 1 1 {'ab' * 32}"], "UNKNOWN"),
        (["", "x"], "MISMATCH"),
        ([], "MISSING"),
    ],
)
def test_tlsa_record_must_match_the_public_key(published: list[str], expected: str) -> None:
    (record,) = (
        record
        for record in advise_records(DomainDnsFacts("example.org", HOST, spki_sha256="ab" * 32))
        if record.type == "TLSA"
    )
    assert (record.name, record.value) == (f"_25._tcp.{HOST}", f"3 1 1 {'ab' * 32}")
    assert record.check_published
    assert record.check_published(published).state == expected


def test_missing_hostname_is_named_in_the_advice() -> None:
    records = {
        record.purpose: record
        for record in advise_records(DomainDnsFacts("example.org", "localhost"))
    }
    for purpose in (DnsRecordPurpose.HOST_ADDRESS, DnsRecordPurpose.MX, DnsRecordPurpose.SPF):
        assert records[purpose].value is None
        assert "MERGANSER_HOSTNAME" in (records[purpose].instruction or "")


@pytest.mark.parametrize("record_type", ["A", "AAAA"])
def test_host_needs_an_address(record_type: str) -> None:
    check = record_check(record_type, "")
    assert check(["192.0.2.1"]) == RecordCheck(DnsState.OK, ("192.0.2.1",))
    assert check([]).state == "MISSING"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("9.8.7.6", "6.7.8.9.in-addr.arpa"),
        ("2600::1", f"1.{'0.' * 27}0.0.6.2.ip6.arpa"),
    ],
)
def test_reverse_record_must_have_the_host_name(address: str, name: str) -> None:
    record = reverse_record_advice(address, HOST)
    assert (record.type, record.name, record.value) == ("PTR", name, f"{HOST}.")
    assert record.check_published
    assert record.check_published(["MX.example.org."]).state == "OK"
    assert record.check_published(["other.example.", "mx.example.org."]).state == "OK"
    assert record.check_published(["other.example."]).state == "MISMATCH"
    assert record.check_published([]).state == "MISSING"


@pytest.mark.parametrize(
    ("published", "expected_as_primary", "expected_as_backup"),
    [
        (["10 MX.Example.ORG."], "OK", "OK"),
        (["0 mx.example.org."], "OK", "OK"),
        (["10 mx.example.org.", "20 other.example."], "OK", "OK"),
        (["10 mx.example.org.", "10 other.example."], "OK", "OK"),
        (["10 mx.example.org.", "5 other.example."], "MISMATCH", "OK"),
        (["10 other.example."], "MISMATCH", "MISMATCH"),
        (["0 ."], "MISMATCH", "MISMATCH"),
        (["10 notmx.example.org."], "MISMATCH", "MISMATCH"),
        ([], "MISSING", "MISSING"),
    ],
)
def test_mx_record_must_prefer_our_server(
    published: list[str], expected_as_primary: str, expected_as_backup: str
) -> None:
    assert record_check("MX", "10")(published).state == expected_as_primary
    assert record_check("MX", "20", is_backup_mx=True)(published).state == expected_as_backup


@pytest.mark.parametrize(
    ("published", "state"),
    [
        (["v=spf1 mx -all"], "OK"),
        (["V=SPF1 +MX ~ALL", "google-site-verification=x"], "OK"),
        (["v=spf1 include:x.example a:mx.example.org. -all"], "OK"),
        (["v=spf1 mx:example.org -all"], "OK"),
        (["v=spf1 ?mx -all"], "MISMATCH"),
        (["v=spf1 -mx all"], "MISMATCH"),
        (["v=spf1 include:mx -all"], "MISMATCH"),
        (["v=spf1 a:notmx.example.org -all"], "MISMATCH"),
        (["v=spf1 mx -all", "v=spf1 mx -all"], "MISMATCH"),
        (["v=spf10 mx -all"], "MISSING"),
        (["google-site-verification=x"], "MISSING"),
        (["v=spf1"], "MISMATCH"),
    ],
)
def test_spf_record_must_allow_our_server(published: list[str], state: str) -> None:
    check = record_check("TXT", "v=spf1")(published)
    assert check.state == state
    assert not any("google" in text for text in check.found)


@pytest.mark.parametrize(
    ("published", "state"),
    [
        (["v=DMARC1; p=reject"], "OK"),
        (["v=DMARC1;p=QUARANTINE;rua=mailto:x@y.example"], "OK"),
        (["v=DMARC1; p=none"], "MISMATCH"),
        (["v=DMARC1; p=reject; pct=10"], "MISMATCH"),
        (["v=DMARC1; p=reject", "v=DMARC1; p=none"], "MISMATCH"),
        (["hello"], "MISMATCH"),
        (["v=DMARC1"], "MISMATCH"),
        ([";=;;"], "MISMATCH"),
    ],
)
def test_dmarc_record_must_be_as_strict_as_advised(published: list[str], state: str) -> None:
    assert record_check("TXT", "v=DMARC1")(published).state == state


@pytest.mark.parametrize(
    ("published", "state"),
    [
        (["v=TLSRPTv1; rua=https://r.example/"], "OK"),
        (["v=TLSRPTv1"], "MISMATCH"),
        (["v=TLSRPTv1; rua=mailto:a@b", "v=TLSRPTv1; rua=mailto:a@b"], "MISMATCH"),
        (["x"], "MISMATCH"),
    ],
)
def test_tls_reporting_record_must_name_an_address(published: list[str], state: str) -> None:
    assert record_check("TXT", "v=TLSRPT")(published).state == state


def test_mta_sts_records_are_advised_if_a_policy_exists() -> None:
    facts = DomainDnsFacts("example.org", HOST, mta_sts_mode="enforce")
    records = {record.name: record for record in advise_records(facts) if "mta-sts" in record.name}
    text_record, host_record = records["_mta-sts.example.org"], records["mta-sts.example.org"]
    assert text_record.value is not None
    assert host_record.value is not None
    assert (
        text_record.check_published and text_record.check_published([text_record.value, "other"])
    ) == RecordCheck(DnsState.OK, (text_record.value, "other"))
    assert (
        host_record.value,
        host_record.check_published and host_record.check_published([host_record.value]).state,
    ) == (
        f"{HOST}.",
        "OK",
    )
    for wrong in (["v=STSv1; id=1;"], [text_record.value] * 2, ["v=STSv1"]):
        assert text_record.check_published
        assert text_record.check_published(wrong).state == "MISMATCH"
    testing_facts = DomainDnsFacts("example.org", HOST, mta_sts_mode="testing")
    # the ID changes with the policy
    assert text_record.value not in {record.value for record in advise_records(testing_facts)}
    for facts_without_policy in (
        DomainDnsFacts("example.org", HOST, is_backup_mx=True, mta_sts_mode="enforce"),
        DomainDnsFacts("example.org", "localhost", mta_sts_mode="enforce"),
    ):
        values = [
            record.value
            for record in advise_records(facts_without_policy)
            if "mta-sts" in record.name
        ]
        assert len(values) == 2
        assert values == [None, None]


def test_found_values_are_limited_in_number_and_length() -> None:
    check = record_check("TXT", "v=DMARC1")(["x" * 5000] * 50)
    assert (len(check.found), {len(text) for text in check.found}) == (10, {1000})
