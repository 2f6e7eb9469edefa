"""What others ask to be told of: how they say it, where it goes, and who is told (RFC 3461)."""

import email
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from email import policy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.dsn_parameters import (
    ALL,
    USUAL,
    On,
    Unfit,
    Wish,
    of_message,
    of_recipient,
    xtext,
)
from mail.mime.header_encoding import Named
from mail.smtp.mx_server import Mx
from mail.smtp.smtp_server import Terms
from mail.smtp.submission_server import Submission as Listener
from mail.tls.server_tls import Certificate
from models.queue.tables import Delivery, DeliveryState
from models.runtime.environment import World
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.submission.smtp_submission import Clerk
from tests.conftest import Client, make_user, raw_message
from tests.mail.delivery.test_address_forwarding import make
from tests.mail.inbound.test_sender_verification import options
from tests.mail.queue.test_dsn_write import newest
from tests.submission.test_smtp_submission import PASSWORD, sign_in
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.dsn_servers import Reporter
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.memory_listeners import KINDS, opened
from tests.support.mail_servers.queue_worker import bodies, inbox, relay, send, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.mail_servers.smtp_client import Authority, connect, secured

FROM = "carol@example.net"
WANTS = "NOTIFY=SUCCESS,FAILURE,DELAY"


# ---------------------------------------------------------------- how it is said


