"""Route selection by transport, relay host, next hop and MX record."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.network.dns_resolver import enable_dnssec
from mail.routing.certificate_checks import CertificateCheck
from mail.routing.mx_hosts import NextHop, OutboundSettings, TlsLevel, Unroutable, parse_next_hop
from mail.routing.password_contexts import relay_host_context, transport_context
from mail.routing.route_selection import HostPort, RouteRequest, parse_host_port, select_route
from models.domains.tables import Domain
from models.routing.tables import RelayHost, TlsPolicyLevel
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.route_rows import add_tls_policy, add_transport, make_mx_dns_server
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
    server_tls_context,
    trusting_tls_context,
)

ROUTE_REQUEST = RouteRequest(
    "ada@example.org", "carol@deep.mail.example.net", "deep.mail.example.net"
)


async def first_next_hop(
    environment: Environment,
    request: RouteRequest = ROUTE_REQUEST,
    settings: OutboundSettings | None = None,
) -> NextHop:
    return (
        await select_route(
            environment, settings or OutboundSettings(parse_next_hop("hop.example")), request
        )
    ).next_hops[0]


async def add_relay_host(environment: Environment, domain: str, **columns: Any) -> int:
    """Add a relay host and assign it to a domain."""
    relay_host_id = environment.new_id()
    secret = (
        environment.secret_box.encrypt("secret", relay_host_context(relay_host_id))
        if columns.get("username")
        else None
    )
    defaults = {"host": "relay.example", "secret": secret}
    row = RelayHost(id=relay_host_id, created_at=environment.now(), **(defaults | columns))
    async with environment.write_session() as session:
        session.add(row)
        statement = update(Domain).where(col(Domain.name) == domain)
        await session.exec(statement.values(relay_host_id=relay_host_id))
    return relay_host_id


async def test_most_specific_transport_is_used(environment: Environment) -> None:
    await add_transport(environment, "/^carol@.*example\\.net$/", "pattern.example")
    assert (await first_next_hop(environment)).name == "pattern.example"
    for destination in (".net", ".example.net", ".mail.example.net", "deep.mail.example.net"):
        await add_transport(environment, destination, f"by{destination.replace('.', '-')}.example")
        assert (
            await first_next_hop(environment)
        ).name == f"by{destination.replace('.', '-')}.example"
    await add_transport(environment, "carol@deep.mail.example.net", "[192.0.2.1]:2525")
    next_hop = await first_next_hop(environment)
    assert (next_hop.name, next_hop.port, next_hop.is_relay) == ("192.0.2.1", 2525, True)
    other_recipient = RouteRequest("", "dave@deep.mail.example.net", "deep.mail.example.net")
    assert (
        await first_next_hop(environment, other_recipient)
    ).name == "bydeep-mail-example-net.example"
    other_domain = RouteRequest("", "dave@mail.example.com", "mail.example.com")
    assert (await first_next_hop(environment, other_domain)).name == "hop.example"


@pytest.mark.usefixtures("ada")
async def test_inactive_transport_and_relay_host_are_ignored(environment: Environment) -> None:
    await add_transport(environment, "deep.mail.example.net", "there.example", active=False)
    await add_relay_host(environment, "example.org", active=False)
    assert (await first_next_hop(environment)).name == "hop.example"


async def test_subdomain_transport_does_not_match_domain_itself(environment: Environment) -> None:
    await add_transport(environment, ".example.net", "above.example")
    domain_request = RouteRequest("", "dave@example.net", "example.net")
    assert (await first_next_hop(environment, domain_request)).name == "hop.example"


@pytest.mark.usefixtures("ada")
async def test_relay_host_of_sender_domain_is_used(environment: Environment) -> None:
    await add_relay_host(environment, "example.org", username="us", port=587)
    next_hop = await first_next_hop(environment)
    assert next_hop == NextHop(
        "relay.example", 587, "relay.example", TlsLevel.REQUIRED, "us", "secret", is_relay=True
    )
    assert "secret" not in repr(next_hop)
    for sender in ("", "eve@example.com"):
        request = RouteRequest(sender, ROUTE_REQUEST.recipient, ROUTE_REQUEST.domain)
        assert (await first_next_hop(environment, request)).name == "hop.example"
    await add_transport(environment, ROUTE_REQUEST.domain, "there.example")
    assert (await first_next_hop(environment)).name == "there.example"


@pytest.mark.usefixtures("ada")
async def test_relay_host_with_password_requires_tls(environment: Environment) -> None:
    relay_host_id = await add_relay_host(environment, "example.org", username="us", tls=False)
    assert (await first_next_hop(environment)).tls_level is TlsLevel.REQUIRED
    await add_tls_policy(environment, "[relay.example]:25", TlsPolicyLevel.NONE)
    assert (await first_next_hop(environment)).tls_level is TlsLevel.REQUIRED
    async with environment.write_session() as session:
        row = await session.get(RelayHost, relay_host_id)
        assert row is not None
        row.secret = environment.secret_box.encrypt("secret", transport_context(relay_host_id))
    with pytest.raises(Unroutable) as problem:
        await first_next_hop(environment)
    assert problem.value.reply_code == 451


@pytest.mark.parametrize(
    ("level", "parameters", "check"),
    [
        (TlsPolicyLevel.NONE, None, CertificateCheck.NAMES),
        (TlsPolicyLevel.MAY, None, CertificateCheck.NAMES),
        (TlsPolicyLevel.ENCRYPT, None, CertificateCheck.NAMES),
        (TlsPolicyLevel.DANE, None, CertificateCheck.NAMES),
        (TlsPolicyLevel.FINGERPRINT, "match=" + "00" * 32, CertificateCheck.PRINTS),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_password_requires_certificate_check_at_every_policy_level(
    environment: Environment,
    level: TlsPolicyLevel,
    parameters: str | None,
    check: CertificateCheck,
) -> None:
    await add_tls_policy(environment, "relay.example", level, parameters)
    await add_tls_policy(environment, "mx1.far.example", level, parameters)
    await add_tls_policy(environment, "far.example", level, parameters)
    await add_relay_host(environment, "example.org", username="us", tls=False)
    await add_transport(environment, "mx.example", "far.example", lookup_mx=True, username="us")
    await add_transport(environment, "host.example", "mx1.far.example", username="us")
    dns_names = make_mx_dns_server("far.example", "mx1.far.example")
    hop_settings = OutboundSettings(parse_next_hop("smtp://us:pw@relay.example"))
    async with run_dns_server(dns_names):
        mx_settings = OutboundSettings(make_resolver=dns_names.make_resolver)
        for sender, domain, settings in (
            ("ada@example.org", "any.example", mx_settings),  # the relay host
            ("", "mx.example", mx_settings),
            ("", "host.example", mx_settings),
            ("", "any.example", hop_settings),
        ):
            for requires_tls in (False, True):
                request = RouteRequest(sender, f"carol@{domain}", domain, requires_tls)
                next_hop = await first_next_hop(environment, request, settings)
                assert next_hop.username == "us"
                assert next_hop.tls_level is TlsLevel.REQUIRED
                assert next_hop.certificate_requirement.check is check


@pytest.mark.usefixtures("ada")
async def test_unusable_tlsa_records_keep_certificate_check_for_a_password(
    environment: Environment,
) -> None:
    await add_relay_host(environment, "example.org", username="us", host="mx1.far.example")
    await add_tls_policy(environment, "mx1.far.example", TlsPolicyLevel.DANE)
    dns_names = make_mx_dns_server("far.example", "mx1.far.example")
    dns_names.records["_25._tcp.mx1.far.example", "TLSA"] = ["3 9 1 " + "00" * 32]
    async with run_dns_server(dns_names):
        settings = OutboundSettings(
            make_resolver=lambda: enable_dnssec(dns_names.make_resolver()), trusts_dnssec=True
        )
        route = await select_route(environment, settings, ROUTE_REQUEST)
    assert route.next_hops[0].tls_level is TlsLevel.REQUIRED
    assert route.next_hops[0].certificate_requirement.check is CertificateCheck.NAMES
    assert any("TLSA records are unusable" in line for line in route.route_log)
    assert any("a verified certificate is required" in line for line in route.route_log)


async def test_password_without_tls_is_allowed_for_default_next_hop(
    environment: Environment,
) -> None:
    settings = OutboundSettings(parse_next_hop("smtp://us:pw@hop.example?tls=never"))
    assert (await first_next_hop(environment, settings=settings)).tls_level is TlsLevel.NEVER


async def test_transport_with_lookup_mx_uses_mx_hosts(environment: Environment) -> None:
    dns_names = make_mx_dns_server("far.example", "mx1.far.example", "mx2.far.example")
    await add_transport(environment, ROUTE_REQUEST.domain, "far.example:2525", lookup_mx=True)
    async with run_dns_server(dns_names):
        route = await select_route(
            environment, OutboundSettings(make_resolver=dns_names.make_resolver), ROUTE_REQUEST
        )
    assert [(next_hop.name, next_hop.address, next_hop.port) for next_hop in route.next_hops] == [
        ("mx1.far.example", "127.0.0.1", 2525),
        ("mx2.far.example", "127.0.0.2", 2525),
    ]
    assert route.destination == "far.example"
    assert route.route_log[0] == "recipient: transport deep.mail.example.net to far.example:2525"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail.example", HostPort("mail.example", 25, is_bracketed=False)),
        ("Mail.example:587", HostPort("mail.example", 587, is_bracketed=False)),
        ("[mail.example]", HostPort("mail.example", 25, is_bracketed=True)),
        ("[2001:db8::1]:465", HostPort("2001:db8::1", 465, is_bracketed=True)),
    ],
)
def test_host_port_is_parsed(text: str, expected: HostPort) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("text", ["", "[]", "[a", "[a]b", "a:b", "a:0", "a:65536", ":25", "a:٣"])
def test_invalid_host_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_host_port(text)


async def test_recipients_of_one_message_use_different_routes(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as default_server,
        run_smtp_server(FakeSmtpServer()) as transport_server,
    ):
        await add_transport(environment, "dave@example.net", f"[127.0.0.1]:{transport_server.port}")
        settings = OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{default_server.port}"))
        async with run_queue_worker(environment, settings):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert [mail.to for mail in default_server.messages] == [["carol@example.net"]]
    assert [mail.to for mail in transport_server.messages] == [["dave@example.net"]]


async def test_delivery_signs_in_to_relay_host(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        server.smtp_options = {
            "tls_context": server_tls_context(),
            "authenticator": server.authenticate,
        }
        await add_relay_host(
            environment, "example.org", username="us", host="127.0.0.1", port=server.port
        )
        async with run_queue_worker(
            environment, OutboundSettings(trusted_context=trusting_tls_context())
        ):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert server.logins == ["us"]
    assert server.messages[0].used_tls
    assert rows["carol"].tls.endswith("(verified)")


async def test_password_is_not_sent_to_unverified_server_with_policy_encrypt(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        server.smtp_options = {
            "tls_context": server_tls_context(),  # its authority is not trusted
            "authenticator": server.authenticate,
        }
        await add_relay_host(
            environment, "example.org", username="us", host="127.0.0.1", port=server.port
        )
        await add_tls_policy(environment, f"[127.0.0.1]:{server.port}", TlsPolicyLevel.ENCRYPT)
        async with run_queue_worker(environment, OutboundSettings()):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert rows["carol"].last_response.startswith("4.7.5 TLS handshake failed:")
    assert (server.logins, server.messages) == ([], [])


async def test_user_with_enforced_tls_never_sends_in_cleartext(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id)
        await session.exec(statement.values(require_outbound_tls=True))
    dns_names = make_mx_dns_server("example.net", "mx1.example.net", "mx2.example.net")
    cleartext_server = FakeSmtpServer()
    async with run_dns_server(dns_names), run_smtp_server(cleartext_server):
        settings = OutboundSettings(
            make_resolver=dns_names.make_resolver, mx_port=cleartext_server.port
        )
        async with run_queue_worker(environment, settings):
            rows = await wait_until_tried(
                environment, await queue_message(ada, NamedAddress("carol@example.net"))
            )
            assert (rows["carol"].state, rows["carol"].last_code) == (State.DEFERRED, 451)
            assert cleartext_server.messages == []
        tls_server = FakeSmtpServer(smtp_options={"tls_context": server_tls_context()})
        async with (
            run_smtp_server(tls_server, "127.0.0.2", cleartext_server.port),
            run_queue_worker(environment, settings),
        ):
            rows = await wait_until_tried(
                environment, await queue_message(ada, NamedAddress("dave@example.net"))
            )
    assert (rows["dave"].state, rows["dave"].mx) == (State.DELIVERED, "mx2.example.net")
    assert rows["dave"].tls.startswith("TLSv1.3 ")
    assert cleartext_server.messages == []


async def test_own_hostname_in_mx_leaves_only_preferred_hosts(environment: Environment) -> None:
    records = {
        ("backup.example", "MX"): ["10 main.example.", "20 mx.example.org.", "20 other.example."],
        ("main.example", "A"): ["127.0.0.1"],
        ("other.example", "A"): ["127.0.0.2"],
    }
    dns_names = FakeDnsServer(records)
    async with run_dns_server(dns_names):
        request = RouteRequest("", "carol@backup.example", "backup.example")
        route = await select_route(
            environment, OutboundSettings(make_resolver=dns_names.make_resolver), request
        )
    assert [next_hop.name for next_hop in route.next_hops] == ["main.example"]
