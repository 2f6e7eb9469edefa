"""What senders ask for (RFC 3461) is kept while a message is held, and told when it is let in."""

from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from mail.delivery import pipeline, quarantine
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.dsn_parameters import ALL_REPORTS
from mail.recipients import address_resolution
from models.runtime.environment import Environment
from tests.conftest import Client, raw_message
from tests.support.accounts.user_operations import change
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import inbox
from tests.support.operations.domain_operations import done
from tests.support.operations.filter_operations import made
from tests.support.operations.quarantine_operations import RELEASE, WHY, held, set_options

SPAM = b"X-Spam-Flag: YES\r\n" + raw_message("Offer")
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
def client(neighbour: Neighbour, world: Environment) -> Neighbour:
    """A neighbour whose filter is believed; what is spam is held."""
    set_options(world, spam_quarantine=1)
    return neighbour


async def hand_in(client: Neighbour, mail: str, rcpt: str, sender: str = DSN_SENDER) -> None:
    assert (await client.say(f"MAIL FROM:<{sender}> {mail}".rstrip())).startswith("250")
    assert (await client.say(f"RCPT TO:{rcpt}")).startswith("250")
    await client.say("DATA")
    assert (await client.say(SPAM.decode() + "\r\n.")).startswith("250")


async def release(ada: Client) -> None:
    items = [global_ids.encode("QuarantineItem", item.id) for item in await held(ada.world)]
    assert items
    assert (await done(ada, RELEASE, ids=items))[1] == []


async def test_it_is_told_that_it_has_come_when_it_is_let_in(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    rcpt = f"<{ada.address}> {NOTIFY_ALL} ORCPT=rfc822;first@example.com"
    await hand_in(client, "ENVID=No+2B1 RET=HDRS", rcpt)
    assert (await queued_dsn_requests(world), await inbox(ada)) == ([], [])
    await release(ada)
    assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]
    about, (row,), subject = await only_queued_dsn(world)
    assert subject == "Your message was delivered"
    assert about["Original-Envelope-Id"] == "No+1"
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == (f"rfc822; {ada.address}", "delivered")
    assert len(await inbox(ada)) == 1


@pytest.mark.parametrize(
    ("sender", "wish"),
    [
        (DSN_SENDER, ""),
        (DSN_SENDER, "NOTIFY=FAILURE"),
        (DSN_SENDER, "NOTIFY=NEVER"),
        ("", NOTIFY_ALL),
    ],
)
async def test_nobody_else_is_told(
    client: Neighbour, ada: Client, world: Environment, sender: str, wish: str
) -> None:
    await hand_in(client, "", f"<{ada.address}> {wish}".rstrip(), sender)
    await release(ada)
    assert await queued_dsn_requests(world) == []
    assert len(await inbox(ada)) == 1


async def test_the_address_is_named_that_the_sender_knows(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    await add_forwarding_address(world, "desk", ada.address)
    await hand_in(client, "", f"<desk@example.org> {NOTIFY_ALL}")
    await release(ada)
    _, (row,), _ = await only_queued_dsn(world)
    assert row["Final-Recipient"] == "rfc822; desk@example.org"


@pytest.mark.parametrize(
    ("wish", "kept"), [("NOTIFY=NEVER", "NEVER"), (NOTIFY_ALL, "DELAY,FAILURE")]
)
async def test_what_it_is_sent_on_with_stays_as_it_was_asked(
    client: Neighbour, ada: Client, world: Environment, wish: str, kept: str
) -> None:
    await made(ada, {}, {"targets": ["eve@far.example"]})
    assert (await change(ada, targets=["dave@far.example"]))[1] == []
    await hand_in(client, "", f"<{ada.address}> {wish}")
    await release(ada)
    found: Any = {to: notify for _, to, notify in await queued_dsn_requests(world)}
    assert {found["eve@far.example"], found["dave@far.example"]} == {kept}


async def test_who_may_be_another_is_not_told(ada: Client, world: Environment) -> None:
    to = await address_resolution.load_recipient(world, ada.address)
    for sender, spf in ((DSN_SENDER, "example.net"), ("carol@unsure.example", None)):
        mail = await pipeline.read_incoming(world, raw_message(spf or "None"), sender)
        mail.from_trusted_server = False
        found = {"spf": spf, "results": f"mx.example.org; spf={spf}"}
        mail.message = replace(mail.message, verification=found)
        mail.dsn_requests[to.user_id, to.mailbox_id] = ALL_REPORTS
        await quarantine.quarantine_message(world, mail, to, WHY)
    await release(ada)
    assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]
    assert len(await inbox(ada)) == 2


async def test_a_crash_behind_the_delivery_loses_no_report(ada: Client, world: Environment) -> None:
    house, raw = LocalBackend(world), raw_message("Plain")
    taken = replace(await house.accept_recipient(ada.address, DSN_SENDER), dsn_request=ALL_REPORTS)
    mail = await pipeline.read_incoming(world, raw, DSN_SENDER)
    await pipeline.deliver(world, mail, [taken])  # and here it ends, before the answer
    assert (await queued_dsn_requests(world), len(await inbox(ada))) == ([], 1)
    for _ in range(2):  # the other server tries again
        await house.deliver(raw, [taken], DSN_SENDER)
        assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]
    assert len(await inbox(ada)) == 1
