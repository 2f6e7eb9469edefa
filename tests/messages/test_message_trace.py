"""Test the delivery trace: search by queue ID, Message-ID and recipient, and who can read it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.delivery.listener_backend import LocalBackend
from mail.maintenance import housekeeping
from mail.mime.header_encoding import NamedAddress
from mail.storage import message_trace
from models.runtime.environment import CommittedOptions, Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.user_operations import (
    make_admin_of_domain,
    try_create_user,
    try_update_users,
)
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_for_messages,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.operations.trace_operations import (
    DELIVERY_TRACE_QUERY,
    message_id_header,
    trace_events,
    trace_steps,
)
from tests.support.stores.counter_check import select_rows
from tests.support.stores.recorded_statements import record_sql

CAROL = "carol@example.com"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def deliver_by_lmtp(lmtp_client: SmtpTestClient, raw: bytes, *recipients: str) -> list[str]:
    """Deliver by LMTP. Return the queue IDs of the replies, or the replies that refused."""
    await lmtp_client.start_data(*recipients, sender=CAROL)
    lmtp_client.send_bytes(raw + b".\r\n")
    replies = [await lmtp_client.read_reply() for _ in recipients]
    return [reply.removeprefix("250 2.0.0 OK: queued as ") for reply in replies]


async def test_queue_id_of_reply_finds_all_trace_steps(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    raw = raw_message("Steps")
    assert bob.address == "bob@example.org"
    queue_id, second_queue_id = await deliver_by_lmtp(
        lmtp_client, raw, ada.address, "B.ob+x@example.org"
    )
    assert queue_id == second_queue_id
    steps = await trace_steps(root, queueId=queue_id, recipient="bob@example.org")
    (_, _, _, stored_detail) = steps.pop(2)
    assert stored_detail == "uid 1"
    assert steps == [
        ("MTA", "ACCEPTED", "B.ob+x@example.org", "from <carol@example.com>"),
        ("SPAM", "CLASSIFIED", "B.ob+x@example.org", "no spam, score 0, by SCORE"),
    ]
    events = await trace_events(root, queueId=queue_id)
    assert sorted(events) == [
        "ACCEPTED",
        "ACCEPTED",
        "CLASSIFIED",
        "CLASSIFIED",
        "STORED",
        "STORED",
    ]
    message_id = message_id_header(raw)
    assert await trace_steps(root, messageIdHeader=message_id) == await trace_steps(
        root, messageIdHeader=message_id.strip("<>")
    )
    assert len(await trace_steps(root, messageIdHeader=message_id)) == 6
    assert await trace_steps(root, messageIdHeader="<other@example.com>") == []


async def test_trace_shows_refused_forwarded_and_dropped_recipients(
    ada: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    environment = ada.environment
    await add_forwarding_address(environment, "list", "dave@far.example")
    await add_forwarding_address(environment, "drop")
    assert (await try_update_users(ada, forwardTo=["eve@far.example"]))[1] == []
    recipients = (ada.address, "list@example.org", "drop@example.org")
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        queue_id, *_ = await deliver_by_lmtp(lmtp_client, raw_message("On"), *recipients)
        await wait_for_messages(server, 2)
        keys = await select_rows(environment, "SELECT id FROM submissions")
        for (key,) in keys:
            await wait_until_tried(environment, key)
    events_by_address: dict[str, list[str]] = {address: [] for address in recipients}
    others: list[str] = []
    for _, event, address, detail in await trace_steps(root, queueId=queue_id):
        events_by_address.get(address, others).append(
            event if detail is None else f"{event}: {detail}"
        )
    assert [event_text.partition(":")[0] for event_text in events_by_address[ada.address]] == [
        "ACCEPTED", "CLASSIFIED", "STORED", "FORWARDED",
    ]  # fmt: skip
    assert events_by_address["list@example.org"][1:] == ["FORWARDED: to dave@far.example"]
    assert events_by_address["drop@example.org"][1:] == ["DISCARDED"]
    other_events = sorted(event_text.partition(":")[0] for event_text in others)
    assert other_events == ["QUEUED", "QUEUED", "RELAYED", "RELAYED"]
    assert any("attempts 1" in event_text and "answer 250" in event_text for event_text in others)
    spam = b"X-Spam-Flag: YES\r\n" + raw_message("Spam")
    refused, *_ = await deliver_by_lmtp(lmtp_client, spam, "list@example.org")
    assert refused.startswith("554 5.7.1")
    steps = await trace_steps(root, messageIdHeader=message_id_header(spam))
    assert [event for _, event, _, _ in steps] == ["ACCEPTED", "REFUSED"]
    assert steps[1][3] == "Held: Spam is not forwarded."


async def test_trace_shows_recipients_rejected_at_rcpt(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    raw = raw_message("Some")
    domain_admin = await make_admin_of_domain(root, domain="example.org")
    await deliver_by_lmtp(lmtp_client, raw_message("Filling"), bob.address)
    assert (await try_update_users(root, bob, quota=1))[1] == []
    lmtp_client.send_bytes(f"MAIL FROM:<{CAROL}>\r\n".encode())
    for recipient in ("nobody@example.org", ada.address, bob.address, "x@far.example"):
        lmtp_client.send_bytes(f"RCPT TO:<{recipient}>\r\n".encode())
    lmtp_client.send_bytes(b"DATA\r\n")
    replies = [await lmtp_client.read_reply() for _ in range(6)]
    assert [reply[:3] for reply in replies] == ["250", "550", "250", "452", "550", "354"]
    lmtp_client.send_bytes(raw + b".\r\n")
    queue_id = (await lmtp_client.read_reply()).removeprefix("250 2.0.0 OK: queued as ")
    rejected = [
        ("nobody@example.org", "550 5.1.1 Recipient address rejected: User unknown"),
        ("bob@example.org", "452 4.2.2 Mailbox full"),
        ("x@far.example", "550 5.1.1 Recipient address rejected: User unknown"),
    ]
    for arguments in ({"queueId": queue_id}, {"messageIdHeader": message_id_header(raw)}):
        root_steps = await trace_steps(root, **arguments)
        assert [step[2:] for step in root_steps if step[1] == "REJECTED"] == rejected
        admin_steps = await trace_steps(domain_admin, **arguments)
        assert [step[2:] for step in admin_steps if step[1] == "REJECTED"] == rejected[:2]
        assert [event for _, event, address, _ in root_steps if address == ada.address] == [
            "ACCEPTED", "CLASSIFIED", "STORED",
        ]  # fmt: skip


async def test_trace_shows_spam_verdict_before_script_refusal(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'require "reject"; reject "Not this.";')
    raw = raw_message("No")
    refused, _ = await deliver_by_lmtp(lmtp_client, raw, ada.address, bob.address)
    assert refused == "550 5.7.1 Not this."
    (verdict, refusal) = (
        await trace_steps(root, messageIdHeader=message_id_header(raw), recipient=ada.address)
    )[1:]
    assert verdict[1:] == ("CLASSIFIED", ada.address, "no spam, score 0, by SCORE")
    assert refusal[1:] == ("REFUSED", ada.address, "Rejected: Not this.")


async def test_trace_of_sent_message_is_found_by_queue_id_and_message_id(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        submission_id = await queue_message(
            ada, NamedAddress("bob@example.org"), NamedAddress("carol@example.net")
        )
        await wait_until_tried(environment, submission_id)
    query = select(col(Submission.queue_id)).where(col(Submission.id) == submission_id)
    ((queue_id,),) = await environment.database.read(query)
    ((message_id,),) = await select_rows(
        environment, "SELECT message_id FROM messages WHERE user_id = :u", u=bob.user.id
    )
    for arguments in ({"queueId": queue_id}, {"messageIdHeader": message_id}):
        events = await trace_events(root, **arguments)
        assert sorted(events) == [
            "ACCEPTED", "CLASSIFIED", "DELIVERED", "QUEUED", "RELAYED", "STORED",
        ]  # fmt: skip


async def test_trace_is_limited_to_domains_of_admin(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "list", "dave@far.example")
    _, errors = await try_create_user(root, username="eve", address="eve@other.example")
    assert errors == []
    domain_admin = await make_admin_of_domain(root, domain="other.example")
    backend = LocalBackend(environment)
    recipients = ("eve@other.example", ada.address, "list@example.org")
    raw = raw_message("Both")
    await backend.deliver(
        raw, [await backend.accept_recipient(recipient, CAROL) for recipient in recipients], CAROL
    )
    admin_steps = await trace_steps(domain_admin, messageIdHeader=message_id_header(raw))
    assert {address for _, _, address, _ in admin_steps} == {"eve@other.example"}
    assert len(admin_steps) == 3
    root_steps = await trace_steps(root, messageIdHeader=message_id_header(raw))
    assert {"QUEUED", "PENDING"} <= {event for _, event, _, _ in root_steps}
    answer = await ada.execute(
        DELIVERY_TRACE_QUERY, filter={"messageIdHeader": message_id_header(raw)}
    )
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    submission_id = await queue_message(ada, NamedAddress("carol@example.net"))
    ((queue_id,),) = await select_rows(
        environment, "SELECT queue_id FROM submissions WHERE id = :k", k=submission_id
    )
    assert await trace_steps(domain_admin, queueId=queue_id) == []


async def test_invalid_trace_conditions_are_refused(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"queueId": "a", "messageIdHeader": "b"},
            "`queueId` and `messageIdHeader` can't be combined.",
        ),
        ({"queueId": " "}, "Must have from 1 to 1000 characters."),
        ({"messageIdHeader": "x" * 1001}, "Must have from 1 to 1000 characters."),
        (
            {"queueId": "a", "recipient": "x" * 1001},
            "`recipient` must be an address or a domain of at most 1000 characters.",
        ),
    ]
    for case in each_case(cases):
        with case as (conditions, expected):
            (error,) = (await root.execute(DELIVERY_TRACE_QUERY, filter=conditions))["errors"]
            assert (error["message"], error["extensions"]["code"]) == (expected, "BAD_USER_INPUT")


async def test_odd_trace_arguments_find_nothing(root: GraphQLClient) -> None:
    cases: list[str] = ["*", "<>", "%", "\U0001f4a9"]
    for case in each_case(cases):
        with case as odd_text:
            for name in ("queueId", "messageIdHeader"):
                assert await trace_steps(root, **{name: f"x{odd_text}"}) == []
            assert await trace_steps(root, queueId="x", recipient=odd_text) == []


async def test_odd_message_id_header_does_not_prevent_delivery(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    backend = LocalBackend(environment)
    for message_id in ("<" + "y" * 900 + "@x>", "<a\0b@x>", "no brackets"):
        raw = f"Message-ID: {message_id}\r\n\r\nbody {len(message_id)}".encode()
        (delivered,) = await backend.deliver(
            raw, [await backend.accept_recipient(ada.address, "")], ""
        )
        assert not isinstance(delivered, BaseException)
    assert len(await trace_events(root, messageIdHeader="<" + "y" * 900 + "@x>")) == 3
    steps = await select_rows(environment, "SELECT id FROM delivery_trace_steps")
    assert len(steps) == 9


async def test_trace_can_be_disabled_and_old_steps_are_deleted(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    backend = LocalBackend(environment)

    async def deliver_and_count_steps(subject: str) -> int:
        raw = raw_message(subject)
        await backend.deliver(raw, [await backend.accept_recipient(ada.address, CAROL)], CAROL)
        await queue_message(ada)
        await message_trace.write_pending_trace_steps(environment)
        return len(await select_rows(environment, "SELECT id FROM delivery_trace_steps"))

    assert await deliver_and_count_steps("a") == 5
    clock.tick(days=8)
    assert (await housekeeping.run_housekeeping_round(environment, sweep=False)).steps == 5
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, message_trace_retention=timedelta(0)), 1)
    )
    assert await deliver_and_count_steps("b") == 0


async def test_trace_buffer_is_bounded_and_lost_steps_are_counted(
    ada: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_trace, "MAX_WAITING", 2)
    backend = LocalBackend(environment)
    lost_before = message_trace.LOST_STEPS.value()
    for subject in ("a", "b"):
        await backend.deliver(
            raw_message(subject), [await backend.accept_recipient(ada.address, CAROL)], CAROL
        )
    await message_trace.write_pending_trace_steps(environment)
    assert len(await select_rows(environment, "SELECT id FROM delivery_trace_steps")) == 2
    assert message_trace.LOST_STEPS.value() - lost_before == 4


async def test_trace_is_written_after_delivery(
    ada: GraphQLClient, environment: Environment
) -> None:
    backend = LocalBackend(environment)
    statements = record_sql(environment.database, with_background=True)
    recipients = [await backend.accept_recipient(ada.address, CAROL)]
    await backend.deliver(raw_message("a"), recipients, CAROL)
    assert not [statement for statement in statements if "delivery_trace_steps" in statement]
    await message_trace.write_pending_trace_steps(environment)
    (statement,) = [statement for statement in statements if "delivery_trace_steps" in statement]
    assert statement.startswith("INSERT")
