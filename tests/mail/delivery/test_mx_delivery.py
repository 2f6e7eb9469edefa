"""Mail that comes by SMTP into a real store."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.maintenance.housekeeping import run_round
from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.spam.greylist import Greylist
from mail.tls.server_tls import CertificateFiles
from models.messages.tables import Message
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.spam.greylist import GreylistEntry
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import Client, Clock, raw_message
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import inbox, ring, settled, working
from tests.support.mail_servers.smtp_client import Authority, connect, secured, send_rcpt

pytestmark = pytest.mark.usefixtures("examined")

LARGE = raw_message("Large", body="x" * 5000)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def mx(world: Environment, tmp_path: Path, authority: Authority) -> AsyncIterator[MxListener]:
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()))
    listener = MxListener(world, tmp_path / "spool", terms)
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


@pytest.fixture
async def client(mx: MxListener) -> AsyncIterator[Neighbour]:
    neighbour = await connect(mx.port)
    yield neighbour
    await neighbour.close()


async def send(client: Neighbour, raw: bytes, *to: str) -> str:
    await client.begin(*to)
    client.send(raw + b".\r\n")
    return await client.hear()


async def change(who: Client, **columns: Any) -> None:
    async with who.world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == who.user.id).values(**columns))


async def many(world: Environment, table: Any) -> int:
    (row,) = await world.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def test_it_is_delivered_and_a_repeat_is_known(
    client: Neighbour, clock: Clock, ada: Client, bob: Client
) -> None:
    raw = raw_message("Hello")
    for _ in range(2):  # the second with another field Received on top
        assert (await send(client, raw, "ada@example.org", "bob@example.org")).startswith("250")
        clock.tick(minutes=1)
    for each in (ada, bob):
        (letter,) = await inbox(each)
        assert (letter.subject, letter.envelope_from) == ("Hello", "carol@example.net")


async def test_strangers_relay_nothing(client: Neighbour, ada: Client) -> None:
    for address in (
        "carol@example.net",
        "nobody@example.org",
        "ada%example.net@example.org",
        "ada@example.org@example.net",
        "@example.org:carol@example.net",
        '"carol@example.net"',
        "example.net!carol@example.org",
        "*",
        "*@example.org",
    ):
        assert (await send_rcpt(client, address))[:3] in {"550", "553"}, address
    assert (await send_rcpt(client, "ADA+news@Example.ORG")).startswith("250")
    assert await many(ada.world, Submission) == 0


async def test_what_is_said_of_it_is_not_believed(
    world: Environment, client: Neighbour, ada: Client
) -> None:
    forged = "localhost; spf=pass smtp.mailfrom=bank.example; dmarc=pass"
    raw = raw_message("Hello", Authentication_Results=forged, X_Spam_Flag="YES")
    assert (await send(client, raw, "ada@example.org")).startswith("250")
    (row,) = await world.database.read(select(col(Message.verification)))
    assert not (row.verification or {}).get("spf")
    assert len(await inbox(ada)) == 1  # and not Junk


async def test_who_has_room_has_it_and_the_queue_waits_for_the_other(
    world: Environment, client: Neighbour, ada: Client, bob: Client
) -> None:
    await change(ada, quota=100)
    for _ in range(2):  # a repeat is queued once
        reply = await send(client, LARGE, "ada@example.org", "bob@example.org")
        assert reply.startswith("250 2.0.0")
    assert (len(await inbox(ada)), len(await inbox(bob))) == (0, 1)
    asked = select(col(Submission.id), col(Submission.envelope_from))
    (row,) = await world.database.read(asked)
    assert row.envelope_from == "carol@example.net"
    await change(ada, quota=1 << 20)
    async with working(world, OutboundSettings()):
        ring(world)
        assert (await settled(world, row.id))["ada"].state is DeliveryState.DELIVERED
    assert len(await inbox(ada)) == 1
    assert len(await inbox(bob)) == 1
    await change(ada, quota=None)


async def test_a_full_mailbox_alone_comes_again(client: Neighbour, ada: Client) -> None:
    await change(ada, quota=100)
    assert (await send(client, LARGE, "ada@example.org")).startswith("452 4.2.2")
    assert await many(ada.world, Submission) == 0
    await change(ada, quota=None)


async def test_who_wants_tls_is_not_written_to_without(
    client: Neighbour, authority: Authority, ada: Client
) -> None:
    await change(ada, tls_enforce_in=True)
    assert (await send_rcpt(client, "ada@example.org")).startswith("530 5.7.0")
    await secured(client, authority.client())
    assert (await send(client, raw_message(), "ada@example.org")).startswith("250")
    assert len(await inbox(ada)) == 1


async def test_strangers_come_again_once(clock: Clock, ada: Client) -> None:
    world = ada.world
    greylist = Greylist(world, timedelta(minutes=5), timedelta(days=30), ("192.0.2.0/24",))

    async def wait(ip: str, sender: str = "c@example.net", to: str = "ada@example.org") -> int:
        return await greylist.retry_after(ip, sender, to)

    assert await wait("192.0.2.1") == 0  # allowed
    assert await wait("198.51.100.1") == 300
    clock.tick(minutes=1)
    assert await wait("198.51.100.77", "C@example.net") == 240  # its neighbour, told the same
    assert await wait("203.0.113.1") == await wait("198.51.100.1", "d@example.net") == 300
    clock.tick(minutes=4)
    assert await wait("198.51.100.1") == 0
    assert await wait("198.51.100.1", to="bob@example.org") == 300
    clock.tick(days=29)
    await run_round(world)
    assert await many(world, GreylistEntry) == 1  # those that did not come again are forgotten
    assert await wait("198.51.100.1") == 0
    clock.tick(days=29)
    assert await wait("198.51.100.1") == 0
    clock.tick(days=31)
    await run_round(world)
    assert await many(world, GreylistEntry) == 0
    assert await wait("198.51.100.1") == 300


async def test_a_flood_of_strangers_writes_little(ada: Client) -> None:
    greylist = Greylist(ada.world, timedelta(minutes=5), timedelta(days=30))
    for n in range(1010):
        await greylist.retry_after("198.51.100.1", f"{n}@example.net", "ada@example.org")
    assert await many(ada.world, GreylistEntry) == 1000


async def test_greylisting_in_conversation(
    world: Environment, tmp_path: Path, clock: Clock, ada: Client
) -> None:
    rules = MxRules(greylist=Greylist(world, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(world, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    client = await connect(listener.port)
    assert await send_rcpt(client, "nobody@example.org") == "550 5.1.1 No such user here"
    reply = await send_rcpt(client, "ada@example.org")
    assert reply == "451 4.7.1 Not seen before, try again in 300 seconds"
    clock.tick(minutes=5)
    assert (await send(client, raw_message(), "ada@example.org")).startswith("250")
    await client.close()
    await listener.close(1)
    assert len(await inbox(ada)) == 1


async def test_whom_the_greylist_turned_away_is_told_with_the_message_of_others(
    tmp_path: Path, clock: Clock, ada: Client, bob: Client, root: Client
) -> None:
    rules = MxRules(greylist=Greylist(ada.world, timedelta(minutes=5), timedelta(days=30)))
    listener = MxListener(ada.world, tmp_path / "spool", SmtpListenerConfig(), rules)
    await listener.start(host="127.0.0.1", port=0)
    client = await connect(listener.port)
    assert (await send_rcpt(client, ada.address)).startswith("451 4.7.1")
    clock.tick(minutes=5)
    for line in ("MAIL FROM:<carol@example.net>", *(f"RCPT TO:<{x.address}>" for x in (bob, ada))):
        reply = await client.say(line)
    assert reply.startswith("250")
    await client.say("DATA")
    queue_id = (await client.say(raw_message() + b".")).removeprefix("250 2.0.0 Taken as ")
    await client.close()
    await listener.close(1)
    asked = "query ($id: String) { messageTrace(queueId: $id) { event address detail } }"
    steps = (await root(asked, id=queue_id))["messageTrace"]
    assert [each for each in steps if each["event"] == "turned away"] == [
        {
            "event": "turned away",
            "address": bob.address,
            "detail": "451 4.7.1 Not seen before, try again in 300 seconds",
        }
    ]
