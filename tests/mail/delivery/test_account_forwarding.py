"""Accounts that forward their mail to SMTP servers on loopback."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.addresses import srs
from mail.smtp.lmtp import LmtpListener
from models.addresses.tables import Address, AddressKind
from models.queue.tables import QueueEntry
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.openpgp_keys import make_public_key
from tests.support.accounts.quota_accounts import load_limit_events
from tests.support.accounts.user_operations import load_user_row, try_create_user, try_update_users
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import (
    FORWARD_TARGET,
    add_forwarding_address,
    set_account_forwarding,
)
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    relay_settings,
    run_queue_worker,
    wait_for_messages,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import DOMAIN_RENAME, run_mutation
from tests.support.operations.rewrite_and_bcc_operations import RECIPIENT_REWRITE_CREATE
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import select_rows
from tests.support.stores.row_counts import count_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def queued_recipients(environment: Environment) -> list[str]:
    statement = QueueEntry.__table__.select().order_by(col(QueueEntry.id))  # type: ignore[attr-defined]
    return [row.recipient for row in await environment.database.read(statement)]


async def test_forwarded_message_is_stored_and_sent_once(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    raw = raw_message("Onward")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        assert await send_transaction(lmtp_client, raw, ada.address) == ACCEPTED_REPLIES
        await wait_for_messages(smtp_server)
        # a repeated delivery
        assert await send_transaction(lmtp_client, raw, ada.address) == ACCEPTED_REPLIES
    (message,) = smtp_server.messages
    assert (message.to, message.raw) == (
        [FORWARD_TARGET],
        b"Delivered-To: ada@example.org\r\n" + raw,
    )
    local_part, _, domain = message.sender.rpartition("@")
    assert (srs.verified_original_sender(ada.environment, local_part), domain) == (
        "carol@far.example",
        "example.org",
    )
    assert [message.subject for message in await load_inbox_rows(ada)] == ["Onward"]
    result = await ada("{ user { limits { forwardsPerDay { used limit source } } } }")
    assert result["user"]["limits"]["forwardsPerDay"] == {
        "used": 1, "limit": 2000, "source": "PLATFORM",
    }  # fmt: skip


async def test_mutual_forwarding_of_local_accounts_stops(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_account_forwarding(ada, bob.address)
    await set_account_forwarding(bob, ada.address)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        assert (
            await send_transaction(lmtp_client, raw_message("Pair"), ada.address)
            == ACCEPTED_REPLIES
        )

        async def has_arrived() -> bool:
            return bool(await load_inbox_rows(bob))

        await poll_until(has_arrived)

        async def is_queue_idle() -> bool:
            pending = await select_rows(
                ada.environment, "SELECT id FROM queue_entries WHERE state = 'PENDING'"
            )
            return not pending

        await poll_until(is_queue_idle)
    assert [len(await load_inbox_rows(client)) for client in (ada, bob)] == [1, 1]
    assert await queued_recipients(ada.environment) == [bob.address]


async def test_over_forward_limit_message_is_stored_and_owner_notified_once(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET, "eve@far.example")
    assert (await try_update_users(root, ada, limits={"forwardsPerDay": 3}))[1] == []
    for number in range(5):
        assert (
            await send_transaction(lmtp_client, raw_message(f"n{number}"), ada.address)
            == ACCEPTED_REPLIES
        )
    assert len(await load_inbox_rows(ada)) == 5
    assert len(await queued_recipients(ada.environment)) == 4
    assert await load_limit_events(ada) == [
        ("FORWARDS", "FULL", 4, 3, False),
        ("FORWARDS", "FULL", 4, 3, True),
    ]
    clock.tick(days=1, seconds=1)
    assert (
        await send_transaction(lmtp_client, raw_message("next day"), ada.address)
        == ACCEPTED_REPLIES
    )
    assert len(await queued_recipients(ada.environment)) == 6
    ((used,),) = await select_rows(
        ada.environment, "SELECT used FROM usages WHERE kind = 'FORWARDS'"
    )
    assert used == 2


async def test_simultaneous_forwards_are_both_counted(
    ada: GraphQLClient, lmtp_listener: LmtpListener, lmtp_client: SmtpTestClient
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    second_connection = await connect_lmtp(lmtp_listener.port)

    await asyncio.gather(
        send_transaction(lmtp_client, raw_message("a"), ada.address),
        send_transaction(second_connection, raw_message("b"), ada.address),
    )
    await second_connection.close()
    ((used,),) = await select_rows(
        ada.environment, "SELECT used FROM usages WHERE kind = 'FORWARDS'"
    )
    assert used == 2


@pytest.mark.parametrize("flag", ["X-Spam-Flag: YES", "X-Spam-Score: 9.9"])
async def test_spam_is_not_forwarded(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, flag: str
) -> None:
    environment = ada.environment
    await set_account_forwarding(ada, FORWARD_TARGET)
    await add_forwarding_address(environment, "list", "eve@far.example")
    await add_forwarding_address(environment, "both", "eve@far.example", ada.address)
    raw = flag.encode() + b"\r\n" + raw_message("Spam")
    rcpt_replies, data_replies = await send_transaction(
        lmtp_client, raw, ada.address, "list@example.org", "both@example.org"
    )
    assert (rcpt_replies, data_replies) == (
        ["250 2.1.5"] * 3,
        ["250 2.0.0", "554 5.7.1", "250 2.0.0"],
    )
    assert await queued_recipients(environment) == []
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, spam_no_forward_score=101), 1)
    )
    assert (await try_update_users(ada, spam={"level": 100}))[1] == []
    assert (await send_transaction(lmtp_client, raw, ada.address, "list@example.org"))[1] == [
        "250 2.0.0"
    ] * 2
    assert sorted(await queued_recipients(environment)) == [FORWARD_TARGET, "eve@far.example"]


async def test_message_blocked_by_account_rule_is_not_forwarded(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await set_account_forwarding(ada, FORWARD_TARGET)
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""
    scope = {"user": {"username": "ada"}}
    arguments = {"scope": scope, "patterns": ["carol@far.example"], "action": "BLOCK"}
    assert (await ada(document, input=arguments))["senderRuleCreate"]["errors"] == []
    assert (
        await send_transaction(lmtp_client, raw_message("Blocked"), ada.address) == ACCEPTED_REPLIES
    )
    assert await queued_recipients(ada.environment) == []


async def test_relay_password_is_masked_and_stored_encrypted(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    target_url = "smtp://me:s3cret@relay.example.com"
    masked_url = "smtp://me:***@relay.example.com"
    await set_account_forwarding(ada, target_url, FORWARD_TARGET)
    result = await ada("{ user { forwardTo } }")
    assert result["user"]["forwardTo"] == [masked_url, FORWARD_TARGET]
    # The masked target keeps its password.
    await set_account_forwarding(ada, FORWARD_TARGET, masked_url)
    assert await send_transaction(lmtp_client, raw_message("Via"), ada.address) == ACCEPTED_REPLIES
    ((relays,),) = await select_rows(
        ada.environment, "SELECT relays FROM users WHERE relays IS NOT NULL"
    )
    assert "s3cret" not in relays
    ((secret,),) = await select_rows(
        ada.environment, "SELECT secret FROM queue_entries WHERE via IS NOT NULL"
    )
    assert secret
    assert "s3cret" not in secret
    log = await select_rows(ada.environment, "SELECT action, count, detail FROM security_events")
    ((action, count, _),) = log
    assert (action, count) == ("FORWARDING_CHANGED", 2)
    for name in ("security_events", "changes", "audit_log"):
        assert "s3cret" not in str(await select_rows(ada.environment, f"SELECT * FROM {name}")), (  # noqa: S608
            name
        )
    _, (error,) = await try_update_users(ada, forwardTo=["smtp://you:***@relay.example.com"])
    assert (field_path(error), error["constraint"], item_index(error)) == (
        ["set", "forwardTo"],
        "SECRET",
        0,
    )


INVALID_TARGETS: list[tuple[str, str]] = [
    ("ada@example.org", "SELF"),
    ("A.D.A+x@example.org", "SELF"),
    ("second@example.org", "SELF"),
    ("nobody", "ADDRESS"),
    ("http://127.0.0.1/", "PRIVATE_NETWORK"),
    ("ftp://x.example", "URL"),
    ("x" * 2049, "LENGTH"),
]


async def test_invalid_forward_target_is_refused(ada: GraphQLClient, root: GraphQLClient) -> None:
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    arguments = {"address": "second@example.org", "user": {"username": "ada"}}
    assert (await root(document, input=arguments))["addressCreate"]["errors"] == []
    for case in each_case(INVALID_TARGETS):
        with case as (target, rule):
            users, (error,) = await try_update_users(
                ada, forwardTo=[FORWARD_TARGET, target], name="X"
            )
            assert (users, field_path(error), item_index(error)) == ([], ["set", "forwardTo"], 1)
            assert error["constraint"] == rule
            result = await ada("{ user { forwardTo name } }")
            assert result["user"] == {"forwardTo": [], "name": None}


async def test_account_is_created_with_targets(root: GraphQLClient) -> None:
    arguments = {
        "username": "eve",
        "forwardTo": [FORWARD_TARGET],
        "limits": {"forwardsPerDay": 7},
        "address": "eve@example.org",
    }
    user, errors = await try_create_user(root, **arguments)
    assert errors == []
    result = await root(
        '{ user(by: {username: "eve"}) { forwardTo limits { forwardsPerDay { limit } } } }'
    )
    assert result["user"] == {
        "forwardTo": [FORWARD_TARGET],
        "limits": {"forwardsPerDay": {"limit": 7}},
    }
    self_forward = {
        **arguments,
        "username": "eva",
        "address": "eva@example.org",
        "forwardTo": ["Eva@example.org"],
    }
    user, (error,) = await try_create_user(root, **self_forward)
    assert (user, error["constraint"], error["path"]) == (None, "SELF", ["forwardTo", "0"])


async def test_forwarded_message_is_encrypted_if_enabled(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    _, (error,) = await try_update_users(ada, encryptForwarded=True)
    assert (error["path"], error["constraint"]) == (["set", "encryptForwarded"], "REQUIRED")
    key = make_public_key("Ada <ada@example.org>")
    await set_account_forwarding(ada, FORWARD_TARGET, openpgpPublicKey=key, encryptForwarded=True)
    _, (error,) = await try_update_users(ada, openpgpPublicKey=None)
    assert (error["code"], error["path"]) == ("CONFLICT", ["set", "openpgpPublicKey"])
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        assert (
            await send_transaction(lmtp_client, raw_message("Sealed", body="hidden"), ada.address)
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(smtp_server)
    (message,) = smtp_server.messages
    assert b"hidden" not in message.raw
    assert b"multipart/encrypted" in message.raw
    (stored,) = await load_inbox_rows(ada)
    assert stored.preview == "hidden"


async def test_only_authorized_users_set_and_search_targets(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    users, (error,) = await try_update_users(bob, ada, forwardTo=[FORWARD_TARGET])
    assert (users, error["code"]) == ([], "NOT_FOUND")
    await set_account_forwarding(ada, FORWARD_TARGET, "x%_y@far.example")
    document = (
        "query ($f: String!) { users(filter: {forward: $f}) { totalCount nodes { username } } }"
    )
    for part, names in (
        ("FAR.ex", ["ada"]),
        ("%_", ["ada"]),
        ("z", []),
        ("dave@far.example", ["ada"]),
    ):
        result = (await root(document, f=part))["users"]
        assert [node["username"] for node in result["nodes"]] == names, part
        assert result["totalCount"] == len(names)
    assert await count_rows(ada.environment, Submission) == 0


async def test_message_rewritten_to_remote_address_is_sent(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    for source, target in (
        ("info@example.org", "in@far.example"),
        ("@theirs.example", "@far.example"),
    ):
        payload, errors = await run_mutation(
            root, RECIPIENT_REWRITE_CREATE, **{"from": source, "to": target}
        )
        assert errors == []
        assert payload["recipientRewrite"]["to"] == target
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        raw = raw_message("Away")
        assert (await send_transaction(lmtp_client, raw, "info@example.org", "Eve@theirs.example"))[
            1
        ] == [
            "250 2.0.0",
            "250 2.0.0",
        ]
        await wait_for_messages(smtp_server, 2)
        messages_by_recipient = {message.to[0]: message for message in smtp_server.messages}
        assert sorted(messages_by_recipient) == ["Eve@far.example", "in@far.example"]
        for message in messages_by_recipient.values():
            assert message.sender.startswith("SRS0=")
        bounce_address = messages_by_recipient["Eve@far.example"].sender
        assert bounce_address.endswith("@theirs.example")
        assert (
            await send_transaction(lmtp_client, raw_message("Bounce"), bounce_address, sender="")
            == ACCEPTED_REPLIES
        )
        await wait_for_messages(smtp_server, 3)
    assert smtp_server.messages[-1].to == ["carol@far.example"]
    steps = await root("""{ addressTrace(address: "info@example.org") { stage output } }""")
    assert steps["addressTrace"] == [{"stage": "RECIPIENT_REWRITE", "output": ["in@far.example"]}]


async def test_targets_and_sender_patterns_follow_a_domain_rename(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(
        environment, "list", "x@old.example", "x@old.example.net", "smtp://old.example"
    )
    _, errors = await try_create_user(root, username="eve", address="eve@old.example")
    assert errors == []
    senders = ["old.example", "*@old.example", "me@old.example", "news*", "very-old.example"]
    targets = ["y@old.example", "y@new.example", "https://old.example/"]
    assert (await try_update_users(root, ada, forwardTo=targets, allowedSenders=senders))[1] == []
    _, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "old.example"}, newName="new.example"
    )
    assert errors == []
    statement = select(col(Address.forward_to)).where(col(Address.kind) == AddressKind.FORWARD)
    ((result,),) = await environment.database.read(statement)
    assert result == [
        "x@new.example",
        "x@old.example.net",
        "smtp://old.example",
    ]
    row = await load_user_row(environment, ada)
    assert row.forward_to == ["y@new.example", "https://old.example/"]
    assert row.allowed_senders == [
        "new.example",
        "*@new.example",
        "me@new.example",
        "news*",
        "very-old.example",
    ]
