"""Mail that we hold for other servers, which are a mail server and a name server on loopback."""

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
from tests.conftest import Client, raw_message
from tests.support.mail_servers.queue_worker import State, inbox, ring, send, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening
from tests.support.mail_servers.smtp_client import connect
from tests.support.operations.domain_operations import ERRORS, UNLIMITED, done, made

ADDRESS = f"""mutation ($input: AddressCreateInput!) {{
  addressCreate(input: $input) {{ address {{ id }} {ERRORS} }} }}"""
HELD = "held.example"
OURS = "mx2.held.example"
pytestmark = pytest.mark.usefixtures("examined")


async def hold(world: Environment, root: Client, **flags: bool) -> None:
    """We are the second server of a domain."""
    world.apply_options(
        CommittedOptions(replace(world.options, hostname=OURS), world.options_position + 1)
    )
    await made(root, HELD, backupMx=True, **UNLIMITED, **flags)


async def address(root: Client, text: str, user: Client | None = None, **more: Any) -> None:
    """An address here."""
    whose = {"user": {"username": user.user.username}} if user else {}
    _, errors = await done(root, ADDRESS, address=text, **whose, **more)
    assert errors == []


@asynccontextmanager
async def primary(*, first: bool = True) -> AsyncIterator[tuple[Server, OutboundSettings]]:
    """The first server of the domain, and how it is found; without it we are the only one."""
    servers = [f"20 {OURS}."] + (["10 mx1.held.example."] if first else [])
    names = Names(
        {
            (HELD, "MX"): servers,
            ("second.example", "MX"): servers,
            ("mx1.held.example", "A"): ["127.0.0.1"],
            (OURS, "A"): ["127.0.0.1"],
        }
    )
    async with answering(names), listening(Server()) as there:
        yield there, OutboundSettings(make_resolver=names.resolver, mx_port=there.port)


