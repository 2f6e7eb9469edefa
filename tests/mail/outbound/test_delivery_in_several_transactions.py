"""Delivery of one message in several transactions: each recipient gets it once."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    PACE,
    State,
    inbox,
    relay,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening

RECIPIENTS = [NamedAddress(f"n{nth}@example.net") for nth in range(130)]
LARGE_CLAIMS = replace(PACE, claim_size=200)


class AbortingProtocol(asyncio.Protocol):
    """A protocol that aborts each connection without a reply."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


@dataclass
class OneMessageServer(Server):
    """A server that aborts a connection at its second message.

    With `stops_after_message` it aborts every new connection after the first message.
    """

    stops_after_message: bool = False

    async def handle_MAIL(  # noqa: N802
        self, server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if self.mails and getattr(server, "used", False):
            server.transport.abort()
        server.used = True
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    def session(self) -> Any:
        return AbortingProtocol() if self.stops_after_message and self.mails else super().session()


def received_recipients(*servers: Server) -> list[str]:
    """Return the recipients of all received messages, sorted, with repetitions."""
    return sorted(recipient for server in servers for mail in server.mails for recipient in mail.to)


async def test_accepted_recipients_are_not_sent_to_next_mx(
    ada: GraphQLClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = OneMessageServer(stops_after_message=True), Server()
    dns_names = Names(
        {
            ("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
            ("mx1.example.net", "A"): ["127.0.0.1"],
            ("mx2.example.net", "A"): ["127.0.0.2"],
        }
    )
    async with (
        listening(first),
        listening(second, "127.0.0.2", first.port),
        answering(dns_names),
        working(
            environment,
            OutboundSettings(make_resolver=dns_names.resolver, mx_port=first.port),
            LARGE_CLAIMS,
        ),
    ):
        rows = await settled(environment, await send(ada, *RECIPIENTS))
    assert {(row.state, row.attempts, row.lease) for row in rows.values()} == {
        (State.DELIVERED, 1, None)
    }
    assert received_recipients(first, second) == sorted(
        recipient.address for recipient in RECIPIENTS
    )
    assert [len(mail.to) for mail in (*first.mails, *second.mails)] == [100, 30]
    assert "a lease was lost" not in caplog.text


async def test_only_unsent_recipients_are_deferred(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        listening(OneMessageServer(stops_after_message=True)) as server,
        working(environment, relay(server), LARGE_CLAIMS),
    ):
        rows = await settled(environment, await send(ada, *RECIPIENTS))
    states = [row.state for row in rows.values()]
    assert (states.count(State.RELAYED), states.count(State.DEFERRED)) == (100, 30)
    assert received_recipients(server) == sorted(
        row.recipient for row in rows.values() if row.state is State.RELAYED
    )


async def test_connection_is_reopened_after_each_transaction(
    ada: GraphQLClient, environment: Environment
) -> None:
    recipients = [NamedAddress(f"n{nth}@example.net") for nth in range(250)]
    async with (
        listening(OneMessageServer()) as server,
        working(environment, relay(server), replace(PACE, claim_size=300)),
    ):
        rows = await settled(environment, await send(ada, *recipients))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert [len(mail.to) for mail in server.mails] == [100, 100, 50]
    assert server.sessions == 3


async def test_refusal_of_first_transaction_does_not_stop_the_rest(
    ada: GraphQLClient, environment: Environment
) -> None:
    replies = {f"n{nth}": "550 5.1.1 No" for nth in range(100)}
    async with (
        listening(Server(replies=replies)) as server,
        working(environment, relay(server), LARGE_CLAIMS),
    ):
        rows = await settled(environment, await send(ada, *RECIPIENTS))
    states = [row.state for row in rows.values()]
    assert (states.count(State.BOUNCED), states.count(State.RELAYED)) == (100, 30)
    assert server.sessions == 1


class DsnRejectingSmtp(SMTP):
    """An SMTP session that rejects DSN parameters of `commands_without_dsn`."""

    commands_without_dsn: tuple[str, ...] = ()

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        self.event_handler.received_commands.append(f"MAIL {arg}")
        await super().smtp_MAIL(
            arg if "MAIL" in self.commands_without_dsn else without_dsn_parameters(arg)
        )

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        self.event_handler.received_commands.append(f"RCPT {arg}")
        await super().smtp_RCPT(
            arg if "RCPT" in self.commands_without_dsn else without_dsn_parameters(arg)
        )


def without_dsn_parameters(arg: str | None) -> str | None:
    """Return the argument of a command without its DSN parameters."""
    parts = (arg or "").split(" ")
    return " ".join(
        part for part in parts if not part.startswith(("RET=", "ENVID=", "NOTIFY=", "ORCPT="))
    )


@dataclass
class DsnOfferingServer(Server):
    """A server that offers DSN but rejects DSN parameters of `commands_without_dsn`."""

    commands_without_dsn: tuple[str, ...] = ()
    pipelining: bool = False
    received_commands: list[str] | None = None

    async def handle_EHLO(  # noqa: N802
        self, _server: Any, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        extensions = ["250-DSN", *(["250-PIPELINING"] if self.pipelining else [])]
        return [responses[0], *extensions, *responses[1:]]

    def session(self) -> SMTP:
        self.sessions += 1
        self.received_commands = self.received_commands or []
        smtp = DsnRejectingSmtp(self, hostname="there", **self.features)
        smtp.commands_without_dsn = self.commands_without_dsn
        return smtp

    def command_names(self) -> list[str]:
        """Return the received commands, with " DSN" appended if they had DSN parameters."""
        return [
            line.split(" ")[0] + (" DSN" if "ENVID=" in line or "ORCPT=" in line else "")
            for line in self.received_commands or []
        ]


@pytest.mark.parametrize("pipelining", [False, True], ids=["in turn", "together"])
@pytest.mark.parametrize(
    ("commands_without_dsn", "expected"),
    [
        (("MAIL",), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        (("RCPT",), ["MAIL DSN", "RCPT DSN", "RCPT DSN", "MAIL", "RCPT", "RCPT"]),
        (("MAIL", "RCPT"), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        ((), ["MAIL DSN", "RCPT DSN", "RCPT DSN"]),
    ],
)
async def test_transaction_is_repeated_without_rejected_dsn_parameters(
    ada: GraphQLClient,
    environment: Environment,
    *,
    commands_without_dsn: tuple[str, ...],
    expected: list[str],
    pipelining: bool,
) -> None:
    async with (
        listening(
            DsnOfferingServer(commands_without_dsn=commands_without_dsn, pipelining=pipelining)
        ) as server,
        working(environment, relay(server)),
    ):
        assert isinstance(server, DsnOfferingServer)
        rows = await settled(environment, await send(ada))
    assert {(row.state, row.attempts) for row in rows.values()} == {(State.RELAYED, 1)}
    assert [mail.to for mail in server.mails] == [["carol@example.net", "dave@example.net"]]
    assert server.sessions == 1
    commands = server.command_names()
    # Pipelined RCPT commands come before the reply.
    if pipelining and "MAIL" in commands_without_dsn:
        commands = [commands[0], *commands[3:]]
    assert commands == expected


async def test_recipient_refused_with_501_bounces_and_others_are_sent_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    replies = {"carol": "501 5.1.3 No such form"}
    async with (
        listening(DsnOfferingServer(replies=replies)) as server,
        working(environment, relay(server)),
    ):
        rows = await settled(environment, await send(ada))
    assert (rows["carol"].state, rows["carol"].last_code) == (State.BOUNCED, 501)
    assert rows["dave"].state is State.RELAYED
    assert [mail.to for mail in server.mails] == [["dave@example.net"]]


@pytest.mark.parametrize("commands_without_dsn", [(), ("RCPT",)])
async def test_requested_dsn_is_written_if_server_rejects_parameters(
    ada: GraphQLClient, environment: Environment, commands_without_dsn: tuple[str, ...]
) -> None:
    async with (
        listening(DsnOfferingServer(commands_without_dsn=commands_without_dsn)) as server,
        working(environment, relay(server)),
    ):
        await settled(environment, await send(ada, request_dsn=True))

        async def has_dsn() -> bool:
            return bool(await inbox(ada)) or not commands_without_dsn

        await until(has_dsn)
    assert len(await inbox(ada)) == len(commands_without_dsn)
