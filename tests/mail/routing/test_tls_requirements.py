"""TLS requirements of destinations by TLS policy and DANE, and servers that violate them."""

import hashlib
import ssl
from pathlib import Path

import pytest
from dns.asyncresolver import Resolver

from mail.mime.header_encoding import NamedAddress
from mail.network.dns_resolver import enable_dnssec
from mail.routing.mx_hosts import OutboundSettings
from models.routing.tables import TlsPolicyLevel
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail.tls_certificates import (
    CertificatePair,
    client_tls_context,
    make_certificate,
    server_tls_context,
)
from tests.support.mail_servers.queue_worker import (
    State,
    load_inbox_rows,
    load_queue_entries,
    poll_until,
    queue_message,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.route_rows import add_tls_policy, make_mx_dns_server
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)

MX = "mx1.example.net"
Level = TlsPolicyLevel


class TlsTestDomain:
    """A domain with one MX host. The test chooses its certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = make_certificate("authority", is_authority=True)
        self.certificate = make_certificate(MX, issuer=self.authority)
        self.dns_names = make_mx_dns_server("example.net", MX)
        self.server = FakeSmtpServer()

    def set_certificate(self, certificate: CertificatePair | None, *chain: CertificatePair) -> None:
        context = server_tls_context(self.folder, certificate, *chain) if certificate else None
        self.server.smtp_options = {"tls_context": context} if context else {}

    def set_tlsa_records(self, port: int, *records: str) -> None:
        self.dns_names.records[f"_{port}._tcp.{MX}", "TLSA"] = list(records)

    def settings(self, *, validates: bool = False) -> OutboundSettings:
        def resolver() -> Resolver:
            dns_resolver = self.dns_names.make_resolver()
            return enable_dnssec(dns_resolver) if validates else dns_resolver

        return OutboundSettings(
            make_resolver=resolver,
            mx_port=self.server.port,
            trusted_context=client_tls_context(self.authority),
            trusts_dnssec=validates,
        )


@pytest.fixture
def domain(tmp_path: Path) -> TlsTestDomain:
    return TlsTestDomain(tmp_path)


async def deliver_message(
    ada: GraphQLClient, environment: Environment, settings: OutboundSettings
) -> tuple[State, str]:
    """Send a message and return its state with the TLS session or the failure response."""
    async with run_queue_worker(environment, settings):
        row = (
            await wait_until_tried(
                environment, await queue_message(ada, NamedAddress("carol@example.net"))
            )
        )["carol"]
    return row.state, row.tls if row.state is State.DELIVERED else row.last_response


@pytest.mark.parametrize(
    ("level", "parameters", "certificate_name", "expected"),
    [
        (Level.NONE, None, "own", None),
        (Level.MAY, None, "own", "256"),
        (Level.MAY, None, "", None),
        (Level.ENCRYPT, None, "other", "256"),
        (Level.ENCRYPT, None, "", "4.7.5 TLS handshake failed: STARTTLS not offered"),
        (Level.ENCRYPT, "protocols=TLSv1.2", "own", "256"),
        (Level.VERIFY, None, "own", "(policy)"),
        (
            Level.VERIFY,
            "match=other.example",
            "own",
            f"4.7.5 TLS handshake failed: certificate is for {MX}",
        ),
        (Level.VERIFY, None, "other", "4.7.5"),
        (Level.SECURE, None, "own", "(policy)"),
        (Level.SECURE, "match=example.net", "own", "4.7.5"),
        (Level.SECURE, "match=.example.net", "own", "(policy)"),
        (Level.SECURE, "match=hostname", "own", "(policy)"),
        (Level.SECURE, "match=.example.net", "expired", "4.7.5"),
        (Level.SECURE, "nonsense", "own", "4.7.5 The TLS policy is invalid: "),
        (Level.FINGERPRINT, "match=" + 32 * "00:" + "00", "own", "4.7.5"),
        (Level.FINGERPRINT, "match=" + 31 * "00:" + "00", "own", "4.7.5"),
        (Level.FINGERPRINT, None, "own", "4.7.5 The TLS policy has no fingerprint"),
        (Level.DANE, None, "own", "256"),
        (Level.DANE_ONLY, None, "own", "4.7.5 No TLSA record of"),
    ],
)
async def test_tls_policy_is_enforced(  # noqa: PLR0913, PLR0917 - parametrized
    ada: GraphQLClient,
    environment: Environment,
    domain: TlsTestDomain,
    level: TlsPolicyLevel,
    parameters: str | None,
    certificate_name: str,
    expected: str | None,
) -> None:
    certificates = {
        "own": domain.certificate,
        "other": make_certificate("other.example"),
        "expired": make_certificate(MX, issuer=domain.authority, days=-1),
        "": None,
    }
    domain.set_certificate(certificates[certificate_name])
    await add_tls_policy(environment, "example.net", level, parameters)
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        state, detail = await deliver_message(ada, environment, domain.settings())
    expected_state = (
        State.DELIVERED if expected is None or expected in ("256", "(policy)") else State.DEFERRED
    )
    assert state is expected_state, detail
    if expected_state is State.DEFERRED:
        assert expected is not None
        assert detail.startswith(expected)
        assert domain.server.messages == []
    else:
        assert (expected is None) == (detail is None)
        assert not expected or expected in detail
        assert domain.server.messages[0].used_tls is (expected is not None)
    if parameters == "protocols=TLSv1.2":
        assert detail.startswith("TLSv1.2 ")


@pytest.mark.parametrize("digest_kind", ["certificate", "key", "sha1"])
async def test_fingerprint_policy_matches_certificate_or_key(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain, digest_kind: str
) -> None:
    certificate = make_certificate("elsewhere.example", days=-5)
    domain.set_certificate(certificate)
    digests = {
        "certificate": hashlib.sha256(certificate.der).hexdigest(),
        "key": hashlib.sha256(certificate.spki).hexdigest(),
        "sha1": hashlib.sha1(certificate.der, usedforsecurity=False).hexdigest(),
    }
    parameters = f"match={'00' * 32}|{digests[digest_kind].upper()}"
    await add_tls_policy(environment, ".net", Level.FINGERPRINT, parameters)
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        state, detail = await deliver_message(ada, environment, domain.settings())
    assert (state, detail.endswith("(policy)")) == (State.DELIVERED, True)


async def test_expired_tls_failure_bounces_with_5_7_5(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain, clock: ManualClock
) -> None:
    await add_tls_policy(environment, "example.net", Level.ENCRYPT)
    async with (
        run_dns_server(domain.dns_names),
        run_smtp_server(domain.server),
        run_queue_worker(environment, domain.settings()),
    ):
        key = await queue_message(ada, NamedAddress("carol@example.net"))
        await wait_until_tried(environment, key)
        clock.tick(days=6)
        wake_queue_worker(environment)

        async def is_expired() -> bool:
            return (await load_queue_entries(environment, key))["carol"].state is State.EXPIRED

        await poll_until(is_expired)
        row = (await load_queue_entries(environment, key))["carol"]
    assert row.last_response.startswith("5.7.5 ")
    (bounce,) = await load_inbox_rows(ada)
    assert "5.7.5" in bounce.preview
    assert domain.server.messages == []


async def test_dane_checks_certificate_of_tlsa_record(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain
) -> None:
    # usage 3 ignores host name and validity time
    certificate = make_certificate("elsewhere.example", days=-5)
    domain.set_certificate(certificate)
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        domain.set_tlsa_records(domain.server.port, f"3 1 1 {certificate.digest()}")
        state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
        assert (state, detail.endswith("(DANE)")) == (State.DELIVERED, True)
        for record in (
            f"3 0 1 {certificate.digest(spki=False)}",
            f"3 0 0 {certificate.der.hex()}",
            f"3 1 0 {certificate.spki.hex()}",
        ):
            domain.set_tlsa_records(
                domain.server.port, f"3 1 1 {domain.certificate.digest()}", record
            )
            state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
            assert (state, detail.endswith("(DANE)")) == (State.DELIVERED, True), detail
        domain.set_tlsa_records(domain.server.port, f"3 1 1 {domain.certificate.digest()}")
        state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
    assert (state, detail[:27]) == (State.DEFERRED, "4.7.5 TLS handshake failed:")
    assert len(domain.server.messages) == 4


async def test_dane_usage_2_accepts_chain_to_named_authority(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain
) -> None:
    root = make_certificate("root", is_authority=True)
    intermediate = make_certificate("between", issuer=root, is_authority=True)
    certificate = make_certificate(MX, issuer=intermediate)
    cases = [
        ((certificate, intermediate, root), f"2 0 1 {root.digest(spki=False)}", True),
        ((certificate, intermediate), f"2 1 1 {intermediate.digest()}", True),
        ((certificate, intermediate), f"2 0 0 {root.der.hex()}", True),
        ((certificate, intermediate), f"2 1 1 {root.digest()}", False),
        (
            (make_certificate("other.example", issuer=intermediate), intermediate),
            f"2 1 1 {intermediate.digest()}",
            False,
        ),
        (
            (make_certificate(MX, issuer=intermediate, days=-1), intermediate),
            f"2 1 1 {intermediate.digest()}",
            False,
        ),
        ((make_certificate(MX), intermediate), f"2 1 1 {intermediate.digest()}", False),
        # This certificate is no authority.
        (
            (make_certificate(MX, issuer=certificate), certificate),
            f"2 1 1 {certificate.digest()}",
            False,
        ),
    ]
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        for chain, record, is_valid in cases:
            domain.set_certificate(*chain)
            domain.set_tlsa_records(domain.server.port, record)
            state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
            assert state is (State.DELIVERED if is_valid else State.DEFERRED), (record[:8], detail)
            assert (
                detail.endswith("(DANE)")
                if is_valid
                else detail.startswith("4.7.5 TLS handshake failed:")
            )


async def test_dane_does_not_fall_back_to_cleartext(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain
) -> None:
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        for record in (
            f"3 1 1 {domain.certificate.digest()}",
            "0 0 1 " + "00" * 32,
            "3 9 1 " + "00" * 32,
        ):
            domain.set_tlsa_records(domain.server.port, record)
            state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
            assert (state, detail) == (
                State.DEFERRED,
                "4.7.5 TLS handshake failed: STARTTLS not offered",
            )
        # Unusable TLSA records require encryption only.
        domain.set_certificate(make_certificate("elsewhere.example"))
        state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
        assert (state, detail[:7]) == (State.DELIVERED, "TLSv1.3")
        domain.dns_names.servfail_names.add(f"_{domain.server.port}._tcp.{MX}")
        state, detail = await deliver_message(ada, environment, domain.settings(validates=True))
    assert (state, detail) == (State.DEFERRED, f"4.7.5 TLSA lookup of {MX} failed")
    assert all(mail.used_tls for mail in domain.server.messages)


@pytest.mark.parametrize("unsigned", ["example.net", MX, "TLSA", "resolver"])
async def test_dane_needs_complete_dnssec_chain(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain, unsigned: str
) -> None:
    domain.set_certificate(make_certificate("elsewhere.example"))
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        domain.set_tlsa_records(domain.server.port, f"3 1 1 {domain.certificate.digest()}")
        record = f"_{domain.server.port}._tcp.{MX}"
        signed = {"example.net", MX, record}
        domain.dns_names.dnssec_names = signed - {record if unsigned == "TLSA" else unsigned}
        state, detail = await deliver_message(
            ada, environment, domain.settings(validates=unsigned != "resolver")
        )
    assert (state, "DANE" in detail) == (State.DELIVERED, False)


async def test_next_mx_host_is_used_if_first_violates_policy(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    authority = make_certificate("authority", is_authority=True)
    certificate = make_certificate("mx2.example.net", issuer=authority)
    cleartext_server = FakeSmtpServer()
    dns_names: FakeDnsServer = make_mx_dns_server("example.net", MX, "mx2.example.net")
    await add_tls_policy(environment, "example.net", Level.SECURE, "match=.example.net")
    async with run_dns_server(dns_names), run_smtp_server(cleartext_server):
        tls_server = FakeSmtpServer(
            smtp_options={"tls_context": server_tls_context(tmp_path, certificate)}
        )
        settings = OutboundSettings(
            make_resolver=dns_names.make_resolver,
            mx_port=cleartext_server.port,
            trusted_context=client_tls_context(authority),
        )
        async with run_smtp_server(tls_server, "127.0.0.2", cleartext_server.port):
            state, detail = await deliver_message(ada, environment, settings)
    assert (state, detail.endswith("(policy)")) == (State.DELIVERED, True)
    assert (len(cleartext_server.messages), len(tls_server.messages)) == (0, 1)


async def test_server_with_protocol_below_policy_defers(
    ada: GraphQLClient, environment: Environment, domain: TlsTestDomain
) -> None:
    context = server_tls_context(domain.folder, domain.certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    domain.server.smtp_options = {"tls_context": context}
    await add_tls_policy(environment, "example.net", Level.ENCRYPT, "protocols=>=TLSv1.3")
    async with run_dns_server(domain.dns_names), run_smtp_server(domain.server):
        state, detail = await deliver_message(ada, environment, domain.settings())
    assert (state, detail[:27]) == (State.DEFERRED, "4.7.5 TLS handshake failed:")
