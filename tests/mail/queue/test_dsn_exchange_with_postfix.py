"""DSNs that Postfix sends for our messages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.servers.ports import free_port
from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, client_context
from tests.support.mail_servers.queue_worker import (
    State,
    load_inbox_rows,
    load_queue_entries,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.servers.postfix_server import run_postfix_server
from tests.support.time_limits import HANG_SECONDS


@pytest.fixture
async def mx_listener(environment: Environment, tmp_path: Path) -> AsyncIterator[MxListener]:
    listener = MxListener(environment, tmp_path / "spool", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


async def test_dsns_of_postfix_are_matched_to_submission(
    ada: GraphQLClient, environment: Environment, mx_listener: MxListener
) -> None:
    replies = {"gone": "550 5.1.1 Nobody", "slow": "450 4.2.1 Busy"}
    recipients = [NamedAddress(f"{name}@far.example") for name in ("gone", "slow", "good")]
    async with run_smtp_server(FakeSmtpServer(replies)) as far_server:
        ports = {"far.example": far_server.port, "example.org": mx_listener.port}
        routes = {name: f"smtp:[127.0.0.1]:{port}" for name, port in ports.items()}
        postfix_settings = {"relay_domains": "far.example example.org", "delay_warning_time": "1s"}
        with run_postfix_server(
            free_port(), routes=routes, extra_settings=postfix_settings
        ) as postfix_server:
            request = SendRequest(to=recipients, subject="Hi", text="Hi", request_dsn=True)
            async with run_queue_worker(environment, outbound_settings(postfix_server.port)):
                payload = await submission_create.compose_and_queue_message(
                    client_context(ada), request
                )
                assert payload.submission is not None
                key = int(payload.submission.id)
                async with asyncio.timeout(HANG_SECONDS):
                    while not await has_all_reports(environment, key):  # noqa: ASYNC110 - rows have no event
                        await asyncio.sleep(0.1)
    rows = await load_queue_entries(environment, key)
    assert {name: (row.state, row.last_code, row.last_response) for name, row in rows.items()} == {
        "gone": (State.BOUNCED, 550, "5.1.1 Nobody"),
        "slow": (State.RELAYED, 450, "4.2.1 Busy"),
        "good": (State.RELAYED, 250, "2.0.0 Taken"),
    }
    assert {(row.dsn_reporter, row.dsn_verified) for row in rows.values()} == {
        ("postfix.example.net", True)
    }
    assert sorted(message.subject for message in await load_inbox_rows(ada)) == [
        "Delayed Mail (still being retried)",
        "Successful Mail Delivery Report",
        "Undelivered Mail Returned to Sender",
    ]


def outbound_settings(port: int) -> OutboundSettings:
    return OutboundSettings(parse_next_hop(f"smtp://127.0.0.1:{port}?tls=never"))


async def has_all_reports(environment: Environment, key: int) -> bool:
    """True if a DSN has arrived for each recipient."""
    query = select(col(QueueEntry.reported_at)).where(col(QueueEntry.submission_id) == key)
    rows = await environment.database.read(query)
    return all(row.reported_at is not None for row in rows)
