"""Sessions with the next hop: TLS, sign-in, SMTPUTF8 and connections that fail."""

import socket
from dataclasses import replace
from typing import Any

import pytest

from mail.mime.header_encoding import NamedAddress
from mail.outbound.smtp_connect import connect_to_next_hop
from mail.outbound.tls_client import TlsContexts
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    load_inbox_rows,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeSmtpServer,
    run_smtp_server,
    server_tls_context,
    trusting_tls_context,
)


@pytest.mark.parametrize(
    ("features", "recipient", "status_code"),
    [
        ({}, "jörg@example.net", "5.6.7"),
        ({"data_size_limit": 100}, "carol@example.net", "5.3.4"),
    ],
)
async def test_message_that_server_does_not_support_bounces(
    ada: GraphQLClient,
    environment: Environment,
    features: dict[str, Any],
    recipient: str,
    status_code: str,
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer(smtp_options=features)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        (row,) = (
            await wait_until_tried(environment, await queue_message(ada, NamedAddress(recipient)))
        ).values()
    assert (row.state, row.last_response[:5]) == (State.BOUNCED, status_code)
    assert server.messages == []
    assert len(await load_inbox_rows(ada)) == 1


async def test_non_ascii_address_is_sent_with_smtputf8(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(
            environment, await queue_message(ada, NamedAddress("jörg@bücher.example"))
        )
    (mail,) = server.messages
    assert mail.to == ["jörg@xn--bcher-kva.example"]
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(mail.mail_options)
    assert any(option.startswith("SIZE=") for option in mail.mail_options)


@pytest.mark.parametrize("query", ["?tls=required", "?tls=never", ""])
async def test_tls_follows_next_hop_parameter(
    ada: GraphQLClient, environment: Environment, query: str
) -> None:
    server = FakeSmtpServer(smtp_options={"tls_context": server_tls_context()})
    async with (
        run_smtp_server(server) as running_server,
        run_queue_worker(environment, relay_settings(running_server, query)),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert running_server.messages[0].used_tls is (query != "?tls=never")


async def test_required_tls_without_starttls_defers(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server, "?tls=required")),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert rows["carol"].last_response.startswith("4.7.5")
    assert server.messages == []


async def test_required_tls_with_untrusted_certificate_defers(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = FakeSmtpServer(smtp_options={"tls_context": server_tls_context()})
    async with run_smtp_server(server) as running_server:
        settings = OutboundSettings(
            parse_next_hop(f"smtp://127.0.0.1:{running_server.port}?tls=required")
        )
        async with run_queue_worker(environment, settings):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert running_server.messages == []


@pytest.mark.parametrize(
    ("password", "expected_state", "response"),
    [
        ("secret", State.RELAYED, "2.0.0 Taken"),
        ("wrong", State.DEFERRED, "4.7.0 Authentication failed: "),
    ],
)
async def test_sign_in_to_next_hop(
    ada: GraphQLClient,
    environment: Environment,
    password: str,
    expected_state: DeliveryState,
    response: str,
) -> None:
    server = FakeSmtpServer()
    server.smtp_options = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with run_smtp_server(server, tls=True) as running_server:
        hop = parse_next_hop(f"smtps://us%40here:{password}@127.0.0.1:{running_server.port}")
        async with run_queue_worker(
            environment, OutboundSettings(hop, trusted_context=trusting_tls_context())
        ):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {expected_state}
    assert rows["carol"].last_response.startswith(response)
    assert running_server.logins[0] == "us@here"


async def test_password_is_not_sent_without_tls(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = FakeSmtpServer()
    server.smtp_options = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with run_smtp_server(server) as running_server:
        hop = parse_next_hop(f"smtp://us:secret@127.0.0.1:{running_server.port}")
        async with run_queue_worker(
            environment, OutboundSettings(hop, trusted_context=trusting_tls_context())
        ):
            rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert (running_server.logins, running_server.messages) == ([], [])


async def test_unreachable_next_hop_defers(ada: GraphQLClient, environment: Environment) -> None:
    async with run_queue_worker(environment, OutboundSettings(parse_next_hop("127.0.0.1:1"))):
        rows = await wait_until_tried(environment, await queue_message(ada))
    assert {row.state for row in rows.values()} == {State.DEFERRED}
    assert await load_inbox_rows(ada) == []


@pytest.mark.parametrize("url", ["smtp://mx1.example.net:{}", "smtps://mx1.example.net:{}"])
async def test_connections_send_without_delay(url: str) -> None:
    """With Nagle's algorithm, the last bytes of a message wait for an acknowledgement."""
    is_wrapped = url.startswith("smtps")
    async with run_smtp_server(FakeSmtpServer(), tls=is_wrapped) as server:
        hop = replace(parse_next_hop(url.format(server.port)), address="127.0.0.1")
        connection = await connect_to_next_hop(
            hop,
            WORKER_LIMITS,
            local_hostname="mx.example.org",
            tls_contexts=TlsContexts(trusting_tls_context()),
        )
        try:
            sent_by = connection.smtp.get_transport_info("socket")
            assert sent_by.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            connection.abort()
