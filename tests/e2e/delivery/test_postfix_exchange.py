"""Postfix, the honest neighbour: our queue hands mail to it, and it hands mail to us."""

import asyncio
import smtplib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import dkim
import pytest

from bench.servers.ports import free_port
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.mime.header_encoding import NamedAddress
from mail.smtp.lmtp import LmtpListener
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SmtpSubmitter
from mail.tls.server_tls import CertificateFiles
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.user_operations import run
from tests.support.mail.signed_messages import pair, signed
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.mail_servers.queue_worker import (
    bodies,
    deliveries,
    inbox,
    is_now,
    relay,
    ring,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server as Neighbour
from tests.support.mail_servers.smtp_client import Authority
from tests.support.servers.postfix_server import Mail, Policy, Postfix, postfix

SECONDS = 60.0  # that anything may take, on a machine that does other things too


async def within(true: Callable[[], bool]) -> None:
    """Wait until this is so."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def neighbour(**more: Any) -> AsyncGenerator[Postfix]:
    """A Postfix, while it is needed: to start and to end it takes its time."""
    made = postfix(free_port(), **more)
    there = await asyncio.to_thread(made.__enter__)
    try:
        yield there
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


def way(there: Postfix, query: str = "") -> Any:
    """The way to it for our queue."""
    return relay(Neighbour(port=there.port), query)


async def taken(there: Postfix, many: int = 1) -> list[Mail]:
    """What it has delivered, once it is so many."""
    await within(lambda: len(there.mails()) >= many)
    assert len(there.mails()) == many, there.log
    return there.mails()


def hand_over(there: Postfix, raw: bytes, *to: str, sender: str = "carol@example.net") -> None:
    """Give it a message to send on."""
    with smtplib.SMTP("127.0.0.1", there.port, timeout=SECONDS) as smtp:
        smtp.ehlo("client.example.net")
        options = ["BODY=8BITMIME"] if not raw.isascii() else []
        assert smtp.sendmail(sender, to, raw, options) == {}


def parts_of(message: Any) -> list[Any]:
    """The parts of a message, as the library has them."""
    return list(message.get_payload())


def holds(raw: bytes) -> bool:
    """Whether the signature of a message holds."""
    text = pair()[1].encode()
    return bool(dkim.verify(raw, dnsfunc=lambda *_a, **_k: text))


# ---------------------------------------------------------------- our queue hands mail to it


async def test_it_takes_mail_over_tls_as_it_was_stored(ada: Client, world: Environment) -> None:
    async with neighbour() as there, working(world, way(there, "?tls=required")):
        key = await send(ada, NamedAddress("dave@example.net"))
        (mail,) = await taken(there)
        rows = await settled(world, key)
        (raw,) = await bodies(world)
    assert (mail.sender, mail.to, mail.raw) == ("ada@example.org", "dave@example.net", raw)
    assert "with ESMTPS" in mail.received
    assert rows["dave"].tls.startswith("TLSv1.3")
    assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.RELAYED, 250)


async def test_eight_bits_and_utf8_addresses_pass(ada: Client, world: Environment) -> None:
    async with neighbour() as there, working(world, way(there)):
        await send(
            ada,
            NamedAddress("dave@example.net", "Dävid"),
            NamedAddress("jürgen@example.net", "Jürgen"),
        )
        mails = await taken(there, 2)
        (raw,) = await bodies(world)
    assert {mail.to for mail in mails} == {"dave@example.net", "jürgen@example.net"}
    assert {mail.raw for mail in mails} == {raw}
    assert "jürgen@example.net".encode() in raw
    assert "SMTPUTF8" in there.log or "UTF8SMTP" in mails[0].received


async def test_a_large_message_arrives_byte_for_byte(ada: Client, world: Environment) -> None:
    raw = raw_message("Large", body="Grüße, in Zeilen.\r\n.\r\n..\r\n" * 250_000, From=ada.address)
    writer = SmtpSubmitter(ada.user.id, "ada", ada.user.auth_version, None)
    async with neighbour() as there, working(world, way(there)):
        await SmtpSubmissionService(world).submit(
            writer, raw, ada.address, [("dave@example.net", DEFAULT_REPORTS)]
        )
        (mail,) = await taken(there)
        (queued,) = await bodies(world)
    assert len(raw) > 5 << 20
    assert mail.raw == queued == raw


async def test_many_recipients_have_one_message_each(ada: Client, world: Environment) -> None:
    to = [f"n{nth:03}@example.net" for nth in range(150)]
    async with neighbour() as there, working(world, way(there)):
        key = await send(ada, *map(NamedAddress, to))
        mails = await taken(there, 150)
        rows = await settled(world, key)
    assert sorted(mail.to for mail in mails) == to
    assert {row.state for row in rows.values()} == {DeliveryState.RELAYED}
    assert len({mail.received for mail in mails}) < 10  # not a message for each


async def test_who_is_refused_is_told_of_and_the_others_are_served(
    ada: Client, world: Environment
) -> None:
    refused = {"nobody@example.net": "550 5.1.1 Nobody is here by that name"}
    async with neighbour(refused=refused) as there, working(world, way(there)):
        key = await send(ada, NamedAddress("dave@example.net"), NamedAddress("nobody@example.net"))
        (mail,) = await taken(there)
        rows = await settled(world, key)

        async def told() -> bool:
            return bool(await inbox(ada))

        await until(told)
    assert mail.to == "dave@example.net"
    assert (rows["dave"].state, rows["nobody"].state) == (
        DeliveryState.RELAYED, DeliveryState.BOUNCED
    )  # fmt: skip
    assert (rows["nobody"].last_code, "5.1.1" in rows["nobody"].last_response) == (550, True)
    ((_, source),) = [
        (row, raw) for row, raw in (await stored_messages_by_path(ada)).values() if not row.seen
    ]
    report = message_from_bytes(source, policy=policy.SMTP)
    assert report.get_content_type() == "multipart/report"
    status = next(part for part in report.walk() if part.get_content_subtype() == "delivery-status")
    fields = parts_of(status)[1]
    assert fields["Final-Recipient"] == "rfc822; nobody@example.net"
    assert (fields["Action"], fields["Status"]) == ("failed", "5.1.1")
    assert "Nobody is here by that name" in fields["Diagnostic-Code"]


async def test_who_is_put_off_is_tried_again(ada: Client, world: Environment, clock: Clock) -> None:
    asked = Policy({"dave": ["defer_if_permit Greylisted: come again"]})
    async with (
        asked.listening(),
        neighbour(policy=asked.port) as there,
        working(world, way(there)),
    ):
        key = await send(ada, NamedAddress("dave@example.net"), NamedAddress("erin@example.net"))
        rows = await settled(world, key)
        assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.DEFERRED, 450)
        assert "Greylisted: come again" in rows["dave"].last_response
        assert rows["erin"].state is DeliveryState.RELAYED
        (mail,) = await taken(there)
        assert mail.to == "erin@example.net"
        clock.time = rows["dave"].next_at
        ring(world)
        await until(lambda: is_now(world, key, "dave", DeliveryState.RELAYED))
        mails = await taken(there, 2)
    assert [mail.to for mail in mails] == ["erin@example.net", "dave@example.net"]
    assert mails[0].raw == mails[1].raw
    assert (await deliveries(world, key))["dave"].attempts == 2
    assert asked.asked.count("dave") == 2


async def test_what_it_does_not_take_whole_comes_back(ada: Client, world: Environment) -> None:
    async with (
        neighbour(more={"message_size_limit": "2000"}) as there,
        working(world, way(there)),
    ):
        key = await send(ada, NamedAddress("dave@example.net"), html="<p>" + "x" * 4000)
        rows = await settled(world, key)
    assert (rows["dave"].state, rows["dave"].last_code) == (DeliveryState.BOUNCED, 552)
    assert there.mails() == []


# ---------------------------------------------------------------- it hands mail to us


@pytest.fixture
async def mx(world: Environment, tmp_path: Path) -> AsyncIterator[MxListener]:
    terms = SmtpListenerConfig(certificates=CertificateFiles(Authority(tmp_path).issue()))
    made = MxListener(world, tmp_path / "spool-mx", terms)
    await made.start(host="127.0.0.1", port=0)
    yield made
    await made.close(1)


@pytest.fixture(params=["smtp", "lmtp"])
def door(request: pytest.FixtureRequest, mx: MxListener, listener: LmtpListener) -> dict[str, str]:
    """The way to us for it, by one of our doors."""
    if request.param == "smtp":
        return {"example.org": f"smtp:[127.0.0.1]:{mx.port}"}
    return {"example.org": f"lmtp:inet:127.0.0.1:{listener.port}"}


LETTERS = {
    "plain": raw_message("Plain", body="Hello.\r\n.\r\n..dots  \r\n\t\r\n"),
    "eight bits": raw_message("Eight bits", body="Grüße", Content_Type="text/plain; charset=utf-8")
    .replace(b"Content-Type", b"Content-Transfer-Encoding: 8bit\r\nContent-Type"),
    "long lines": raw_message("Long", body="\r\n".join(["x" * 990] * 50)),
    "large": raw_message("Large", body="\r\n".join(["y" * 70] * 80_000)),
}  # fmt: skip


async def has_come(who: Client, many: int = 1) -> list[Any]:
    """What is in the INBOX, once it is so much."""

    async def there() -> bool:
        return len(await inbox(who)) >= many

    async with asyncio.timeout(SECONDS):
        while not await there():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.05)
    return await inbox(who)


async def in_inbox(who: Client) -> bytes:
    """The bytes of the message in the INBOX."""
    return (await stored_messages_by_path(who))["INBOX"][1]


@pytest.mark.parametrize("name", LETTERS)
async def test_its_mail_arrives_as_it_was_signed(
    ada: Client, door: dict[str, str], name: str
) -> None:
    raw = signed(LETTERS[name], "example.com")
    assert holds(raw)
    async with neighbour(routes=door) as there:
        await asyncio.to_thread(hand_over, there, raw, ada.address)
        (row,) = await has_come(ada)
        encrypted = "TLS connection established to 127.0.0.1" in there.log
    assert row.envelope_from == "carol@example.net"
    source = await in_inbox(ada)
    assert source.endswith(raw)
    assert holds(source)
    assert b"by postfix.example.net (Postfix) with ESMTP" in source
    assert encrypted is door["example.org"].startswith("smtp")


async def test_it_delivers_to_many_at_once(ada: Client, bob: Client, door: dict[str, str]) -> None:
    async with neighbour(routes=door) as there:
        await asyncio.to_thread(hand_over, there, LETTERS["plain"], ada.address, bob.address)
        assert [len(await has_come(each)) for each in (ada, bob)] == [1, 1]


async def test_its_report_of_whom_we_refuse_reaches_the_sender(
    ada: Client, bob: Client, door: dict[str, str]
) -> None:
    async with neighbour(routes=door) as there:
        to = (ada.address, "nobody@example.org")
        await asyncio.to_thread(hand_over, there, LETTERS["plain"], *to, sender=bob.address)
        await has_come(ada)
        (row,) = await has_come(bob)
    assert row.envelope_from == ""
    assert row.subject == "Undelivered Mail Returned to Sender"
    report = message_from_bytes(await in_inbox(bob), policy=policy.SMTP)
    assert report.get_content_type() == "multipart/report"
    status = next(part for part in report.walk() if part.get_content_subtype() == "delivery-status")
    fields = parts_of(status)[1]
    assert fields["Final-Recipient"] == "rfc822; nobody@example.org"
    assert (fields["Action"], fields["Status"]) == ("failed", "5.1.1")


async def test_it_comes_again_where_we_put_it_off(
    ada: Client, world: Environment, clock: Clock, door: dict[str, str]
) -> None:
    async with world.write_session() as session:
        user = await session.get_one(type(ada.user), ada.user.id)
        user.received_max, user.received = 1, 1
        user.received_until = clock().replace(hour=1)
    async with neighbour(routes=door) as there:
        await asyncio.to_thread(hand_over, there, LETTERS["plain"], ada.address)
        await within(lambda: "status=deferred" in there.log)
        assert await inbox(ada) == []
        clock.tick(hours=1)
        await has_come(ada)
        assert there.log.count("status=sent") == 1


# ---------------------------------------------------------------- there and back


async def test_mail_goes_out_and_its_report_comes_back(
    ada: Client, world: Environment, mx: MxListener
) -> None:
    """It has taken the mail, and its next hop refuses it: the report comes back to us by SMTP."""
    hop = f"smtp:[127.0.0.1]:{mx.port}"
    routes = {"example.org": hop, "nowhere.example": hop}  # where we take nothing
    more = {"relay_domains": "example.org nowhere.example"}
    async with neighbour(routes=routes, more=more) as there, working(world, way(there)):
        key = await send(ada, NamedAddress("zoe@nowhere.example"))
        rows = await settled(world, key)
        assert rows["zoe"].state is DeliveryState.RELAYED
        (row,) = await has_come(ada)
    assert row.subject == "Undelivered Mail Returned to Sender"
    (sent,) = await bodies(world)
    name = message_from_bytes(sent)["Message-ID"]
    assert name.encode() in await in_inbox(ada)


async def test_what_we_forward_goes_on_as_it_was_signed(
    ada: Client, world: Environment, mx: MxListener
) -> None:
    """From Postfix to us, and on to Postfix, by the account's targets."""
    given = {"targets": ["dave@example.net"]}
    assert (await run(ada, "userUpdate", set=given))["errors"] == []
    routes = {"example.org": f"smtp:[127.0.0.1]:{mx.port}"}
    raw = signed(LETTERS["eight bits"], "example.com")
    async with neighbour(routes=routes) as there, working(world, way(there)):
        await asyncio.to_thread(hand_over, there, raw, ada.address)
        (mail,) = await taken(there)
    assert mail.to == "dave@example.net"
    assert mail.raw.endswith(raw)
    assert holds(mail.raw)
