"""What others ask to be told of: how they say it, where it goes, and who is told (RFC 3461)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.dsn_parameters import (
    ALL_REPORTS,
    DEFAULT_REPORTS,
    DsnRequest,
    InvalidDsnParameter,
    NotifyCondition,
    encode_xtext,
    pop_mail_parameters,
    pop_rcpt_parameters,
)
from mail.mime.header_encoding import NamedAddress
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, make_user, raw_message
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.dsn_servers import Reporter
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.memory_listeners import KINDS, opened
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import bodies, inbox, relay, send, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.mail_servers.smtp_client import Authority, connect, secured
from tests.support.mail_servers.submission_client import PASSWORD, sign_in_by_auth_plain

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
            answer = await client.say(f"MAIL FROM:<{DSN_SENDER}> {said}")
            assert (said, answer[:9]) == (said, reply)
            assert await client.say("NOOP") == "250 2.0.0 Fine"
            await client.close()
        for said, reply in RCPT:
            client = await door.enter()
            assert (await client.say(f"MAIL FROM:<{DSN_SENDER}>")).startswith("250")
            answer = await client.say(f"RCPT TO:<ada@example.org> {said}")
            assert (said, answer[:9]) == (said, reply)
            assert await client.say("NOOP") == "250 2.0.0 Fine"
            await client.close()


async def test_addresses_beyond_ascii_are_said_by_whom_may(tmp_path: Path) -> None:
    async with opened("mx", tmp_path) as door:
        client = await door.enter()
        await client.say(f"MAIL FROM:<{DSN_SENDER}> SMTPUTF8")
        said = "RCPT TO:<ada@example.org> ORCPT=utf-8;jörg@example.org"
        assert (await client.say(said)).startswith("250 2.1.5")
        await client.close()


@pytest.mark.parametrize("text", ["a", "a+b=c", "A B", "\\x{F6}", "~!", '"a b"@c', "\x7f"])
def test_xtext_is_read_as_it_was_written(text: str) -> None:
    written = encode_xtext(text)
    assert written.isascii()
    assert not set(written) & set(" =\r\n\x7f")
    if text.isprintable():
        assert pop_mail_parameters({"ENVID": written}).envid == text
        found = pop_rcpt_parameters(
            {"ORCPT": f"rfc822;{written}"}, DEFAULT_REPORTS, allows_utf8=False
        )
        assert found.orcpt == f"rfc822;{text}"
    else:
        with pytest.raises(InvalidDsnParameter):
            pop_mail_parameters({"ENVID": written})


def test_what_is_wanted_where_nothing_was_said() -> None:
    assert [DEFAULT_REPORTS.is_report_wanted(on) for on in NotifyCondition] == [False, True, True]
    assert [DsnRequest(frozenset()).is_report_wanted(on) for on in NotifyCondition] == [False] * 3
    assert [ALL_REPORTS.is_report_wanted(on) for on in NotifyCondition] == [True] * 3
    assert (
        DsnRequest(frozenset({NotifyCondition.SUCCESS}))
        .without_condition(NotifyCondition.SUCCESS)
        .notify_value
        == "NEVER"
    )


# ---------------------------------------------------------------- by submission


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def submitting(
    world: Environment, tmp_path: Path, authority: Authority
) -> AsyncIterator[Neighbour]:
    """Somebody who has signed in."""
    await make_user(world, "ada", password=PASSWORD)
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()))
    made = Listener(world, tmp_path / "spool", terms, SmtpSubmissionService(world))
    await made.start(host="127.0.0.1", port=0)
    client = await connect(made.port)
    await secured(client, authority.client())
    await sign_in_by_auth_plain(client)
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


async def columns(world: Environment) -> tuple[Any, list[Any]]:
    """What the queue knows of the only submission."""
    (row,) = await world.database.read(
        select(
            col(Submission.envid),
            col(Submission.ret),
            col(Submission.header_id),
            col(Submission.user_id),
        )
    )
    asked = select(col(QueueEntry.recipient), col(QueueEntry.notify), col(QueueEntry.orcpt))
    return row, [
        tuple(one) for one in await world.database.read(asked.order_by(col(QueueEntry.id)))
    ]


async def test_what_a_program_asks_for_comes_to_the_queue_and_goes_on(
    submitting: Neighbour, world: Environment
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
    submitting: Neighbour, world: Environment
) -> None:
    assert (
        await hand_in(submitting, "ENVID=1", f"<dave@example.net> {NOTIFY_ALL}", sender="")
    ).startswith("250")
    _, deliveries = await columns(world)
    assert deliveries == [("dave@example.net", "NEVER", None)]


# ---------------------------------------------------------------- from elsewhere


@pytest.fixture
async def client(world: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    """Another server, by SMTP, from where example.net sends."""
    there = zone({"example.net": "v=spf1 ip4:127.0.0.1 -all"})
    async with asking(there):
        use_dns_zone(world, there)
        async with open_mx_session(world, tmp_path) as neighbour:
            yield neighbour


@pytest.mark.usefixtures("bob", "examined")
async def test_a_sender_elsewhere_is_told_what_has_come(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    for _ in range(2):  # a repeat is known
        reply = await hand_in(
            client,
            "ENVID=No+2B1 RET=FULL",
            f"<ada@example.org> {NOTIFY_ALL} ORCPT=rfc822;first@example.com",
            "<bob@example.org>",
            sender=DSN_SENDER,
        )
        assert reply.startswith("250")
    assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]
    about, (row,), subject = await only_queued_dsn(world)
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
    ("sender", "wish"),
    [
        ("", NOTIFY_ALL),
        (DSN_SENDER, ""),
        (DSN_SENDER, "NOTIFY=FAILURE"),
        (DSN_SENDER, "NOTIFY=NEVER"),
    ],
)
async def test_nobody_else_is(
    client: Neighbour, world: Environment, sender: str, wish: str
) -> None:
    reply = await hand_in(client, "", f"<ada@example.org> {wish}".rstrip(), sender=sender)
    assert reply.startswith("250")
    assert await queued_dsn_requests(world) == []


@pytest.mark.usefixtures("ada", "examined")
async def test_by_lmtp_as_well(neighbour: Neighbour, world: Environment) -> None:
    assert (
        await hand_in(neighbour, "", f"<ada@example.org> {NOTIFY_ALL}", sender=DSN_SENDER)
    ).startswith("250")
    assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]


@pytest.mark.usefixtures("examined")
async def test_an_address_that_forwards_to_one_passes_it_on(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    await add_forwarding_address(world, "list", "dave@far.example")
    await hand_in(client, "ENVID=1 RET=FULL", f"<list@example.org> {NOTIFY_ALL}", sender=DSN_SENDER)
    row, deliveries = await columns(world)
    assert (row.envid, row.ret, row.user_id) == ("1", "FULL", None)
    assert deliveries == [("dave@far.example", "DELAY,FAILURE,SUCCESS", "rfc822;list@example.org")]
    assert await inbox(ada) == []
    elsewhere = Server()  # without DSN: then our queue tells
    async with listening(elsewhere), working(world, relay(elsewhere)):
        await until(lambda: took(elsewhere, 2))
    (report,) = [mail for mail in elsewhere.mails if mail.to == [DSN_SENDER]]
    assert b"Action: relayed" in report.raw
    assert b"Original-Recipient: rfc822;list@example.org" in report.raw
    assert b"Original-Envelope-Id: 1" in report.raw


@pytest.mark.usefixtures("examined")
async def test_one_that_forwards_to_several_is_the_end_of_it(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    await add_forwarding_address(world, "list", "dave@far.example", ada.address)
    await hand_in(client, "ENVID=1", f"<list@example.org> {NOTIFY_ALL}", sender=DSN_SENDER)
    waiting = await queued_dsn_requests(world)
    assert [(to, notify) for _, to, notify in waiting] == [
        ("dave@far.example", "DELAY,FAILURE"),
        (DSN_SENDER, "NEVER"),
    ]
    raw = (await bodies(world))[1]
    assert b"Action: expanded" in raw


@pytest.mark.usefixtures("examined")
async def test_what_an_account_forwards_has_come_and_never_stays_never(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    async with world.write_session(ada.user.id) as session:
        mine = update(User).where(col(User.id) == ada.user.id)
        await session.exec(mine.values(targets=["dave@far.example"]))
    await hand_in(client, "", "<ada@example.org> NOTIFY=NEVER", sender=DSN_SENDER)
    await hand_in(client, "", f"<ada@example.org> {NOTIFY_ALL}", sender=f"x{DSN_SENDER}")
    waiting = [(to, notify) for _, to, notify in await queued_dsn_requests(world)]
    assert waiting == [
        ("dave@far.example", "NEVER"),
        ("dave@far.example", "DELAY,FAILURE"),
        (f"x{DSN_SENDER}", "NEVER"),
    ]


@pytest.mark.usefixtures("examined")
async def test_who_may_be_another_is_not_told(
    client: Neighbour, ada: Client, world: Environment
) -> None:
    reply = await hand_in(
        client, "", f"<{ada.address}> {NOTIFY_ALL}", sender="carol@unsure.example"
    )
    assert reply.startswith("250")
    assert await queued_dsn_requests(world) == []
    assert len(await inbox(ada)) == 1


# ---------------------------------------------------------------- between our own


async def test_a_user_here_hears_from_the_one_an_address_here_forwards_to(
    ada: Client, world: Environment
) -> None:
    """The report of a failure behind a forward comes back, and is tied to what was sent."""
    await add_forwarding_address(world, "list", "gone@far.example")
    refusing = Server({"gone": "550 5.1.1 Gone"})
    async with listening(refusing), working(world, relay(refusing)):
        key = await send(ada, NamedAddress("list@example.org"))

        async def bounced() -> bool:
            asked = select(col(QueueEntry.state), col(QueueEntry.report_proven)).where(
                col(QueueEntry.submission_id) == key
            )
            (row,) = await world.database.read(asked)
            return tuple(row) == (DeliveryState.BOUNCED, True)

        await until(bounced)
    (letter,) = await inbox(ada)
    assert letter.subject == "Your message could not be delivered"
    assert b"Original-Recipient: rfc822;list@example.org" in await newest_inbox_message(ada)