async def arrive(world: Environment, folder: Path, raw: bytes, *to: str) -> str:
    """Mail comes by SMTP; the last reply."""
    listener = MxListener(world, folder / "spool", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    try:
        client = await connect(listener.port)
        await client.begin(*to)
        client.send(raw + b".\r\n")
        reply = await client.hear()
        await client.close()
    finally:
        await listener.close(1)
    return reply


async def queued(world: Environment) -> list[int]:
    asked = select(col(Submission.id)).order_by(col(Submission.id))
    return [row.id for row in await world.database.read(asked)]


async def takes(world: Environment, address: str) -> str:
    """What becomes of mail for an address."""
    try:
        taken = await recipient_routes.accept_recipient(world, address, "carol@example.net")
    except NotFound:
        return "refused"
    if taken.is_relayed_unchanged:
        return "goes on"
    return "stays" if taken.accounts else "elsewhere"


@pytest.mark.parametrize(
    ("flags", "becomes"),
    [
        ({}, ("goes on", "refused")),
        ({"relayAllRecipients": True}, ("goes on", "goes on")),
        ({"relayAllRecipients": True, "relayUnknownOnly": True}, ("stays", "goes on")),
    ],
)
async def test_what_goes_on_is_said_by_the_domain(
    flags: dict[str, bool], becomes: tuple[str, str], root: Client, ada: Client, world: Environment
) -> None:
    known, unknown = becomes
    await hold(world, root, **flags)
    await address(root, f"ada@{HELD}", ada)
    await address(root, f"off@{HELD}", ada, active=False)
    await address(root, f"info@{HELD}", targets=[ada.address])
    assert await takes(world, f"A.da+x@{HELD}") == known
    assert await takes(world, f"eve@{HELD}") == unknown
    assert await takes(world, f"off@{HELD}") == "refused"  # it is not unknown
    assert await takes(world, f"info@{HELD}") == "stays"  # to whom it is forwarded
    assert await takes(world, f"@{HELD}") == "refused"
    assert await takes(world, f"e\0ve@{HELD}") == "refused"
    assert await takes(world, "eve@example.org") == "refused"
    assert await takes(world, ada.address) == "stays"
    async with world.write_session() as session:
        this = update(Domain).where(col(Domain.name) == HELD).values(active=False)
        await session.exec(this)
    assert await takes(world, f"eve@{HELD}") == "refused"


async def test_it_goes_to_the_better_servers_as_it_came(
    root: Client, ada: Client, world: Environment, tmp_path: Path
) -> None:
    await hold(world, root, relayAllRecipients=True)
    raw = raw_message("Held")
    reply = await arrive(world, tmp_path, raw, f"eve@{HELD}", f"Bob@{HELD}", ada.address)
    assert reply.startswith("250")
    assert [row.subject for row in await inbox(ada)] == ["Held"]
    async with primary() as (there, route), working(world, route):
        for key in await queued(world):
            rows = await settled(world, key)
            assert {row.state for row in rows.values()} == {State.DELIVERED}
    assert sorted(to for mail in there.mails for to in mail.to) == [f"Bob@{HELD}", f"eve@{HELD}"]
    for mail in there.mails:
        assert mail.sender == "carol@example.net"  # no other is written for it
        assert mail.raw.endswith(raw)
        head = mail.raw.removesuffix(raw).lower()
        assert b"received: from" in head
        assert b"delivered-to" not in head
        assert b"arc-" not in head


async def test_users_here_write_to_those_who_are_there(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    flags = {"relayAllRecipients": True, "relayUnknownOnly": True}
    await hold(world, root, **flags)
    await address(root, f"bob@{HELD}", bob)
    key = await send(ada, NamedAddress(f"bob@{HELD}"), NamedAddress(f"eve@{HELD}"))
    async with primary() as (there, route), working(world, route):
        rows = await settled(world, key)
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(
        ("bob", "eve"), State.DELIVERED
    )
    assert (rows["bob"].mx, rows["eve"].mx) == (OURS, "mx1.held.example")
    assert [mail.to for mail in there.mails] == [[f"eve@{HELD}"]]
    assert [row.subject for row in await inbox(bob)] == ["Hello"]


async def test_it_waits_for_a_server_that_is_away_and_comes_back_where_there_is_none(
    root: Client, ada: Client, world: Environment
) -> None:
    await hold(world, root, relayAllRecipients=True)
    key = await send(ada, NamedAddress(f"eve@{HELD}"))
    async with primary() as (there, route):
        async with working(world, replace(route, mx_port=1)):
            rows = await settled(world, key)
        assert (rows["eve"].state, there.mails) == (State.DEFERRED, [])
        async with world.write_session() as session:
            await session.exec(update(QueueEntry).values(next_at=world.now(), last_code=None))
        async with working(world, route):
            ring(world)
            rows = await settled(world, key)
        assert rows["eve"].state is State.DELIVERED
    key = await send(ada, NamedAddress(f"eve@{HELD}"))
    async with primary(first=False) as (there, route), working(world, route):
        rows = await settled(world, key)
    assert (rows["eve"].state, rows["eve"].last_code) == (State.BOUNCED, 550)
    assert "come back to us" in rows["eve"].last_response
    assert there.mails == []


async def test_what_goes_in_circles_is_refused(
    root: Client, ada: Client, world: Environment
) -> None:
    await hold(world, root, relayAllRecipients=True)
    household, hop = (
        LocalBackend(world),
        b"Received: from a by b; Tue, 6 Jan 2026 10:00:00 +0000\r\n",
    )
    taken = await household.accept_recipient(f"eve@{HELD}", "carol@example.net")
    raw = raw_message("Round")
    for many, wanted in ((29, False), (30, True)):
        (outcome,) = await household.deliver(hop * many + raw, [taken], "carol@example.net")
        assert isinstance(outcome, recipient_routes.MailLoop) is wanted
    assert len(await queued(world)) == 1
    assert await inbox(ada) == []


async def test_second_names_targets_and_rewrites_lead_there(
    root: Client, world: Environment
) -> None:
    await hold(world, root, relayAllRecipients=True)
    alias = """mutation { domainAliasCreate(input: {
      alias: "second.example", domain: "held.example"}) { errors { message } } }"""
    assert (await root(alias))["domainAliasCreate"]["errors"] == []
    rewrite = """mutation { recipientRewriteCreate(input: {
      from: "old@example.org", to: "new@held.example"}) { errors { message } } }"""
    assert (await root(rewrite))["recipientRewriteCreate"]["errors"] == []
    await address(root, "list@example.org", targets=[f"far@{HELD}"])
    household = LocalBackend(world)
    for to in ("eve@second.example", "old@example.org", "list@example.org"):
        taken = await household.accept_recipient(to, "carol@example.net")
        raw = raw_message(to)
        (outcome,) = await household.deliver(raw, [taken], "carol@example.net")
        assert not isinstance(outcome, BaseException)
    async with primary() as (there, route), working(world, route):
        for key in await queued(world):
            await settled(world, key)
    assert sorted(to for mail in there.mails for to in mail.to) == [
        "eve@second.example",
        f"far@{HELD}",
        f"new@{HELD}",
    ]
    senders = {mail.to[0]: mail.sender for mail in there.mails}
    assert senders["eve@second.example"] == senders[f"new@{HELD}"] == "carol@example.net"
    assert senders[f"far@{HELD}"].startswith("SRS0=")  # that is forwarded, in our name


async def test_a_trace_says_so(root: Client, ada: Client, world: Environment) -> None:
    await hold(world, root, relayAllRecipients=True, relayUnknownOnly=True)
    await address(root, f"ada@{HELD}", ada)
    document = "query ($a: String!) { addressTrace(address: $a) { stage output } }"

    async def stages(name: str) -> list[Any]:
        found = await root(document, a=f"{name}@{HELD}")
        return [step["stage"] for step in found["addressTrace"]]

    assert await stages("eve") == ["BACKUP_MX"]
    assert await stages("ada") == ["ADDRESS", "ACCOUNT"]
