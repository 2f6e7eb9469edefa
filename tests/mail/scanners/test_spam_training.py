"""Spam training by moves, keywords and learning addresses."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mail.scanners import training_worker
from models.addresses.tables import Address, AddressKind
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import http_response
from tests.support.operations.spam_operations import (
    MESSAGE_MOVE,
    message_id_by_subject,
    move_message_by_subject,
    stored_training_verdicts,
)
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver
from tests.support.time_limits import HANG_SECONDS

pytestmark = pytest.mark.usefixtures("verify_consistency")
MESSAGE_UPDATE = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
messages { id } errors { message } } }"""
LEARNED_RESPONSE = http_response(b'{"success":true}')


@pytest.fixture
async def training_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that accepts training requests like rspamd."""
    async with run_webhook_receiver() as receiver:
        receiver.response = LEARNED_RESPONSE
        change_options(environment, rspamd_learn_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def test_moves_into_and_out_of_junk_are_learned(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    raw = raw_message("Offer")
    await deliver_to(ada, raw)
    await move_message_by_subject(ada, "Offer", specialUse="JUNK")
    assert not training_server.requests  # the move does not wait for training
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert [(request.path, request.raw) for request in training_server.requests] == [
        ("/learnspam", raw)
    ]
    await move_message_by_subject(ada, "Offer", path="INBOX")
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert training_server.requests[1].path == "/learnham"
    assert not await training_worker.try_train_with_next_messages(ada.environment)
    assert len(training_server.requests) == 2


@pytest.mark.usefixtures("training_server")
async def test_moves_between_other_mailboxes_are_not_learned(ada: GraphQLClient) -> None:
    for subject in ("One", "Two"):
        await deliver_to(ada, subject)
    await move_message_by_subject(ada, "One", specialUse="SENT")
    await move_message_by_subject(ada, "Two", specialUse="JUNK")
    await training_worker.try_train_with_next_messages(ada.environment)
    await move_message_by_subject(ada, "Two", specialUse="TRASH")
    assert await stored_training_verdicts(ada.environment) == []
    change_options(ada.environment, rspamd_learn_url="")
    await move_message_by_subject(ada, "One", specialUse="JUNK")
    assert await stored_training_verdicts(ada.environment) == []


async def test_last_move_before_training_is_learned(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    await deliver_to(ada, "Wavering")
    await move_message_by_subject(ada, "Wavering", specialUse="JUNK")
    await move_message_by_subject(ada, "Wavering", path="INBOX")
    assert await stored_training_verdicts(ada.environment) == [False]
    await training_worker.try_train_with_next_messages(ada.environment)
    assert [request.path for request in training_server.requests] == ["/learnham"]


async def test_move_during_training_is_learned_next(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    await deliver_to(ada, "Wavering")
    await move_message_by_subject(ada, "Wavering", specialUse="JUNK")
    request_received, may_respond = asyncio.Event(), asyncio.Event()

    async def respond_when_allowed(_got: Any, writer: asyncio.StreamWriter) -> None:
        request_received.set()
        await may_respond.wait()
        writer.write(LEARNED_RESPONSE)
        await writer.drain()

    training_server.response = respond_when_allowed
    training_task = asyncio.create_task(
        training_worker.try_train_with_next_messages(ada.environment)
    )
    await request_received.wait()
    await move_message_by_subject(ada, "Wavering", path="INBOX")
    may_respond.set()
    assert await training_task
    assert await stored_training_verdicts(ada.environment) == [False]
    await training_worker.try_train_with_next_messages(ada.environment)
    assert [request.path for request in training_server.requests] == ["/learnspam", "/learnham"]


@pytest.mark.parametrize(
    ("keywords", "path"),
    [
        (["$Junk"], "learnspam"),
        (["NonJunk", "x"], "learnham"),
        (["x"], None),
        (["$Junk", "$NotJunk"], None),
    ],
)
async def test_junk_keywords_are_learned(
    ada: GraphQLClient, training_server: WebhookReceiver, keywords: list[str], path: str | None
) -> None:
    await deliver_to(ada, "Marked")
    ids = list((await message_id_by_subject(ada)).values())
    result = await ada(
        MESSAGE_UPDATE, input={"select": {"ids": ids}, "set": {"addFlags": keywords}}
    )
    assert result["messageUpdate"]["errors"] == []
    assert await training_worker.try_train_with_next_messages(ada.environment) is (path is not None)
    assert [request.path for request in training_server.requests] == ([f"/{path}"] if path else [])


@pytest.mark.usefixtures("training_server")
async def test_message_of_other_user_is_not_learned(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await deliver_to(ada, "Hers")
    ids = list((await message_id_by_subject(ada)).values())
    moved = await bob(MESSAGE_MOVE, input={"select": {"ids": ids}, "to": {"specialUse": "JUNK"}})
    assert [error["message"] for error in moved["messageMove"]["errors"]] == [
        f"Message not found: {ids[0]}."
    ]
    marked = await bob(
        MESSAGE_UPDATE, input={"select": {"ids": ids}, "set": {"addFlags": ["$Junk"]}}
    )
    assert [error["message"] for error in marked["messageUpdate"]["errors"]] == [
        f"Message not found: {ids[0]}."
    ]
    assert await stored_training_verdicts(ada.environment) == []


async def test_failed_training_is_retried(
    ada: GraphQLClient, training_server: WebhookReceiver, clock: ManualClock
) -> None:
    await deliver_to(ada, "Later")
    await move_message_by_subject(ada, "Later", specialUse="JUNK")
    training_server.response = http_response(b"", "503 Busy")
    for retry_delay in (60, 120, 240):
        assert not await training_worker.try_train_with_next_messages(ada.environment)
        request_count = len(training_server.requests)
        clock.tick(seconds=retry_delay - 1)
        assert not await training_worker.try_train_with_next_messages(ada.environment)
        assert len(training_server.requests) == request_count
        clock.tick(seconds=1)
    training_server.response = LEARNED_RESPONSE
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert await stored_training_verdicts(ada.environment) == []


async def test_training_ends_after_refusal_or_last_attempt(
    ada: GraphQLClient, training_server: WebhookReceiver, clock: ManualClock
) -> None:
    for subject in ("Refused", "Lost"):
        await deliver_to(ada, subject)
    await move_message_by_subject(ada, "Refused", specialUse="JUNK")
    training_server.response = http_response(
        b'{"error":"all learn conditions denied"}', "404 Not found"
    )
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert await stored_training_verdicts(ada.environment) == []
    await move_message_by_subject(ada, "Lost", specialUse="JUNK")
    training_server.response = http_response(b"", "500 Broken")
    for _ in range(training_worker.MAX_ATTEMPTS):
        assert await stored_training_verdicts(ada.environment) == [True]
        assert not await training_worker.try_train_with_next_messages(ada.environment)
        clock.tick(seconds=training_worker.MAX_RETRY_DELAY.total_seconds())
    assert await stored_training_verdicts(ada.environment) == []


async def test_deleted_message_is_not_learned(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    await deliver_to(ada, "Gone")
    await move_message_by_subject(ada, "Gone", specialUse="JUNK")
    ids = list((await message_id_by_subject(ada)).values())
    result = await ada(
        """mutation ($input: MessageDeleteInput!) { messageDelete(input: $input) {
        errors { message } } }""",
        input={"select": {"ids": ids}, "permanent": True},
    )
    assert result["messageDelete"]["errors"] == []
    assert await stored_training_verdicts(ada.environment) == []
    assert not await training_worker.try_train_with_next_messages(ada.environment)
    assert not training_server.requests


async def test_encrypted_message_is_not_learned(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    content_type = "application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m"
    await deliver_to(
        ada, raw_message("Sealed", body="AAAA", Content_Type=content_type, MIME_Version="1.0")
    )
    await move_message_by_subject(ada, "Sealed", specialUse="JUNK")
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert not training_server.requests
    assert await stored_training_verdicts(ada.environment) == []


async def test_worker_is_woken_by_move_to_junk(
    ada: GraphQLClient, training_server: WebhookReceiver
) -> None:
    worker = asyncio.create_task(training_worker.run_worker(ada.environment))
    try:
        await deliver_to(ada, "Offer")
        await move_message_by_subject(ada, "Offer", specialUse="JUNK")
        async with asyncio.timeout(HANG_SECONDS):
            await training_server.wait_for_requests(1)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    await training_worker.try_train_with_next_messages(ada.environment)


@pytest.mark.usefixtures("training_server")
async def test_move_statement_count_does_not_grow_with_messages(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(message_count: int) -> int:
        for nth in range(message_count):
            await deliver_to(ada, f"Of {message_count}: {nth}")
        ids_by_subject = await message_id_by_subject(ada)
        ids = [
            message_id
            for subject, message_id in ids_by_subject.items()
            if subject.startswith(f"Of {message_count}:")
        ]
        del statements[:]
        moved = await ada(
            MESSAGE_MOVE, input={"select": {"ids": ids}, "to": {"specialUse": "JUNK"}}
        )
        assert int(moved["messageMove"]["movedCount"]) == message_count
        return len(statements)

    await count_statements(2)  # fills the caches
    assert await count_statements(1) == await count_statements(20)
    assert len(await stored_training_verdicts(ada.environment)) == 23


async def create_learning_address(environment: Environment, name: str, kind: AddressKind) -> None:
    address_id = await add_forwarding_address(environment, name)
    async with environment.write_session() as session:
        address = await session.get_one(Address, address_id)
        address.kind = kind


async def test_messages_to_learning_address_are_learned(
    ada: GraphQLClient, training_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    await create_learning_address(ada.environment, "spam", AddressKind.LEARN_SPAM)
    await create_learning_address(ada.environment, "ham", AddressKind.LEARN_HAM)
    raw = raw_message("Report")
    reply_codes = await deliver_for_reply_codes(lmtp_client, raw, "spam@example.org", ada.address)
    assert reply_codes == ["250 2.0.0"] * 2
    assert [(request.path, request.raw) for request in training_server.requests] == [
        ("/learnspam", raw)
    ]
    assert list(await message_id_by_subject(ada)) == ["Report"]
    parts = [raw_message("First"), raw_message("Second")]
    body = b"".join(
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + part + b"\r\n" for part in parts
    )
    content_type = 'multipart/mixed; boundary="b"'
    multipart = (
        raw_message("Two", body="", Content_Type=content_type, MIME_Version="1.0")
        + body
        + b"--b--\r\n"
    )
    assert await deliver_for_reply_codes(lmtp_client, multipart, "ham@example.org") == ["250 2.0.0"]
    assert [(request.path, request.raw) for request in training_server.requests[1:]] == [
        ("/learnham", part) for part in parts
    ]


async def test_learning_address_defers_if_training_fails(
    ada: GraphQLClient, training_server: WebhookReceiver, lmtp_client: SmtpTestClient
) -> None:
    await create_learning_address(ada.environment, "spam", AddressKind.LEARN_SPAM)
    await add_forwarding_address(ada.environment, "abuse", "spam@example.org")
    training_server.response = http_response(b"", "500 Broken")
    raw = raw_message("Report")
    assert await deliver_for_reply_codes(lmtp_client, raw, "spam@example.org") == ["451 4.3.0"]
    training_server.response = LEARNED_RESPONSE
    assert await deliver_for_reply_codes(lmtp_client, raw, "abuse@example.org") == ["250 2.0.0"]
    change_options(ada.environment, rspamd_learn_url="")
    await lmtp_client.run_command("MAIL FROM:<carol@example.net>")
    assert (await lmtp_client.run_command("RCPT TO:<spam@example.org>"))[:9] == "550 5.1.1"


@pytest.mark.usefixtures("ada", "training_server")
async def test_learning_address_needs_training_server(root: GraphQLClient) -> None:
    create = """mutation ($input: AddressCreateInput!) { addressCreate(input: $input) {
    address { kind } errors { message path } } }"""
    address_input = {"address": "spam@example.org", "kind": "LEARN_SPAM"}
    payload = (await root(create, input=address_input))["addressCreate"]
    assert payload == {"address": {"kind": "LEARN_SPAM"}, "errors": []}
    change_options(root.environment, rspamd_learn_url="")
    second_input = {"address": "more@example.org", "kind": "LEARN_SPAM"}
    refused_payload = (await root(create, input=second_input))["addressCreate"]
    assert refused_payload["address"] is None
    assert [error["path"] for error in refused_payload["errors"]] == [["kind"]]
