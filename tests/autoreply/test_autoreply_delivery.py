"""Mail that comes in by LMTP is answered by the queue, once to each sender."""

import asyncio
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mail.autoreply import reply_sender
from mail.delivery.listener_backend import LocalBackend
from mail.maintenance.housekeeping import run_round
from mail.mime.header_encoding import NamedAddress
from mail.smtp import lmtp
from mail.storage.message_insert import InsertedMessage
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.tables import Usage, User
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, Clock, context, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import run
from tests.support.mail.parsed_messages import body_text, parse_message
from tests.support.mail.queued_deliveries import queued_reply_recipients
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.mail_servers.queue_worker import inbox, relay, settled, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.autoreply_operations import send_unique_message, set_autoreply
from tests.support.stores.counter_check import rows
from tests.support.stores.store_damage import rename_table

pytestmark = pytest.mark.usefixtures("examined")

ADA = "ada@example.org"
TO = {"To": "Ada <ada@example.org>"}


async def sales(ada: Client, *, send_as: bool = True) -> None:
    """Give ada another address."""
    now = ada.world.now()
    async with ada.world.write_session(ada.user.id) as session:
        domain = await session.get_one(Domain, ada.user.domain_id)
        domain.address_count += 1
        session.add(domain)
        session.add(
            Address(
                id=ada.world.new_id(),
                local="sales",
                domain_id=ada.user.domain_id,
                shown="sales@example.org",
                user_id=ada.user.id,
                send_as=send_as,
                created_at=now,
                updated_at=now,
            )
        )


async def sent(world: Environment, many: int = 1) -> list[tuple[Any, EmailMessage]]:
    """The answers as a server of another domain takes them: envelope and message."""
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(there.mails) >= many

        await until(come)
        for row in await rows(world, "SELECT DISTINCT submission_id FROM deliveries"):
            await settled(world, row[0])
        return [(mail, parse_message(mail.raw)) for mail in there.mails]


async def posted(world: Environment, to: Client) -> None:
    """Work until somebody here has a letter."""
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(await inbox(to)) == 1

        await until(come)
        for row in await rows(world, "SELECT DISTINCT submission_id FROM deliveries"):
            await settled(world, row[0])


async def test_an_answer_is_what_the_standard_asks_for(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada, html="<p>I am <b>away</b>.</p>", name="Ada")
    await send_unique_message(
        neighbour,
        to="ada+birds@example.org",
        Subject="Re: Lunch?",
        Message_ID="<b@example.com>",
        References="<a@example.com>",
    )
    ((mail, said),) = await sent(world)
    assert (mail.sender, mail.to) == ("<>", ["carol@example.com"])
    assert said["From"] == "Ada <ada+birds@example.org>"
    assert said["To"] == "Carol <carol@example.com>"
    assert said["Subject"] == "Auto: Re: Lunch?"
    assert said["Auto-Submitted"] == "auto-replied"
    assert said["X-Auto-Response-Suppress"] == "All"
    assert said["In-Reply-To"] == "<b@example.com>"
    assert said["References"] == "<a@example.com> <b@example.com>"
    assert said["Message-ID"].endswith("@example.org>")
    assert body_text(said) == "I am away."
    assert body_text(said, "html") == "<p>I am <b>away</b>.</p>"
    (letter,) = await inbox(ada)
    assert letter.subject == "Re: Lunch?"
    states = await rows(world, "SELECT state FROM submissions")
    assert [row[0] for row in states] == ["SENT"]


async def test_a_sender_has_one_answer_in_the_interval(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada, interval="P7D")
    for sender in ("carol@example.com", "Carol+x@EXAMPLE.com", "dave@example.com"):
        await send_unique_message(neighbour, sender)
    clock.tick(days=6, hours=23)
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == ["carol@example.com", "dave@example.com"]
    clock.tick(hours=1)
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == [
        "carol@example.com",
        "dave@example.com",
        "carol@example.com",
    ]


async def test_the_usual_interval_is_a_setting(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada)
    done = await run(
        root, "settingSet", "setting { value }", key="autoreply.interval", value="PT2H"
    )
    assert done["errors"] == []
    await send_unique_message(neighbour)
    clock.tick(hours=1, minutes=59)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 1
    clock.tick(minutes=1)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 2