MAIL = [
    ("ENVID=abc RET=FULL", "250 2.1.0"),
    ("envid=a+2Bb+20c ret=hdrs", "250 2.1.0"),
    (f"ENVID={'x' * 100}", "250 2.1.0"),
    (f"ENVID={'x' * 101}", "501 5.5.4"),
    ("ENVID=", "501 5.5.4"),
    ("ENVID", "501 5.5.4"),
    ("ENVID=a=b", "501 5.5.4"),
    ("ENVID=a+2bb", "501 5.5.4"),
    ("ENVID=a+ZZ", "501 5.5.4"),
    ("ENVID=a+0D+0AX:", "501 5.5.4"),
    ("ENVID=a+00", "501 5.5.4"),
    ("ENVID=a+E4", "501 5.5.4"),
    ("ENVID=ä", "501 5.5.4"),
    ("ENVID=a ENVID=b", "501 5.5.4"),
    ("RET=ALL", "501 5.5.4"),
    ("RET", "501 5.5.4"),
    ("RET=FULL RET=HDRS", "501 5.5.4"),
    ("NOTIFY=NEVER", "555 5.5.4"),
]
RCPT = [
    ("NOTIFY=NEVER", "250 2.1.5"),
    ("notify=success,delay ORCPT=rfc822;ada+2Bx@example.org", "250 2.1.5"),
    (f"ORCPT=rfc822;{'x' * 493}", "250 2.1.5"),
    (f"ORCPT=rfc822;{'x' * 494}", "501 5.5.4"),
    ("ORCPT=x400;/S=ada/", "501 5.5.4"),
    ("ORCPT=x400;/S+3Dada/", "250 2.1.5"),
    ("ORCPT=utf-8;a\\x{F6}@example.org", "250 2.1.5"),
    ("ORCPT=utf-8;ö@example.org", "501 5.5.4"),
    ("ORCPT=ada@example.org", "501 5.5.4"),
    ("ORCPT=;ada@example.org", "501 5.5.4"),
    ("ORCPT=rfc822;", "501 5.5.4"),
    ("ORCPT=rfc822;a+0Ab", "501 5.5.4"),
    ("ORCPT=rf_c;a", "501 5.5.4"),
    ("NOTIFY=", "501 5.5.4"),
    ("NOTIFY=NEVER,SUCCESS", "501 5.5.4"),
    ("NOTIFY=SUCCESS,SUCCESS", "501 5.5.4"),
    ("NOTIFY=SUCCESS,", "501 5.5.4"),
    ("NOTIFY=SOMETIMES", "501 5.5.4"),
    ("NOTIFY=NEVER NOTIFY=NEVER", "501 5.5.4"),
    ("RET=FULL", "555 5.5.4"),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_mail_and_rcpt_say_it(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path) as door:
        for said, reply in MAIL:
            client = await door.enter()
            answer = await client.say(f"MAIL FROM:<{FROM}> {said}")
            assert (said, answer[:9]) == (said, reply)
            assert await client.say("NOOP") == "250 2.0.0 Fine"
            await client.close()
        for said, reply in RCPT:
            client = await door.enter()
            assert (await client.say(f"MAIL FROM:<{FROM}>")).startswith("250")
            answer = await client.say(f"RCPT TO:<ada@example.org> {said}")
            assert (said, answer[:9]) == (said, reply)
            assert await client.say("NOOP") == "250 2.0.0 Fine"
            await client.close()


async def test_addresses_beyond_ascii_are_said_by_whom_may(tmp_path: Path) -> None:
    async with opened("mx", tmp_path) as door:
        client = await door.enter()
        await client.say(f"MAIL FROM:<{FROM}> SMTPUTF8")
        said = "RCPT TO:<ada@example.org> ORCPT=utf-8;jörg@example.org"
        assert (await client.say(said)).startswith("250 2.1.5")
        await client.close()


@pytest.mark.parametrize("text", ["a", "a+b=c", "A B", "\\x{F6}", "~!", '"a b"@c', "\x7f"])
def test_xtext_is_read_as_it_was_written(text: str) -> None:
    written = xtext(text)
    assert written.isascii()
    assert not set(written) & set(" =\r\n\x7f")
    if text.isprintable():
        assert of_message({"ENVID": written}).envid == text
        found = of_recipient({"ORCPT": f"rfc822;{written}"}, USUAL, utf8=False)
        assert found.orcpt == f"rfc822;{text}"
    else:
        with pytest.raises(Unfit):
            of_message({"ENVID": written})


def test_what_is_wanted_where_nothing_was_said() -> None:
    assert [USUAL.wants(on) for on in On] == [False, True, True]
    assert [Wish(frozenset()).wants(on) for on in On] == [False] * 3
    assert [ALL.wants(on) for on in On] == [True] * 3
    assert Wish(frozenset({On.SUCCESS})).without(On.SUCCESS).notify == "NEVER"


# ---------------------------------------------------------------- by submission


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def submitting(
    world: World, tmp_path: Path, authority: Authority
) -> AsyncIterator[Neighbour]:
    """Somebody who has signed in."""
    await make_user(world, "ada", password=PASSWORD)
    terms = Terms(certificate=Certificate(authority.issue()))
    made = Listener(world, tmp_path / "spool", terms, Clerk(world))
    await made.start(host="127.0.0.1", port=0)
    client = await connect(made.port)
    await secured(client, authority.client())
    await sign_in(client)
    yield client
    await client.close()
    await made.close(1)


async def hand_in(client: Neighbour, mail: str, *rcpt: str, sender: str = "ada@example.org") -> str:
    """What comes of a message with these commands."""
    assert (await client.say(f"MAIL FROM:<{sender}> {mail}".rstrip())).startswith("250")
    for each in rcpt:
        assert (await client.say(f"RCPT TO:{each}")).startswith("250")
    assert (await client.say("DATA")).startswith("354")
    client.send(raw_message("Hello", From="ada@example.org") + b".\r\n")
    return await client.hear()


async def columns(world: World) -> tuple[Any, list[Any]]:
    """What the queue knows of the only submission."""
    (row,) = await world.database.read(
        select(
            col(Submission.envid),
            col(Submission.ret),
            col(Submission.header_id),
            col(Submission.user_id),
        )
    )
    asked = select(col(Delivery.recipient), col(Delivery.notify), col(Delivery.orcpt))
    return row, [tuple(one) for one in await world.database.read(asked.order_by(col(Delivery.id)))]


async def test_what_a_program_asks_for_comes_to_the_queue_and_goes_on(
    submitting: Neighbour, world: World
) -> None:
    reply = await hand_in(
        submitting,
        "RET=FULL ENVID=My+20Id",
        "<dave@example.net> NOTIFY=SUCCESS ORCPT=rfc822;list+2Bx@example.com",
        "<eve@example.net> NOTIFY=NEVER",
        "<DAVE@example.net> NOTIFY=NEVER",
        "<frank@example.net>",
    )
    assert reply.startswith("250")
    row, deliveries = await columns(world)
    assert (row.envid, row.ret) == ("My Id", "FULL")
    assert row.header_id.endswith("@example.com>")
    assert deliveries == [
        ("dave@example.net", "SUCCESS", "rfc822;list+x@example.com"),
        ("eve@example.net", "NEVER", None),
        ("frank@example.net", None, None),
    ]
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await until(lambda: took(elsewhere))
    assert elsewhere.asked == [
        ("MAIL", ["RET=FULL", "ENVID=My+20Id"]),
        ("RCPT", ["NOTIFY=SUCCESS", "ORCPT=rfc822;list+2Bx@example.com"]),
        ("RCPT", ["NOTIFY=NEVER", "ORCPT=rfc822;eve@example.net"]),
        ("RCPT", ["ORCPT=rfc822;frank@example.net"]),
    ]


async def took(server: Server, many: int = 1) -> bool:
    return len(server.mails) >= many


async def test_what_a_program_sends_for_nobody_asks_for_nothing(
    submitting: Neighbour, world: World
) -> None:
    assert (
        await hand_in(submitting, "ENVID=1", f"<dave@example.net> {WANTS}", sender="")
    ).startswith("250")
    _, deliveries = await columns(world)
    assert deliveries == [("dave@example.net", "NEVER", None)]


# ---------------------------------------------------------------- from elsewhere


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[Neighbour]:
    """Another server, by SMTP, from where example.net sends."""
    there = zone({"example.net": "v=spf1 ip4:127.0.0.1 -all"})
    async with asking(there):
        options(world, there)
        async with entered(world, tmp_path) as neighbour:
            yield neighbour


@asynccontextmanager
async def entered(world: World, tmp_path: Path) -> AsyncGenerator[Neighbour]:
    listener = Mx(world, tmp_path / "spool-mx", Terms())
    await listener.start(host="127.0.0.1", port=0)
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()
    await listener.close(1)


async def queue(world: World) -> list[tuple[str | None, ...]]:
    """Sender, recipient and wish of all that waits."""
    asked = select(
        col(Submission.envelope_from), col(Delivery.recipient), col(Delivery.notify)
    ).join(Submission, col(Submission.id) == col(Delivery.submission_id))
    return [tuple(row) for row in await world.database.read(asked.order_by(col(Delivery.id)))]


async def told(world: World) -> tuple[Any, list[Any], str]:
    """The only report that waits: of the message, of recipients, and its subject."""
    (raw,) = await bodies(world)
    message = email.message_from_bytes(raw, policy=policy.default)
    status: Any = list(message.iter_parts())[1]
    about, *rows = status.get_payload()
    return about, rows, str(message["Subject"])


@pytest.mark.usefixtures("bob", "examined")
async def test_a_sender_elsewhere_is_told_what_has_come(
    client: Neighbour, ada: Client, world: World
) -> None:
    for _ in range(2):  # a repeat is known
        reply = await hand_in(
            client,
            "ENVID=No+2B1 RET=FULL",
            f"<ada@example.org> {WANTS} ORCPT=rfc822;first@example.com",
            "<bob@example.org>",
            sender=FROM,
        )
        assert reply.startswith("250")
    assert await queue(world) == [("", FROM, "NEVER")]
    about, (row,), subject = await told(world)
    assert subject == "Your message was delivered"
    assert (about["Original-Envelope-Id"], about["Reporting-MTA"]) == (
        "No+1",
        "dns; mx.example.org",
    )
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == ("rfc822; ada@example.org", "delivered")
    assert row["Status"] == "2.0.0"
    assert len(await inbox(ada)) == 1


@pytest.mark.usefixtures("ada", "examined")
@pytest.mark.parametrize(
    ("sender", "wish"), [("", WANTS), (FROM, ""), (FROM, "NOTIFY=FAILURE"), (FROM, "NOTIFY=NEVER")]
)
async def test_nobody_else_is(client: Neighbour, world: World, sender: str, wish: str) -> None:
    reply = await hand_in(client, "", f"<ada@example.org> {wish}".rstrip(), sender=sender)
    assert reply.startswith("250")
    assert await queue(world) == []


@pytest.mark.usefixtures("ada", "examined")
async def test_by_lmtp_as_well(neighbour: Neighbour, world: World) -> None:
    assert (await hand_in(neighbour, "", f"<ada@example.org> {WANTS}", sender=FROM)).startswith(
        "250"
    )
    assert await queue(world) == [("", FROM, "NEVER")]


@pytest.mark.usefixtures("examined")
async def test_an_address_that_forwards_to_one_passes_it_on(
    client: Neighbour, ada: Client, world: World
) -> None:
    await make(world, "list", "dave@far.example")
    await hand_in(client, "ENVID=1 RET=FULL", f"<list@example.org> {WANTS}", sender=FROM)
    row, deliveries = await columns(world)
    assert (row.envid, row.ret, row.user_id) == ("1", "FULL", None)
    assert deliveries == [("dave@far.example", "DELAY,FAILURE,SUCCESS", "rfc822;list@example.org")]
    assert await inbox(ada) == []
    elsewhere = Server()  # without DSN: then our queue tells
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await until(lambda: took(elsewhere, 2))
    (report,) = [mail for mail in elsewhere.mails if mail.to == [FROM]]
    assert b"Action: relayed" in report.raw
    assert b"Original-Recipient: rfc822;list@example.org" in report.raw
    assert b"Original-Envelope-Id: 1" in report.raw


@pytest.mark.usefixtures("examined")
async def test_one_that_forwards_to_several_is_the_end_of_it(
    client: Neighbour, ada: Client, world: World
) -> None:
    await make(world, "list", "dave@far.example", ada.address)
    await hand_in(client, "ENVID=1", f"<list@example.org> {WANTS}", sender=FROM)
    waiting = await queue(world)
    assert [(to, notify) for _, to, notify in waiting] == [
        ("dave@far.example", "DELAY,FAILURE"),
        (FROM, "NEVER"),
    ]
    raw = (await bodies(world))[1]
    assert b"Action: expanded" in raw


@pytest.mark.usefixtures("examined")
async def test_what_an_account_forwards_has_come_and_never_stays_never(
    client: Neighbour, ada: Client, world: World
) -> None:
    async with world.write(ada.user.id) as session:
        mine = update(User).where(col(User.id) == ada.user.id)
        await session.exec(mine.values(targets=["dave@far.example"]))
    await hand_in(client, "", "<ada@example.org> NOTIFY=NEVER", sender=FROM)
    await hand_in(client, "", f"<ada@example.org> {WANTS}", sender=f"x{FROM}")
    waiting = [(to, notify) for _, to, notify in await queue(world)]
    assert waiting == [
        ("dave@far.example", "NEVER"),
        ("dave@far.example", "DELAY,FAILURE"),
        (f"x{FROM}", "NEVER"),
    ]


@pytest.mark.usefixtures("examined")
async def test_who_may_be_another_is_not_told(client: Neighbour, ada: Client, world: World) -> None:
    reply = await hand_in(client, "", f"<{ada.address}> {WANTS}", sender="carol@unsure.example")
    assert reply.startswith("250")
    assert await queue(world) == []
    assert len(await inbox(ada)) == 1


# ---------------------------------------------------------------- between our own


async def test_a_user_here_hears_from_the_one_an_address_here_forwards_to(
    ada: Client, world: World
) -> None:
    """The report of a failure behind a forward comes back, and is tied to what was sent."""
    await make(world, "list", "gone@far.example")
    refusing = Server({"gone": "550 5.1.1 Gone"})
    async with listening(refusing), working(world, relay(refusing)):
        key = await send(ada, Named("list@example.org"))

        async def bounced() -> bool:
            asked = select(col(Delivery.state), col(Delivery.report_proven)).where(
                col(Delivery.submission_id) == key
            )
            (row,) = await world.database.read(asked)
            return tuple(row) == (DeliveryState.BOUNCED, True)

        await until(bounced)
    (letter,) = await inbox(ada)
    assert letter.subject == "Your message could not be delivered"
    assert b"Original-Recipient: rfc822;list@example.org" in await newest(ada)
