"""Delivery to hosts whose greeting says that they accept no mail (RFC 5321, section 3.1)."""

from collections.abc import Sequence
from typing import Any

import pytest

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.misbehaving_smtp_server import MisbehavingSmtpServer
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server

CAROL = NamedAddress("carol@example.net")
NO_SERVICE = "554 5.3.2 No SMTP service here"


async def send_to_mx_hosts(
    client: GraphQLClient, server: MisbehavingSmtpServer, mx_records: Sequence[str]
) -> Any:
    """Send a message to a domain with these MX records, and return its queue entry."""
    dns_names = FakeDnsServer(
        {
            ("example.net", "MX"): list(mx_records),
            ("mx.example.net", "A"): ["127.0.0.1"],
            ("other.example.net", "A"): ["127.0.0.1"],
            ("dead.example.net", "A"): ["127.0.0.2"],
        }
    )
    async with server.run_server(), run_dns_server(dns_names):
        route = OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=server.port)
        async with run_queue_worker(client.environment, route):
            key = await queue_message(client, CAROL)
            return (await wait_until_tried(client.environment, key))["carol"]


@pytest.mark.parametrize(
    ("greeting", "state"),
    [
        (NO_SERVICE, State.BOUNCED),
        ("521 5.3.2 Host accepts no mail", State.BOUNCED),
        ("550 5.7.1 Not you", State.DEFERRED),
        ("421 4.3.2 Later", State.DEFERRED),
    ],
)
async def test_greeting_of_the_only_mx_host_decides(
    ada: GraphQLClient, greeting: str, state: State
) -> None:
    server = MisbehavingSmtpServer("GREETING", greeting)
    row = await send_to_mx_hosts(ada, server, ["10 mx.example.net."])
    assert (row.state, f"{row.last_code} {row.last_response}") == (state, greeting)
    assert row.mx == "mx.example.net"
    assert server.connection_count == 1


async def test_message_bounces_if_no_mx_host_accepts_mail(ada: GraphQLClient) -> None:
    server = MisbehavingSmtpServer("GREETING", NO_SERVICE)
    row = await send_to_mx_hosts(ada, server, ["10 mx.example.net.", "20 other.example.net."])
    assert row.state is State.BOUNCED
    assert server.connection_count == 2


@pytest.mark.parametrize("preference_of_dead_host", [5, 20])
async def test_unreachable_mx_host_is_tried_again(
    ada: GraphQLClient, preference_of_dead_host: int
) -> None:
    server = MisbehavingSmtpServer("GREETING", NO_SERVICE)
    records = ["10 mx.example.net.", f"{preference_of_dead_host} dead.example.net."]
    assert (await send_to_mx_hosts(ada, server, records)).state is State.DEFERRED


async def test_next_mx_host_is_tried_after_a_refusing_greeting(ada: GraphQLClient) -> None:
    server = MisbehavingSmtpServer("GREETING", NO_SERVICE, fault_count=1)
    row = await send_to_mx_hosts(ada, server, ["10 mx.example.net.", "20 other.example.net."])
    assert (row.state, row.mx) == (State.DELIVERED, "other.example.net")


async def test_refusing_greeting_of_the_relay_is_temporary(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer("GREETING", NO_SERVICE)
    async with server.run_server() as route, run_queue_worker(environment, route):
        row = (await wait_until_tried(environment, await queue_message(ada, CAROL)))["carol"]
    assert row.state is State.DEFERRED
