"""Backup MX: messages of a domain are accepted and relayed to its primary MX host."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.delivery.listener_backend import LocalBackend
from mail.mime.header_encoding import NamedAddress
from mail.recipients import recipient_routes
from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from models.domains.tables import Domain
from models.errors import NotFound
from models.queue.tables import QueueEntry
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, raw_message
from tests.support.mail_servers.queue_worker import (
    State,
    load_inbox_rows,
    queue_message,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)
from tests.support.mail_servers.smtp_client import connect_smtp
from tests.support.operations.domain_operations import (
    ERRORS,
    NO_DOMAIN_LIMITS,
    create_domain,
    run_mutation,
)

ADDRESS_CREATE = f"""mutation ($input: AddressCreateInput!) {{
  addressCreate(input: $input) {{ address {{ id }} {ERRORS} }} }}"""
DOMAIN = "held.example"
HOSTNAME = "mx2.held.example"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def set_up_backup_mx(environment: Environment, root: GraphQLClient, **flags: bool) -> None:
    """Make this server the backup MX of a domain."""
    environment.use_options_unless_outdated(
        CommittedOptions(
            replace(environment.options, hostname=HOSTNAME), environment.options_position + 1
        )
    )
    await create_domain(root, DOMAIN, backupMx=True, **NO_DOMAIN_LIMITS, **flags)


async def create_address(
    root: GraphQLClient, text: str, user: GraphQLClient | None = None, **fields: Any
) -> None:
    """Create an address of a user or with targets."""
    owner = {"user": {"username": user.user.username}} if user else {}
    _, errors = await run_mutation(root, ADDRESS_CREATE, address=text, **owner, **fields)
    assert errors == []


@asynccontextmanager
async def running_primary_mx(
    *, in_mx_record: bool = True
) -> AsyncIterator[tuple[FakeSmtpServer, OutboundSettings]]:
    """Run the primary MX host and a name server, and yield the server and outbound settings.

    Without `in_mx_record` this server is the only MX host of the domain.
    """
    servers = [f"20 {HOSTNAME}."] + (["10 mx1.held.example."] if in_mx_record else [])
    dns_names = FakeDnsServer(
        {
            (DOMAIN, "MX"): servers,
            ("second.example", "MX"): servers,
            ("mx1.held.example", "A"): ["127.0.0.1"],
            (HOSTNAME, "A"): ["127.0.0.1"],
        }
    )
    async with run_dns_server(dns_names), run_smtp_server(FakeSmtpServer()) as server:
        yield server, OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=server.port)


async def send_to_mx(environment: Environment, folder: Path, raw: bytes, *recipients: str) -> str:
    """Send a message to the MX listener and return the last reply."""
    listener = MxListener(environment, folder / "spool", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    try:
        client = await connect_smtp(listener.port)
        await client.start_data(*recipients)
        client.send_bytes(raw + b".\r\n")
        reply = await client.read_reply()
        await client.close()
    finally:
        await listener.close(1)
    return reply


async def queued_submission_ids(environment: Environment) -> list[int]:
    query = select(col(Submission.id)).order_by(col(Submission.id))
    return [row.id for row in await environment.database.read(query)]


async def handling(environment: Environment, recipient: str) -> str:
    """Return how mail for an address is handled."""
    try:
        accepted = await recipient_routes.accept_recipient(
            environment, recipient, "carol@example.net"
        )
    except NotFound:
        return "refused"
    if accepted.is_relayed_unchanged:
        return "goes on"
    return "stays" if accepted.accounts else "elsewhere"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ("goes on", "refused")),
        ({"relayAllRecipients": True}, ("goes on", "goes on")),
        ({"relayAllRecipients": True, "relayUnknownOnly": True}, ("stays", "goes on")),
    ],
)
async def test_relayed_addresses_depend_on_domain_settings(
    flags: dict[str, bool],
    expected: tuple[str, str],
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
) -> None:
    known, unknown = expected
    await set_up_backup_mx(environment, root, **flags)
    await create_address(root, f"ada@{DOMAIN}", ada)
    await create_address(root, f"off@{DOMAIN}", ada, active=False)
    await create_address(root, f"info@{DOMAIN}", forwardTo=[ada.address])
    assert await handling(environment, f"A.da+x@{DOMAIN}") == known
    assert await handling(environment, f"eve@{DOMAIN}") == unknown
    # a known address that is disabled
    assert await handling(environment, f"off@{DOMAIN}") == "refused"
    assert await handling(environment, f"info@{DOMAIN}") == "stays"  # for the target of the address
    assert await handling(environment, f"@{DOMAIN}") == "refused"
    assert await handling(environment, f"e\0ve@{DOMAIN}") == "refused"
    assert await handling(environment, "eve@example.org") == "refused"
    assert await handling(environment, ada.address) == "stays"
    async with environment.write_session() as session:
        statement = update(Domain).where(col(Domain.name) == DOMAIN).values(active=False)
        await session.exec(statement)
    assert await handling(environment, f"eve@{DOMAIN}") == "refused"


async def test_message_is_relayed_unchanged_to_primary_mx(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await set_up_backup_mx(environment, root, relayAllRecipients=True)
    raw = raw_message("Held")
    reply = await send_to_mx(
        environment, tmp_path, raw, f"eve@{DOMAIN}", f"Bob@{DOMAIN}", ada.address
    )
    assert reply.startswith("250")
    assert [row.subject for row in await load_inbox_rows(ada)] == ["Held"]
    async with running_primary_mx() as (server, settings), run_queue_worker(environment, settings):
        for key in await queued_submission_ids(environment):
            rows = await wait_until_tried(environment, key)
            assert {row.state for row in rows.values()} == {State.DELIVERED}
    assert sorted(recipient for mail in server.messages for recipient in mail.to) == [
        f"Bob@{DOMAIN}",
        f"eve@{DOMAIN}",
    ]
    for mail in server.messages:
        assert mail.sender == "carol@example.net"  # relaying does not rewrite the sender
        assert mail.raw.endswith(raw)
        added_header = mail.raw.removesuffix(raw).lower()
        assert b"received: from" in added_header
        assert b"delivered-to" not in added_header
        assert b"arc-" not in added_header


async def test_submission_is_delivered_locally_or_to_primary_mx(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    flags = {"relayAllRecipients": True, "relayUnknownOnly": True}
    await set_up_backup_mx(environment, root, **flags)
    await create_address(root, f"bob@{DOMAIN}", bob)
    key = await queue_message(ada, NamedAddress(f"bob@{DOMAIN}"), NamedAddress(f"eve@{DOMAIN}"))
    async with running_primary_mx() as (server, settings), run_queue_worker(environment, settings):
        rows = await wait_until_tried(environment, key)
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(
        ("bob", "eve"), State.DELIVERED
    )
    assert (rows["bob"].mx, rows["eve"].mx) == (HOSTNAME, "mx1.held.example")
    assert [mail.to for mail in server.messages] == [[f"eve@{DOMAIN}"]]
    assert [row.subject for row in await load_inbox_rows(bob)] == ["Hello"]


async def test_unreachable_primary_mx_defers_and_missing_one_bounces(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await set_up_backup_mx(environment, root, relayAllRecipients=True)
    key = await queue_message(ada, NamedAddress(f"eve@{DOMAIN}"))
    async with running_primary_mx() as (server, settings):
        async with run_queue_worker(environment, replace(settings, mx_port=1)):
            rows = await wait_until_tried(environment, key)
        assert (rows["eve"].state, server.messages) == (State.DEFERRED, [])
        async with environment.write_session() as session:
            await session.exec(update(QueueEntry).values(next_at=environment.now(), last_code=None))
        async with run_queue_worker(environment, settings):
            wake_queue_worker(environment)
            rows = await wait_until_tried(environment, key)
        assert rows["eve"].state is State.DELIVERED
    key = await queue_message(ada, NamedAddress(f"eve@{DOMAIN}"))
    async with (
        running_primary_mx(in_mx_record=False) as (server, settings),
        run_queue_worker(environment, settings),
    ):
        rows = await wait_until_tried(environment, key)
    assert (rows["eve"].state, rows["eve"].last_code) == (State.BOUNCED, 550)
    assert "loops back to this server" in rows["eve"].last_response
    assert server.messages == []


async def test_mail_loop_is_refused(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await set_up_backup_mx(environment, root, relayAllRecipients=True)
    backend = LocalBackend(environment)
    received_field = b"Received: from a by b; Tue, 6 Jan 2026 10:00:00 +0000\r\n"
    recipient = await backend.accept_recipient(f"eve@{DOMAIN}", "carol@example.net")
    raw = raw_message("Round")
    for count, expected in ((29, False), (30, True)):
        (result,) = await backend.deliver(
            received_field * count + raw, [recipient], "carol@example.net"
        )
        assert isinstance(result, recipient_routes.MailLoop) is expected
    assert len(await queued_submission_ids(environment)) == 1
    assert await load_inbox_rows(ada) == []


async def test_alias_forward_and_rewrite_lead_to_primary_mx(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_up_backup_mx(environment, root, relayAllRecipients=True)
    alias = """mutation { aliasDomainCreate(input: {
      alias: "second.example", domain: {name: "held.example"}}) { errors { message } } }"""
    assert (await root(alias))["aliasDomainCreate"]["errors"] == []
    rewrite = """mutation { recipientRewriteCreate(input: {
      from: "old@example.org", to: "new@held.example"}) { errors { message } } }"""
    assert (await root(rewrite))["recipientRewriteCreate"]["errors"] == []
    await create_address(root, "list@example.org", forwardTo=[f"far@{DOMAIN}"])
    backend = LocalBackend(environment)
    for recipient in ("eve@second.example", "old@example.org", "list@example.org"):
        accepted = await backend.accept_recipient(recipient, "carol@example.net")
        raw = raw_message(recipient)
        (result,) = await backend.deliver(raw, [accepted], "carol@example.net")
        assert not isinstance(result, BaseException)
    async with running_primary_mx() as (server, settings), run_queue_worker(environment, settings):
        for key in await queued_submission_ids(environment):
            await wait_until_tried(environment, key)
    assert sorted(recipient for mail in server.messages for recipient in mail.to) == [
        "eve@second.example",
        f"far@{DOMAIN}",
        f"new@{DOMAIN}",
    ]
    senders = {mail.to[0]: mail.sender for mail in server.messages}
    assert senders["eve@second.example"] == senders[f"new@{DOMAIN}"] == "carol@example.net"
    assert senders[f"far@{DOMAIN}"].startswith("SRS0=")  # forwarding rewrites the sender


async def test_address_trace_shows_backup_mx(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await set_up_backup_mx(environment, root, relayAllRecipients=True, relayUnknownOnly=True)
    await create_address(root, f"ada@{DOMAIN}", ada)
    document = """query ($a: String!) {
      addressTrace(address: $a) { stage output record { __typename id } } }"""

    async def stages(name: str) -> list[Any]:
        result = await root(document, a=f"{name}@{DOMAIN}")
        records = {step["stage"]: step["record"] for step in result["addressTrace"]}
        assert records.get("BACKUP_MX", {"__typename": "Domain"})["__typename"] == "Domain"
        return [*records]

    assert await stages("eve") == ["BACKUP_MX"]
    assert await stages("ada") == ["ADDRESS", "USER"]
