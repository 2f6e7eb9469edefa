"""Route tests connect to real servers and send no message."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from mail.outbound.route_test import run_route_test
from mail.routing.mx_hosts import OutboundSettings, outbound_settings_from_options, parse_next_hop
from mail.routing.password_contexts import relay_host_context, transport_context
from models.errors import NotFound
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import Environment
from tests.support.mail_servers.route_rows import make_mx_dns_server
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
    server_tls_context,
    trusting_tls_context,
)

SENDER, RECIPIENT = "ada@example.org", "carol@example.net"


@pytest.mark.usefixtures("ada")
async def test_route_test_ends_after_rcpt(environment: Environment) -> None:
    dns_names = make_mx_dns_server("example.net", "mx1.example.net")
    server = FakeSmtpServer(
        {"gone": "550 5.1.1 No such user"}, smtp_options={"tls_context": server_tls_context()}
    )
    async with run_dns_server(dns_names), run_smtp_server(server) as running_server:
        settings = OutboundSettings(
            make_resolver=dns_names.make_resolver, mx_port=running_server.port
        )
        accepted = await run_route_test(environment, settings, SENDER, RECIPIENT)
        refused = await run_route_test(environment, settings, SENDER, "gone@example.net")
        unknown_domain = await run_route_test(environment, settings, SENDER, "carol@example.com")
    assert accepted.is_accepted
    assert accepted.log_lines == [
        "example.net: MX 10 mx1.example.net (127.0.0.1)",
        "MTA-STS of example.net: no policy",
        "TLS to mx1.example.net: OPPORTUNISTIC",
        f"connecting to mx1.example.net (127.0.0.1), port {running_server.port}",
        accepted.log_lines[4],
        "extensions of the server: 8BITMIME, AUTH, HELP, SIZE",
        "> MAIL FROM:<ada@example.org>",
        "< 250 OK",
        "> RCPT TO:<carol@example.net>",
        "< 250 2.1.5 OK",
        "> RSET",
        "< 250 OK",
    ]
    assert accepted.log_lines[4].startswith("encrypted: TLSv1.3 ")
    assert not refused.is_accepted
    assert "< 550 5.1.1 No such user" in refused.log_lines
    assert unknown_domain.log_lines[-1] == "no route: 550 5.1.2 Domain example.com not found"
    assert running_server.messages == []


@pytest.mark.usefixtures("ada")
async def test_relay_host_test_signs_in_without_logging_password(
    environment: Environment,
) -> None:
    features = {"tls_context": server_tls_context(), "auth_require_tls": True}
    async with run_smtp_server(FakeSmtpServer()) as server:
        server.smtp_options = {**features, "authenticator": server.authenticate}
        for password, expected in (("secret", True), ("hunter2", False)):
            relay_id = environment.new_id()
            relay = RelayHost(
                id=relay_id,
                host="127.0.0.1",
                port=server.port,
                username="us",
                secret=environment.secret_box.encrypt(password, relay_host_context(relay_id)),
                active=False,
                created_at=environment.now(),
            )
            async with environment.write_session() as session:
                session.add(relay)
            result = await run_route_test(
                environment,
                OutboundSettings(trusted_context=trusting_tls_context()),
                SENDER,
                RECIPIENT,
                relay_host_id=relay_id,
            )
            assert result.is_accepted is expected, result.log_lines
            assert password not in "\n".join(result.log_lines)
            assert "signing in as us" in result.log_lines
    assert result.log_lines[-1].startswith("failed: 454 4.7.0 Authentication failed: ")
    assert server.messages == []


@pytest.mark.usefixtures("ada")
async def test_transport_is_tested_without_recipient(environment: Environment) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        row_id = environment.new_id()
        row = Transport(
            id=row_id,
            destination="example.com",
            next_hop=f"[127.0.0.1]:{server.port}",
            created_at=environment.now(),
        )
        async with environment.write_session() as session:
            session.add(row)
        result = await run_route_test(environment, OutboundSettings(), transport_id=row_id)
        async with environment.write_session() as session:
            stored_row = await session.get(Transport, row_id)
            assert stored_row is not None
            stored_row.username = "us"
            stored_row.secret = environment.secret_box.encrypt("secret", transport_context(row_id))
        result_without_tls = await run_route_test(
            environment, OutboundSettings(), transport_id=row_id
        )
    assert result.is_accepted
    assert result.log_lines[-4:] == ["> MAIL FROM:<>", "< 250 OK", "> RSET", "< 250 OK"]
    assert not result_without_tls.is_accepted
    assert "4.7.5 TLS handshake failed: STARTTLS not offered" in result_without_tls.log_lines[-1]
    assert server.logins == []


@pytest.mark.usefixtures("ada")
async def test_unknown_route_raises_not_found(environment: Environment) -> None:
    for relay_host, transport in ((1, None), (None, 1), (None, None)):
        with pytest.raises(NotFound):
            await run_route_test(
                environment, OutboundSettings(), relay_host_id=relay_host, transport_id=transport
            )
    local_result = await run_route_test(environment, OutboundSettings(), SENDER, "bob@example.org")
    assert (local_result.is_accepted, len(local_result.log_lines)) == (True, 1)


async def test_outbound_settings_come_from_options(environment: Environment) -> None:
    hop = SecretStr("smtp://us:secret@relay.example:2525")
    options = replace(
        environment.options, next_hop=hop, dns_resolver="127.0.0.1:5353", dnssec_trusted=True
    )
    settings = outbound_settings_from_options(replace(environment, options=options))
    assert settings.next_hop == parse_next_hop(hop.get_secret_value())
    assert settings.trusts_dnssec
    assert settings.make_resolver().port == 5353
    assert "secret" not in repr(settings)
