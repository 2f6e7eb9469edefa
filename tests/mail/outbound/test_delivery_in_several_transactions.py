"""Delivery of one message in several transactions: each recipient gets it once."""

import asyncio
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    load_inbox_rows,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)

RECIPIENTS = [NamedAddress(f"n{nth}@example.net") for nth in range(130)]
LARGE_CLAIMS = replace(WORKER_LIMITS, claim_size=200)


class AbortingProtocol(asyncio.Protocol):
    """A protocol that aborts each connection without a reply."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


@dataclass
class OneMessageServer(FakeSmtpServer):
    """A server that aborts a connection at its second message.

    With `stops_after_message` it aborts every new connection after the first message.
    """

    stops_after_message: bool = False

    async def handle_MAIL(  # noqa: N802
        self, server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if self.messages and getattr(server, "used", False):
            server.transport.abort()
        server.used = True
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    def make_session(self) -> Any:
        return (
            AbortingProtocol()
            if self.stops_after_message and self.messages
            else super().make_session()
        )


def received_recipients(*servers: FakeSmtpServer) -> list[str]:
    """Return the recipients of all received messages, sorted, with repetitions."""
    return sorted(
        recipient for server in servers for mail in server.messages for recipient in mail.to
    )


async def test_accepted_recipients_are_not_sent_to_next_mx(
    ada: GraphQLClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = OneMessageServer(stops_after_message=True), FakeSmtpServer()
    dns_names = FakeDnsServer(
        {
            ("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
            ("mx1.example.net", "A"): ["127.0.0.1"],
            ("mx2.example.net", "A"): ["127.0.0.2"],
        }
    )
    async with (
        run_smtp_server(first),
        run_smtp_server(second, "127.0.0.2", first.port),
        run_dns_server(dns_names),
        run_queue_worker(
            environment,
            OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=first.port),
            LARGE_CLAIMS,
        ),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada, *RECIPIENTS))
    assert {(row.state, row.attempts, row.lease) for row in rows.values()} == {
        (State.DELIVERED, 1, None)
    }
    assert received_recipients(first, second) == sorted(
        recipient.address for recipient in RECIPIENTS
    )
    assert [len(mail.to) for mail in (*first.messages, *second.messages)] == [100, 30]
    assert "Lease lost" not in caplog.text


async def test_only_unsent_recipients_are_deferred(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(OneMessageServer(stops_after_message=True)) as server,
        run_queue_worker(environment, relay_settings(server), LARGE_CLAIMS),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada, *RECIPIENTS))
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
        run_smtp_server(OneMessageServer()) as server,
        run_queue_worker(
            environment, relay_settings(server), replace(WORKER_LIMITS, claim_size=300)
        ),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada, *recipients))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert [len(mail.to) for mail in server.messages] == [100, 100, 50]
    assert server.session_count == 3


async def test_refusal_of_first_transaction_does_not_stop_the_rest(
    ada: GraphQLClient, environment: Environment
) -> None:
    replies = {f"n{nth}": "550 5.1.1 No" for nth in range(100)}
    async with (
        run_smtp_server(FakeSmtpServer(rcpt_replies=replies)) as server,
        run_queue_worker(environment, relay_settings(server), LARGE_CLAIMS),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada, *RECIPIENTS))
    states = [row.state for row in rows.values()]
    assert (states.count(State.BOUNCED), states.count(State.RELAYED)) == (100, 30)
    assert server.session_count == 1


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
class DsnOfferingServer(FakeSmtpServer):
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

    def make_session(self) -> SMTP:
        self.session_count += 1
        self.received_commands = self.received_commands or []
        smtp = DsnRejectingSmtp(self, hostname="there", **self.smtp_options)
        smtp.commands_without_dsn = self.commands_without_dsn
        return smtp

    def command_names(self) -> list[str]:
        """Return the received commands, with " DSN" appended if they had DSN parameters."""
        return [
            line.split(" ")[0] + (" DSN" if "ENVID=" in line or "ORCPT=" in line else "")
            for line in self.received_commands or []
        ]


async def test_transaction_is_repeated_without_rejected_dsn_parameters(
    ada: GraphQLClient, environment: Environment
) -> None:
    cases: list[tuple[tuple[str, ...], list[str]]] = [
        (("MAIL",), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        (("RCPT",), ["MAIL DSN", "RCPT DSN", "RCPT DSN", "MAIL", "RCPT", "RCPT"]),
        (("MAIL", "RCPT"), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        ((), ["MAIL DSN", "RCPT DSN", "RCPT DSN"]),
    ]
    for case in each_case(product(cases, (False, True))):
        with case as ((commands_without_dsn, expected), pipelining):
            dsn_server = DsnOfferingServer(
                commands_without_dsn=commands_without_dsn, pipelining=pipelining
            )
            async with (
                run_smtp_server(dsn_server) as server,
                run_queue_worker(environment, relay_settings(server)),
            ):
                rows = await wait_until_tried(environment, await queue_message(ada))
            assert {(row.state, row.attempts) for row in rows.values()} == {(State.RELAYED, 1)}
            recipients = ["carol@example.net", "dave@example.net"]
            assert [mail.to for mail in server.messages] == [recipients]
            assert dsn_server.session_count == 1
            commands = dsn_server.command_names()
            # Pipelined RCPT commands come before the reply.
            if pipelining and "MAIL" in commands_without_dsn:
                commands = [commands[0], *commands[3:]]
            assert commands == expected


async def test_recipient_refused_with_501_bounces_and_others_are_sent_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    replies = {"carol": "501 5.1.3 No such form"}
    async with (
        run_smtp_server(DsnOfferingServer(rcpt_replies=replies)) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        rows = await wait_until_tried(environment, await queue_message(ada))
    assert (rows["carol"].state, rows["carol"].last_code) == (State.BOUNCED, 501)
    assert rows["dave"].state is State.RELAYED
    assert [mail.to for mail in server.messages] == [["dave@example.net"]]


async def test_requested_dsn_is_written_if_server_rejects_parameters(
    ada: GraphQLClient, environment: Environment
) -> None:
    async def has_dsn() -> bool:
        return bool(await load_inbox_rows(ada))

    async with (
        run_smtp_server(DsnOfferingServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(environment, await queue_message(ada, request_dsn=True))
    assert not await has_dsn()
    async with (
        run_smtp_server(DsnOfferingServer(commands_without_dsn=("RCPT",))) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(environment, await queue_message(ada, request_dsn=True))
        await poll_until(has_dsn)
    assert len(await load_inbox_rows(ada)) == 1
