"""Test automatic replies to mail delivered by LMTP: when, what and how often."""

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
TO_HEADER = {"To": "Ada <ada@example.org>"}


async def add_sales_address(ada: Client, *, send_as: bool = True) -> None:
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


async def relay_queued_mail(
    world: Environment, expected_count: int = 1
) -> list[tuple[Any, EmailMessage]]:
    """Deliver the queue to a test server. Return envelope and message of each mail."""
    async with listening(Server()) as server, working(world, relay(server)):

        async def has_received_all() -> bool:
            return len(server.mails) >= expected_count

        await until(has_received_all)
        for row in await rows(world, "SELECT DISTINCT submission_id FROM deliveries"):
            await settled(world, row[0])
        return [(envelope, parse_message(envelope.raw)) for envelope in server.mails]


async def deliver_to_local_user(world: Environment, user: Client) -> None:
    """Run the queue until a local user has a message."""
    async with listening(Server()) as server, working(world, relay(server)):

        async def has_message() -> bool:
            return len(await inbox(user)) == 1

        await until(has_message)
        for row in await rows(world, "SELECT DISTINCT submission_id FROM deliveries"):
            await settled(world, row[0])


async def test_reply_follows_rfc_3834(
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
    ((envelope, message),) = await relay_queued_mail(world)
    assert (envelope.sender, envelope.to) == ("<>", ["carol@example.com"])
    assert message["From"] == "Ada <ada+birds@example.org>"
    assert message["To"] == "Carol <carol@example.com>"
    assert message["Subject"] == "Auto: Re: Lunch?"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["X-Auto-Response-Suppress"] == "All"
    assert message["In-Reply-To"] == "<b@example.com>"
    assert message["References"] == "<a@example.com> <b@example.com>"
    assert message["Message-ID"].endswith("@example.org>")
    assert body_text(message) == "I am away."
    assert body_text(message, "html") == "<p>I am <b>away</b>.</p>"
    (received,) = await inbox(ada)
    assert received.subject == "Re: Lunch?"
    states = await rows(world, "SELECT state FROM submissions")
    assert [row[0] for row in states] == ["SENT"]


async def test_sender_gets_one_reply_per_interval(
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


async def test_default_interval_is_a_setting(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada)
    answer = await run(
        root, "settingSet", "setting { value }", key="autoreply.interval", value="PT2H"
    )
    assert answer["errors"] == []
    await send_unique_message(neighbour)
    clock.tick(hours=1, minutes=59)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 1
    clock.tick(minutes=1)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 2


@pytest.mark.parametrize("arguments", [
    {"text": "Away still."},
    {"subject": "Away"},
    {"html": "<p>x"},
    {"internalText": "x"},
    {"endsAt": "2031-01-01T00:00:00Z"},
    {"startsAt": "2029-12-31T00:00:00Z"},
])  # fmt: skip
async def test_changed_text_or_time_replies_again(
    ada: Client, world: Environment, neighbour: Neighbour, arguments: dict[str, Any]
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    await set_autoreply(ada, name="Ada", interval="P9D")
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 1
    await set_autoreply(ada, **arguments)
    await send_unique_message(neighbour)
    await send_unique_message(neighbour)
    assert len(await queued_reply_recipients(world)) == 2


async def test_reenabled_autoreply_replies_again(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    for expected_count in (1, 2):
        await set_autoreply(ada, enabled=False)
        await send_unique_message(neighbour)
        assert len(await queued_reply_recipients(world)) == expected_count - 1
        await set_autoreply(ada)
        await send_unique_message(neighbour)
        assert len(await queued_reply_recipients(world)) == expected_count


async def test_concurrent_deliveries_get_one_reply(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    connections = [await connect(listener.port) for _ in range(20)]
    try:
        await asyncio.gather(*(send_unique_message(connection) for connection in connections))
        assert await queued_reply_recipients(world) == ["carol@example.com"]
        assert len(await inbox(ada)) == 20
    finally:
        for connection in connections:
            await connection.close()
        await listener.close(1)


async def test_repeated_delivery_gets_one_reply(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    for _ in range(2):
        await deliver_message(
            neighbour, raw_message("x", **TO_HEADER), ada.address, sender="carol@example.com"
        )
    assert len(await inbox(ada)) == 1
    assert await queued_reply_recipients(world) == ["carol@example.com"]


async def test_repeated_delivery_sends_missing_reply(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    raw = raw_message("x", **TO_HEADER)
    await deliver_message(neighbour, raw, ada.address, sender="carol@example.com")
    assert await queued_reply_recipients(world) == []  # stored without a reply
    await set_autoreply(ada)
    await deliver_message(neighbour, raw, ada.address, sender="carol@example.com")
    assert len(await inbox(ada)) == 1
    assert await queued_reply_recipients(world) == ["carol@example.com"]


async def test_replies_over_daily_limit_are_not_sent(
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


async def test_automatic_list_and_bcc_mail_gets_no_reply(
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


async def test_any_own_address_in_to_or_cc_gets_reply(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await add_sales_address(ada)
    alias = await run(root, "domainAliasCreate", "domainAlias { id }", alias="example.net",
                      domain="example.org")  # fmt: skip
    assert alias["errors"] == []
    await set_autoreply(ada)
    for nth, cc_address in enumerate(
        ("Sales@example.org", "sales+x@example.net", "a.da@example.net")
    ):
        raw = raw_message(f"{nth}", To="all@example.com", Cc=cc_address)
        await deliver_message(neighbour, raw, ada.address, sender=f"carol{nth}@example.com")
        assert len(await queued_reply_recipients(world)) == nth + 1
    raw = raw_message("other", To="bob@example.org")
    await deliver_message(neighbour, raw, "sales@example.org", sender="dave@example.com")
    assert len(await queued_reply_recipients(world)) == 3


async def test_only_configured_addresses_reply(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await add_sales_address(ada)
    await set_autoreply(ada, addresses=["sales@example.org"])
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == []
    await send_unique_message(neighbour, to="sales+spring@example.org")
    ((_, message),) = await relay_queued_mail(world)
    assert message["From"].addresses[0].addr_spec == "sales+spring@example.org"
    arguments = {"oldDomain": "example.org", "newDomain": "example.net"}
    assert (await run(root, "domainRename", "domain { name }", **arguments))["errors"] == []
    await send_unique_message(neighbour, "dave@example.com", to="sales@example.net")
    assert (await queued_reply_recipients(world))[1:] == ["dave@example.com"]


async def test_reply_uses_main_address_without_send_as(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await add_sales_address(ada, send_as=False)
    await set_autoreply(ada)
    await send_unique_message(neighbour, to="sales@example.org")
    ((_, message),) = await relay_queued_mail(world)
    assert message["From"].addresses[0].addr_spec == "ada@example.org"


async def test_internal_senders_get_internal_text(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada, html="<p>", internalText="At home, call me.", internalSubject="Home")
    await send_unique_message(neighbour, "bob@example.org")
    await send_unique_message(neighbour)
    ((_, outside),) = await relay_queued_mail(world)
    assert body_text(outside) == "I am away."
    (inside,) = await inbox(bob)
    assert (inside.subject, inside.preview) == ("Home", "At home, call me.")


async def test_two_autoreplies_do_not_loop(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    await set_autoreply(bob)
    await send_unique_message(neighbour, "bob@example.org")
    await deliver_to_local_user(world, bob)
    assert await queued_reply_recipients(world) == ["bob@example.org"]
    assert len(await inbox(ada)) == 1


async def test_suspended_account_receives_without_reply(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await set_autoreply(ada)
    async with world.write_session(ada.user.id) as session:
        await (await session.connection()).execute(update(User).values(suspended=True))
    await send_unique_message(neighbour)
    assert await queued_reply_recipients(world) == []
    assert len(await inbox(ada)) == 1


async def test_inactive_autoreply_needs_no_extra_statements(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock, statements: list[str]
) -> None:
    await send_unique_message(neighbour)
    del statements[:]
    await send_unique_message(neighbour)
    expected = len(statements)
    starts_at, ends_at = clock() + timedelta(hours=1), clock() + timedelta(hours=2)
    await set_autoreply(ada, startsAt=starts_at.isoformat(), endsAt=ends_at.isoformat())
    for hours in (0, 2):
        clock.tick(hours=hours)
        del statements[:]
        await send_unique_message(neighbour)
        assert len(statements) == expected
    assert await queued_reply_recipients(world) == []
    assert not [text for text in statements if "autoreply_senders" in text]


async def test_failed_reply_does_not_undo_delivery(
    ada: Client, world: Environment, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    await set_autoreply(ada, text="the heron knows")
    await rename_table(world, "autoreply_senders", "away")
    try:
        await send_unique_message(neighbour, "carol@example.com", Subject="a secret")
    finally:
        await rename_table(world, "away", "autoreply_senders")
    assert len(await inbox(ada)) == 1
    (record,) = [
        log_record for log_record in caplog.records if log_record.message == "not answered"
    ]
    assert record.exc_text
    for secret in ("carol@", "heron", "a secret"):
        assert secret not in record.exc_text


async def test_housekeeping_deletes_expired_senders(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    assert (await run_round(world)).autoreply_senders == 0
    clock.tick(days=1)
    assert (await run_round(world)).autoreply_senders == 1
    assert await rows(world, "SELECT * FROM autoreply_senders") == []


async def test_reply_is_copied_to_audit(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    arguments = {
        "user": {"username": "ada"},
        "expires": "2031-01-01T00:00:00Z",
        "reason": "as ordered",
    }
    assert (await run(root, "auditCreate", "audit { id }", **arguments))["errors"] == []
    await set_autoreply(ada)
    await send_unique_message(neighbour)
    copies = await rows(world, "SELECT road, subject FROM audit_copies ORDER BY position")
    assert [row[0] for row in copies] == ["RECEIVED", "SENT"]
    assert copies[1][1].startswith("Auto: Re: Letter")


async def test_mail_of_local_sender_gets_reply(
    ada: Client, bob: Client, world: Environment
) -> None:
    await set_autoreply(ada)
    await submission_create.send_message(
        context(bob), SendRequest(to=[NamedAddress(ADA)], subject="Lunch?", text="Hi.")
    )
    await deliver_to_local_user(world, bob)
    (reply,) = await inbox(bob)
    assert (reply.subject, reply.envelope_from) == ("Auto: Re: Lunch?", "")


async def test_account_with_encrypted_mail_replies(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    answer = await run(ada, "userUpdate", set={"pubKey": key_of("Ada"), "encryptMessages": True})
    assert answer["errors"] == []
    await set_autoreply(ada)
    await send_unique_message(neighbour, Subject="Lunch?")
    ((_, message),) = await relay_queued_mail(world)
    assert (message["Subject"], body_text(message)) == ("Auto: Re: Lunch?", "I am away.")


@pytest.mark.parametrize(
    ("fields", "expected_count"), [({}, 1), ({"List_Id": "<a.example.com>"}, 0)]
)
async def test_header_of_large_message_is_checked(
    ada: Client, world: Environment, tmp_path: Path, fields: dict[str, str], expected_count: int
) -> None:
    await set_autoreply(ada)
    path, backend = tmp_path / "letter", LocalBackend(world)
    raw = raw_message("Large", body="x\r\n" * 100_000, **TO_HEADER, **fields)
    await asyncio.to_thread(path.write_bytes, raw)
    (inserted,) = await backend.deliver(
        path, [await backend.accept_recipient(ADA, "")], "carol@example.com"
    )
    assert isinstance(inserted, InsertedMessage)
    assert len(await queued_reply_recipients(world)) == expected_count


async def test_concurrent_changes_send_one_reply_per_sender(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    connections = [await connect(listener.port) for _ in range(8)]
    try:
        senders = [f"s{nth}@example.com" for nth in range(8)]
        deliveries = [send_unique_message(*item) for item in zip(connections, senders, strict=True)]
        changes = [set_autoreply(ada, text=f"Away {nth}.") for nth in range(2)]
        await asyncio.gather(*deliveries[:4], changes[0], *deliveries[4:], changes[1])
        assert sorted(await queued_reply_recipients(world)) == senders
    finally:
        for item in connections:
            await item.close()
        await listener.close(1)
