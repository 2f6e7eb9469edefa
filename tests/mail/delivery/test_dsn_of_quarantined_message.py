"""What senders ask for (RFC 3461) is kept while a message is held, and told when it is let in."""

from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from mail.delivery import pipeline, quarantine
from mail.delivery.listener_backend import Household
from mail.envelope.dsn_parameters import ALL
from mail.recipients import address_resolution
from models.runtime.environment import World
from tests.conftest import Client, raw_message
from tests.mail.delivery.test_address_forwarding import make
from tests.mail.queue.test_dsn_requests import FROM, WANTS, queue, told
from tests.support.accounts.user_operations import change
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import inbox
from tests.support.operations.domain_operations import done
from tests.support.operations.filter_operations import made
from tests.support.operations.quarantine_operations import RELEASE, WHY, held, set_options

SPAM = b"X-Spam-Flag: YES\r\n" + raw_message("Offer")
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
def client(neighbour: Neighbour, world: World) -> Neighbour:
    """A neighbour whose filter is believed; what is spam is held."""
    set_options(world, spam_quarantine=1)
    return neighbour


async def hand_in(client: Neighbour, mail: str, rcpt: str, sender: str = FROM) -> None:
    assert (await client.say(f"MAIL FROM:<{sender}> {mail}".rstrip())).startswith("250")
    assert (await client.say(f"RCPT TO:{rcpt}")).startswith("250")
    await client.say("DATA")
    assert (await client.say(SPAM.decode() + "\r\n.")).startswith("250")


async def release(ada: Client) -> None:
    items = [global_ids.encode("QuarantineItem", item.id) for item in await held(ada.world)]
    assert items
    assert (await done(ada, RELEASE, ids=items))[1] == []


async def test_it_is_told_that_it_has_come_when_it_is_let_in(
    client: Neighbour, ada: Client, world: World
) -> None:
    rcpt = f"<{ada.address}> {WANTS} ORCPT=rfc822;first@example.com"
    await hand_in(client, "ENVID=No+2B1 RET=HDRS", rcpt)
    assert (await queue(world), await inbox(ada)) == ([], [])
    await release(ada)
    assert await queue(world) == [("", FROM, "NEVER")]
    about, (row,), subject = await told(world)
    assert subject == "Your message was delivered"
    assert about["Original-Envelope-Id"] == "No+1"
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == (f"rfc822; {ada.address}", "delivered")
    assert len(await inbox(ada)) == 1


@pytest.mark.parametrize(
    ("sender", "wish"),
    [
        (FROM, ""),
        (FROM, "NOTIFY=FAILURE"),
        (FROM, "NOTIFY=NEVER"),
        ("", WANTS),
    ],
)
async def test_nobody_else_is_told(
    client: Neighbour, ada: Client, world: World, sender: str, wish: str
) -> None:
    await hand_in(client, "", f"<{ada.address}> {wish}".rstrip(), sender)
    await release(ada)
    assert await queue(world) == []
    assert len(await inbox(ada)) == 1


async def test_the_address_is_named_that_the_sender_knows(
    client: Neighbour, ada: Client, world: World
) -> None:
    await make(world, "desk", ada.address)
    await hand_in(client, "", f"<desk@example.org> {WANTS}")
    await release(ada)
    _, (row,), _ = await told(world)
    assert row["Final-Recipient"] == "rfc822; desk@example.org"


@pytest.mark.parametrize(("wish", "kept"), [("NOTIFY=NEVER", "NEVER"), (WANTS, "DELAY,FAILURE")])
async def test_what_it_is_sent_on_with_stays_as_it_was_asked(
    client: Neighbour, ada: Client, world: World, wish: str, kept: str
) -> None:
    await made(ada, {}, {"targets": ["eve@far.example"]})
    assert (await change(ada, targets=["dave@far.example"]))[1] == []
    await hand_in(client, "", f"<{ada.address}> {wish}")
    await release(ada)
    found: Any = {to: notify for _, to, notify in await queue(world)}
    assert {found["eve@far.example"], found["dave@far.example"]} == {kept}


async def test_who_may_be_another_is_not_told(ada: Client, world: World) -> None:
    to = await address_resolution.recipient(world, ada.address)
    for sender, spf in ((FROM, "example.net"), ("carol@unsure.example", None)):
        mail = await pipeline.receive(world, raw_message(spf or "None"), sender)
        mail.handed = False
        found = {"spf": spf, "results": f"mx.example.org; spf={spf}"}
        mail.letter = replace(mail.letter, verification=found)
        mail.wishes[to.user_id, to.mailbox_id] = ALL
        await quarantine.hold(world, mail, to, WHY)
    await release(ada)
    assert await queue(world) == [("", FROM, "NEVER")]
    assert len(await inbox(ada)) == 2


async def test_a_crash_behind_the_delivery_loses_no_report(ada: Client, world: World) -> None:
    house, raw = Household(world), raw_message("Plain")
    taken = replace(await house.accept(ada.address, FROM), wish=ALL)
    mail = await pipeline.receive(world, raw, FROM)
    await pipeline.deliver(world, mail, [taken])  # and here it ends, before the answer
    assert (await queue(world), len(await inbox(ada))) == ([], 1)
    for _ in range(2):  # the other server tries again
        await house.deliver(raw, [taken], FROM)
        assert await queue(world) == [("", FROM, "NEVER")]
    assert len(await inbox(ada)) == 1
