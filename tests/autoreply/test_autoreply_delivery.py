"""Automatic replies to mail delivered by LMTP: which mail gets a reply, and what it contains."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from mail.delivery.listener_backend import LocalBackend
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_insert import InsertedMessage
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.accounts.openpgp_keys import make_public_key
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail.parsed_messages import body_text
from tests.support.mail.queued_deliveries import queued_reply_recipients
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    relay_queued_mail,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.autoreply_operations import send_unique_message, set_autoreply
from tests.support.stores.counter_check import select_rows
from tests.support.stores.store_damage import rename_table

pytestmark = pytest.mark.usefixtures("verify_consistency")

ADA = "ada@example.org"
TO_HEADER = {"To": "Ada <ada@example.org>"}


async def add_sales_address(ada: GraphQLClient, *, send_as: bool = True) -> None:
    """Give ada another address."""
    now = ada.environment.now()
    async with ada.environment.write_session(ada.user.id) as session:
        domain = await session.get_one(Domain, ada.user.domain_id)
        domain.address_count += 1
        session.add(domain)
        session.add(
            Address(
                id=ada.environment.new_id(),
                local="sales",
                domain_id=ada.user.domain_id,
                display_address="sales@example.org",
                user_id=ada.user.id,
                send_as=send_as,
                created_at=now,
                updated_at=now,
            )
        )


async def deliver_to_local_user(environment: Environment, user: GraphQLClient) -> None:
    """Run the queue until a local user has a message."""
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):

        async def has_message() -> bool:
            return len(await load_inbox_rows(user)) == 1

        await poll_until(has_message)
        for row in await select_rows(
            environment, "SELECT DISTINCT submission_id FROM queue_entries"
        ):
            await wait_until_tried(environment, row[0])


async def test_reply_follows_rfc_3834(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada, html="<p>I am <b>away</b>.</p>", name="Ada")
    await send_unique_message(
        lmtp_client,
        to="ada+birds@example.org",
        Subject="Re: Lunch?",
        Message_ID="<b@example.com>",
        References="<a@example.com>",
    )
    ((envelope, message),) = await relay_queued_mail(environment)
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
    (received,) = await load_inbox_rows(ada)
    assert received.subject == "Re: Lunch?"
    states = await select_rows(environment, "SELECT state FROM submissions")
    assert [row[0] for row in states] == ["SENT"]


async def test_repeated_delivery_gets_one_reply(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    for _ in range(2):
        await deliver_message(
            lmtp_client, raw_message("x", **TO_HEADER), ada.address, sender="carol@example.com"
        )
    assert len(await load_inbox_rows(ada)) == 1
    assert await queued_reply_recipients(environment) == ["carol@example.com"]


async def test_repeated_delivery_sends_missing_reply(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    raw = raw_message("x", **TO_HEADER)
    await deliver_message(lmtp_client, raw, ada.address, sender="carol@example.com")
    assert await queued_reply_recipients(environment) == []  # stored without a reply
    await set_autoreply(ada)
    await deliver_message(lmtp_client, raw, ada.address, sender="carol@example.com")
    assert len(await load_inbox_rows(ada)) == 1
    assert await queued_reply_recipients(environment) == ["carol@example.com"]


async def test_automatic_list_and_bcc_mail_gets_no_reply(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    await send_unique_message(lmtp_client, "")
    await send_unique_message(lmtp_client, "no-reply@example.com")
    await send_unique_message(lmtp_client, Auto_Submitted="auto-replied")
    await send_unique_message(lmtp_client, List_Id="<birds.example.com>")
    await send_unique_message(lmtp_client, X_Spam_Flag="YES")
    raw = raw_message("x", To="all@example.com")
    await deliver_message(lmtp_client, raw, ada.address, sender="carol@example.com")
    await send_unique_message(lmtp_client, "ada@example.org")
    assert await queued_reply_recipients(environment) == []
    assert len(await load_inbox_rows(ada)) == 6  # one is spam, and in Junk


async def test_any_own_address_in_to_or_cc_gets_reply(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_sales_address(ada)
    alias = await execute_mutation(
        root,
        "aliasDomainCreate",
        "aliasDomain { id }",
        alias="example.net",
        domain={"name": "example.org"},
    )
    assert alias["errors"] == []
    await set_autoreply(ada)
    for nth, cc_address in enumerate(
        ("Sales@example.org", "sales+x@example.net", "a.da@example.net")
    ):
        raw = raw_message(f"{nth}", To="all@example.com", Cc=cc_address)
        await deliver_message(lmtp_client, raw, ada.address, sender=f"carol{nth}@example.com")
        assert len(await queued_reply_recipients(environment)) == nth + 1
    raw = raw_message("other", To="bob@example.org")
    await deliver_message(lmtp_client, raw, "sales@example.org", sender="dave@example.com")
    assert len(await queued_reply_recipients(environment)) == 3


async def test_only_configured_addresses_reply(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_sales_address(ada)
    await set_autoreply(ada, addresses=["sales@example.org"])
    await send_unique_message(lmtp_client)
    assert await queued_reply_recipients(environment) == []
    await send_unique_message(lmtp_client, to="sales+spring@example.org")
    ((_, message),) = await relay_queued_mail(environment)
    assert message["From"].addresses[0].addr_spec == "sales+spring@example.org"
    arguments = {"domain": {"name": "example.org"}, "newName": "example.net"}
    assert (await execute_mutation(root, "domainRename", "domain { name }", **arguments))[
        "errors"
    ] == []
    await send_unique_message(lmtp_client, "dave@example.com", to="sales@example.net")
    assert (await queued_reply_recipients(environment))[1:] == ["dave@example.com"]


async def test_reply_uses_main_address_without_send_as(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_sales_address(ada, send_as=False)
    await set_autoreply(ada)
    await send_unique_message(lmtp_client, to="sales@example.org")
    ((_, message),) = await relay_queued_mail(environment)
    assert message["From"].addresses[0].addr_spec == "ada@example.org"


async def test_internal_senders_get_internal_text(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada, html="<p>", internalText="At home, call me.", internalSubject="Home")
    await send_unique_message(lmtp_client, "bob@example.org")
    await send_unique_message(lmtp_client)
    ((_, outside),) = await relay_queued_mail(environment)
    assert body_text(outside) == "I am away."
    (inside,) = await load_inbox_rows(bob)
    assert (inside.subject, inside.preview) == ("Home", "At home, call me.")


async def test_two_autoreplies_do_not_loop(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    await set_autoreply(bob)
    await send_unique_message(lmtp_client, "bob@example.org")
    await deliver_to_local_user(environment, bob)
    assert await queued_reply_recipients(environment) == ["bob@example.org"]
    assert len(await load_inbox_rows(ada)) == 1


async def test_suspended_account_receives_without_reply(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    async with environment.write_session(ada.user.id) as session:
        await (await session.connection()).execute(update(User).values(suspended=True))
    await send_unique_message(lmtp_client)
    assert await queued_reply_recipients(environment) == []
    assert len(await load_inbox_rows(ada)) == 1


async def test_inactive_autoreply_needs_no_extra_statements(
    ada: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    clock: ManualClock,
    statements: list[str],
) -> None:
    await send_unique_message(lmtp_client)
    del statements[:]
    await send_unique_message(lmtp_client)
    expected = len(statements)
    starts_at, ends_at = clock() + timedelta(hours=1), clock() + timedelta(hours=2)
    await set_autoreply(ada, startsAt=starts_at.isoformat(), endsAt=ends_at.isoformat())
    for hours in (0, 2):
        clock.tick(hours=hours)
        del statements[:]
        await send_unique_message(lmtp_client)
        assert len(statements) == expected
    assert await queued_reply_recipients(environment) == []
    assert not [text for text in statements if "autoreply_senders" in text]


async def test_failed_reply_does_not_undo_delivery(
    ada: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await set_autoreply(ada, text="the heron knows")
    await rename_table(environment, "autoreply_senders", "away")
    try:
        await send_unique_message(lmtp_client, "carol@example.com", Subject="a secret")
    finally:
        await rename_table(environment, "away", "autoreply_senders")
    assert len(await load_inbox_rows(ada)) == 1
    (record,) = [
        log_record
        for log_record in caplog.records
        if log_record.message == "Automatic reply not sent"
    ]
    assert record.exc_text
    for secret in ("carol@", "heron", "a secret"):
        assert secret not in record.exc_text


async def test_reply_is_copied_to_legal_hold(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    arguments = {
        "user": {"username": "ada"},
        "expiresAt": "2031-01-01T00:00:00Z",
        "reason": "as ordered",
    }
    assert (await execute_mutation(root, "legalHoldCreate", "legalHold { id }", **arguments))[
        "errors"
    ] == []
    await set_autoreply(ada)
    await send_unique_message(lmtp_client)
    copies = await select_rows(
        environment, "SELECT origin, subject FROM held_copies ORDER BY position"
    )
    assert [row[0] for row in copies] == ["RECEIVED", "SENT"]
    assert copies[1][1].startswith("Auto: Re: Letter")


async def test_mail_of_local_sender_gets_reply(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await set_autoreply(ada)
    await submission_create.compose_and_queue_message(
        client_context(bob), SendRequest(to=[NamedAddress(ADA)], subject="Lunch?", text="Hi.")
    )
    await deliver_to_local_user(environment, bob)
    (reply,) = await load_inbox_rows(bob)
    assert (reply.subject, reply.envelope_from) == ("Auto: Re: Lunch?", "")


async def test_account_with_encrypted_mail_replies(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    answer = await execute_mutation(
        ada, "userUpdate", set={"openpgpPublicKey": make_public_key("Ada"), "encryptMessages": True}
    )
    assert answer["errors"] == []
    await set_autoreply(ada)
    await send_unique_message(lmtp_client, Subject="Lunch?")
    ((_, message),) = await relay_queued_mail(environment)
    assert (message["Subject"], body_text(message)) == ("Auto: Re: Lunch?", "I am away.")


@pytest.mark.parametrize(
    ("fields", "expected_count"), [({}, 1), ({"List_Id": "<a.example.com>"}, 0)]
)
async def test_header_of_large_message_is_checked(
    ada: GraphQLClient,
    environment: Environment,
    tmp_path: Path,
    fields: dict[str, str],
    expected_count: int,
) -> None:
    await set_autoreply(ada)
    path, backend = tmp_path / "letter", LocalBackend(environment)
    raw = raw_message("Large", body="x\r\n" * 100_000, **TO_HEADER, **fields)
    await asyncio.to_thread(path.write_bytes, raw)
    (inserted,) = await backend.deliver(
        path, [await backend.accept_recipient(ADA, "")], "carol@example.com"
    )
    assert isinstance(inserted, InsertedMessage)
    assert len(await queued_reply_recipients(environment)) == expected_count