@pytest.mark.parametrize("given", [
    {"text": "Away still."},
    {"subject": "Away"},
    {"html": "<p>x"},
    {"internalText": "x"},
    {"endsAt": "2031-01-01T00:00:00Z"},
    {"startsAt": "2029-12-31T00:00:00Z"},
])  # fmt: skip
async def test_other_words_or_times_are_another_absence(
    ada: Client, world: Environment, neighbour: Neighbour, given: dict[str, Any]
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    await set_autoreply(ada, name="Ada", interval="P9D")
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 1
    await set_autoreply(ada, **given)
    await send_unique_message(neighbour)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 2


async def test_whoever_switches_it_on_again_is_away_again(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    for many in (1, 2):
        await set_autoreply(ada, enabled=False)
        await send_unique_message(neighbour)
        assert len(await queued_reply_recipients(world)) == many - 1
        await set_autoreply(ada)
        await send_unique_message(neighbour)
        assert len(await queued_reply_recipients(world)) == many


async def test_twenty_deliveries_at_once_have_one_answer(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    neighbours = [await connect(listener.port) for _ in range(20)]
    try:
        await asyncio.gather(*(send_unique_message(each) for each in neighbours))
        assert await queued_reply_recipients(world) == ["carol@example.com"]
        assert len(await inbox(ada)) == 20
    finally:
        for each in neighbours:
            await each.close()
        await listener.close(1)


async def test_a_repeated_delivery_is_answered_once(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    for _ in range(2):
        await deliver_message(
            neighbour, raw_message("x", **TO), ada.address, sender="carol@example.com"
        )
    assert len(await inbox(ada)) == 1
    assert await queued_reply_recipients(world) == ["carol@example.com"]


async def test_what_a_crash_prevented_the_repeat_brings(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    raw = raw_message("x", **TO)
    await deliver_message(neighbour, raw, ada.address, sender="carol@example.com")
    assert await queued_reply_recipients(world) == []  # stored, and not answered
    await set_autoreply(ada)
    await deliver_message(neighbour, raw, ada.address, sender="carol@example.com")
    assert len(await inbox(ada)) == 1
    assert await queued_reply_recipients(world) == ["carol@example.com"]


async def test_no_more_than_the_daily_number_is_answered(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    async with world.write_session(ada.user.id) as session:
        connection = await session.connection()
        await connection.execute(update(Usage).values(used=reply_sender.MAX_REPLIES_PER_DAY - 1))
    await send_unique_message(neighbour, "dave@example.com")
    await send_unique_message(neighbour, "eve@example.com")
    assert await queued_reply_recipients(world) == ["carol@example.com", "dave@example.com"]
    clock.tick(days=1)
    await send_unique_message(neighbour, "eve@example.com")
    assert (await queued_reply_recipients(world))[2:] == ["eve@example.com"]


async def test_mail_of_programs_lists_and_blind_copies_is_not_answered(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour, "")
    await send_unique_message(neighbour, "no-reply@example.com")
    await send_unique_message(neighbour, Auto_Submitted="auto-replied")
    await send_unique_message(neighbour, List_Id="<birds.example.com>")
    await send_unique_message(neighbour, X_Spam_Flag="YES")
    raw = raw_message("x", To="all@example.com")
    await deliver_message(neighbour, raw, ada.address, sender="carol@example.com")
    await send_unique_message(neighbour, "ada@example.org")
    assert await queued_reply_recipients(world) == []
    assert len(await inbox(ada)) == 6  # one is spam, and in Junk


async def test_any_address_of_the_account_may_stand_in_to_or_cc(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await sales(ada)
    alias = await run(root, "domainAliasCreate", "domainAlias { id }", alias="example.net",
                      domain="example.org")  # fmt: skip
    assert alias["errors"] == []
    await set_autoreply(ada)
    for nth, named in enumerate(("Sales@example.org", "sales+x@example.net", "a.da@example.net")):
        raw = raw_message(f"{nth}", To="all@example.com", Cc=named)
        await deliver_message(neighbour, raw, ada.address, sender=f"carol{nth}@example.com")
        assert len(await queued_reply_recipients(world)) == nth + 1
    raw = raw_message("other", To="bob@example.org")
    await deliver_message(neighbour, raw, "sales@example.org", sender="dave@example.com")
    assert len(await queued_reply_recipients(world)) == 3


async def test_only_the_addresses_that_are_named_answer(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await sales(ada)
    await set_autoreply(ada, addresses=["sales@example.org"])
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == []
    await send_unique_message(neighbour, to="sales+spring@example.org")
    ((_, said),) = await sent(world)
    assert said["From"].addresses[0].addr_spec == "sales+spring@example.org"
    given = {"oldDomain": "example.org", "newDomain": "example.net"}
    assert (await run(root, "domainRename", "domain { name }", **given))["errors"] == []
    await send_unique_message(neighbour, "dave@example.com", to="sales@example.net")
    assert (await queued_reply_recipients(world))[1:] == ["dave@example.com"]


async def test_what_is_not_to_be_sent_as_answers_in_the_main_name(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await sales(ada, send_as=False)
    await set_autoreply(ada)
    await send_unique_message(neighbour, to="sales@example.org")
    ((_, said),) = await sent(world)
    assert said["From"].addresses[0].addr_spec == "ada@example.org"


async def test_colleagues_are_told_something_else(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada, html="<p>", internalText="At home, call me.", internalSubject="Home")
    await send_unique_message(neighbour, "bob@example.org")
    await send_unique_message(neighbour)
    ((_, outside),) = await sent(world)
    assert body_text(outside) == "I am away."
    (inside,) = await inbox(bob)
    assert (inside.subject, inside.preview) == ("Home", "At home, call me.")


async def test_two_who_are_away_answer_each_other_once(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    await set_autoreply(bob)
    await send_unique_message(neighbour, "bob@example.org")
    await posted(world, bob)
    assert await queued_reply_recipients(world) == ["bob@example.org"]
    assert len(await inbox(ada)) == 1


async def test_a_suspended_account_receives_and_does_not_answer(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    async with world.write_session(ada.user.id) as session:
        await (await session.connection()).execute(update(User).values(suspended=True))
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == []
    assert len(await inbox(ada)) == 1


async def test_outside_its_time_nothing_is_answered_and_nothing_asked(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock, statements: list[str]
) -> None:
    await send_unique_message(neighbour)
    del statements[:]
    await send_unique_message(neighbour)
    usual = len(statements)
    begins, ends = clock() + timedelta(hours=1), clock() + timedelta(hours=2)
    await set_autoreply(ada, startsAt=begins.isoformat(), endsAt=ends.isoformat())
    for hours in (0, 2):
        clock.tick(hours=hours)
        del statements[:]
        await send_unique_message(neighbour)
        assert len(statements) == usual
    assert await queued_reply_recipients(world) == []
    assert not [text for text in statements if "autoreply_senders" in text]


async def test_an_answer_that_fails_does_not_undo_the_delivery(
    ada: Client, world: Environment, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    await set_autoreply(ada, text="the heron knows")
    await rename_table(world, "autoreply_senders", "away")
    try:
        await send_unique_message(neighbour, "carol@example.com", Subject="a secret")
    finally:
        await rename_table(world, "away", "autoreply_senders")
    assert len(await inbox(ada)) == 1
    (record,) = [each for each in caplog.records if each.message == "not answered"]
    assert record.exc_text
    for secret in ("carol@", "heron", "a secret"):
        assert secret not in record.exc_text


async def test_housekeeping_forgets_who_may_be_answered_again(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    assert (await run_round(world)).autoreply_senders == 0
    clock.tick(days=1)
    assert (await run_round(world)).autoreply_senders == 1
    assert await rows(world, "SELECT * FROM autoreply_senders") == []


async def test_audits_see_what_is_answered(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    given = {"user": {"username": "ada"}, "expires": "2031-01-01T00:00:00Z", "reason": "as ordered"}
    assert (await run(root, "auditCreate", "audit { id }", **given))["errors"] == []
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    copies = await rows(world, "SELECT road, subject FROM audit_copies ORDER BY position")
    assert [row[0] for row in copies] == ["RECEIVED", "SENT"]
    assert copies[1][1].startswith("Auto: Re: Letter")


async def test_mail_of_another_account_here_is_answered(
    ada: Client, bob: Client, world: Environment
) -> None:
    await set_autoreply(ada)
    await submission_create.send_message(
        context(bob), SendRequest(to=[NamedAddress(ADA)], subject="Lunch?", text="Hi.")
    )
    await posted(world, bob)
    (answer,) = await inbox(bob)
    assert (answer.subject, answer.envelope_from) == ("Auto: Re: Lunch?", "")


async def test_who_has_all_encrypted_answers_too(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    done = await run(ada, "userUpdate", set={"pubKey": key_of("Ada"), "encryptMessages": True})
    assert done["errors"] == []
    await set_autoreply(ada)
    await send_unique_message(neighbour, Subject="Lunch?")
    ((_, said),) = await sent(world)
    assert (said["Subject"], body_text(said)) == ("Auto: Re: Lunch?", "I am away.")


@pytest.mark.parametrize(("fields", "many"), [({}, 1), ({"List_Id": "<a.example.com>"}, 0)])
async def test_the_header_of_a_large_message_is_read(
    ada: Client, world: Environment, tmp_path: Path, fields: dict[str, str], many: int
) -> None:
    await set_autoreply(ada)
    path, house = tmp_path / "letter", LocalBackend(world)
    raw = raw_message("Large", body="x\r\n" * 100_000, **TO, **fields)
    await asyncio.to_thread(path.write_bytes, raw)
    (placed,) = await house.deliver(
        path, [await house.accept_recipient(ADA, "")], "carol@example.com"
    )
    assert isinstance(placed, InsertedMessage)
    assert len(await queued_reply_recipients(world)) == many


async def test_while_the_rule_changes_everybody_has_one_answer(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    neighbours = [await connect(listener.port) for _ in range(8)]
    try:
        senders = [f"s{nth}@example.com" for nth in range(8)]
        writing = [send_unique_message(*each) for each in zip(neighbours, senders, strict=True)]
        setting = [set_autoreply(ada, text=f"Away {nth}.") for nth in range(2)]
        await asyncio.gather(*writing[:4], setting[0], *writing[4:], setting[1])
        assert sorted(await queued_reply_recipients(world)) == senders
    finally:
        for each in neighbours:
            await each.close()
        await listener.close(1)
