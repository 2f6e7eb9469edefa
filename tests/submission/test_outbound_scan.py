"""Test the scan of outgoing mail: spam and viruses are refused for every kind of submission."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from graph.types import global_ids
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.smtp.submission_backend import SmtpSubmitter
from models.errors import Forbidden, ServiceUnavailable
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.scanner_servers import (
    http_response,
    reply_as_clamd,
    rspamd_reply,
)
from tests.support.operations.message_sources import save_draft
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver

MESSAGE_SEND = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
submissions { id } messages { id } errors { __typename code message } } }"""
SEND_INPUT: dict[str, Any] = {
    "to": [{"address": "carol@example.net"}],
    "subject": "Hi",
    "text": "Yo",
}


@pytest.fixture
async def rspamd(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that answers like Rspamd."""
    async with run_webhook_receiver() as receiver:
        change_options(
            environment, rspamd_url=f"http://127.0.0.1:{receiver.port}", outbound_scan="spam"
        )
        yield receiver


async def send_message(client: GraphQLClient, **extra: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await client(MESSAGE_SEND, input={**SEND_INPUT, **extra}))[
        "messageSend"
    ]
    return answer


async def count_submissions_and_messages(environment: Environment) -> tuple[int, int]:
    """Count submissions and messages."""
    counts = []
    for table in (Submission, Message):
        (row,) = await environment.database.read(select(func.count().label("n")).select_from(table))
        counts.append(row.n)
    return counts[0], counts[1]


async def test_outgoing_spam_is_refused_without_copy(
    ada: GraphQLClient, rspamd: WebhookReceiver
) -> None:
    rspamd.response = rspamd_reply(15.0)
    answer = await send_message(ada)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN_OPERATION"]
    assert answer["errors"][0]["message"] == "The message was not sent: The message is spam."
    assert await count_submissions_and_messages(ada.environment) == (0, 0)
    rspamd.response = rspamd_reply(14.9)
    assert not (await send_message(ada))["errors"]
    assert await count_submissions_and_messages(ada.environment) == (1, 1)


async def test_scanner_gets_sender_of_outgoing_message(
    ada: GraphQLClient, rspamd: WebhookReceiver
) -> None:
    rspamd.response = rspamd_reply(0.0)
    await send_message(ada, bcc=[{"address": "dan@example.net"}])
    (request,) = rspamd.requests
    assert request.headers["from"] == ada.address
    assert request.headers["user"] == ada.user.username
    assert b"Subject: Hi" in request.raw


async def test_draft_is_not_scanned(ada: GraphQLClient, rspamd: WebhookReceiver) -> None:
    rspamd.response = rspamd_reply(50.0)
    assert not (await save_draft(ada, **SEND_INPUT))["errors"]
    assert not rspamd.requests
    change_options(ada.environment, outbound_scan="off")
    assert not (await send_message(ada))["errors"]
    assert not rspamd.requests


async def test_submitted_draft_is_scanned(ada: GraphQLClient, rspamd: WebhookReceiver) -> None:
    rspamd.response = rspamd_reply(50.0)
    draft = {"id": (await save_draft(ada, **SEND_INPUT))["message"]["id"]}
    answer = await execute_mutation(ada, "draftSend", "submissions { id }", message=draft)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN_OPERATION"]
    assert await count_submissions_and_messages(ada.environment) == (0, 1)
    assert b"Subject: Hi" in rspamd.requests[0].raw
    rspamd.response = rspamd_reply(0.0)
    assert not (await execute_mutation(ada, "draftSend", "submissions { id }", message=draft))[
        "errors"
    ]


@pytest.mark.parametrize("is_draft", [False, True])
async def test_all_messages_of_first_held_merge_are_scanned(
    ada: GraphQLClient, rspamd: WebhookReceiver, is_draft: bool
) -> None:
    content: dict[str, Any] = {"subject": "Hi", "text": "Yo"}
    if is_draft:
        content = {"message": {"id": (await save_draft(ada, **content))["message"]["id"]}}
    entries = [{"to": [{"address": f"{name}@example.net"}]} for name in "ab"]
    rspamd.response = rspamd_reply(0.0)
    answer = await execute_mutation(
        ada,
        "draftSend" if is_draft else "messageSend",
        "submissions { id }",
        **content,
        mailMerge=entries,
        undoWindow="PT30S",
    )
    assert answer["errors"] == []
    assert len(rspamd.requests) == 2


async def test_manual_forward_is_scanned(ada: GraphQLClient, rspamd: WebhookReceiver) -> None:
    inserted = await deliver_to(ada, raw_message("Offer"))
    message = {"id": global_ids.encode("Message", inserted.message_id)}
    arguments: dict[str, Any] = {"message": message, "to": ["carol@example.net"]}
    rspamd.response = rspamd_reply(50.0)
    fields = "submission { queueId }"
    answer = await execute_mutation(ada, "messageRedirect", fields, **arguments)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN_OPERATION"]
    assert await count_submissions_and_messages(ada.environment) == (0, 1)
    assert b"Subject: Offer" in rspamd.requests[0].raw
    rspamd.response = rspamd_reply(0.0)
    assert not (
        await execute_mutation(ada, "messageRedirect", "submission { queueId }", **arguments)
    )["errors"]


async def test_virus_only_scan_skips_rspamd(ada: GraphQLClient, rspamd: WebhookReceiver) -> None:
    rspamd.response = rspamd_reply(50.0)
    async with run_scripted_server(reply_as_clamd(b"stream: Win.Test FOUND\0")) as port:
        change_options(ada.environment, clamd_address=f"127.0.0.1:{port}", outbound_scan="viruses")
        answer = await send_message(ada)
        assert (
            answer["errors"][0]["message"]
            == "The message was not sent: The message contains a virus."
        )
    assert not rspamd.requests
    assert await count_submissions_and_messages(ada.environment) == (0, 0)


async def test_scanner_outage_accepts_or_defers_by_setting(
    ada: GraphQLClient, rspamd: WebhookReceiver
) -> None:
    rspamd.response = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"
    assert not (await send_message(ada))["errors"]
    change_options(ada.environment, rspamd_on_failure="defer")
    answer = await send_message(ada)
    assert [error["code"] for error in answer["errors"]] == ["UNAVAILABLE"]
    assert await count_submissions_and_messages(ada.environment) == (1, 1)


async def test_smtp_submission_is_scanned(ada: GraphQLClient, rspamd: WebhookReceiver) -> None:
    service, user = SmtpSubmissionService(ada.environment), ada.user
    submitter = SmtpSubmitter(user.id, user.username, user.auth_version, "192.0.2.7")
    raw = raw_message("Offer", From=f"Ada <{ada.address}>")
    rspamd.response = rspamd_reply(20.0)
    with pytest.raises(Forbidden):
        await service.submit(submitter, raw, ada.address, [("carol@example.net", DEFAULT_REPORTS)])
    change_options(ada.environment, rspamd_on_failure="defer")
    rspamd.response = http_response(b"{}")
    with pytest.raises(ServiceUnavailable):
        await service.submit(submitter, raw, ada.address, [("carol@example.net", DEFAULT_REPORTS)])
    assert await count_submissions_and_messages(ada.environment) == (0, 0)
    assert rspamd.requests[0].headers["ip"] == "192.0.2.7"


@pytest.mark.parametrize("mutation", ["messageSend", "draftSend", "messageRedirect"])
async def test_atomic_request_sends_scanned_message_only_before_changes(
    ada: GraphQLClient, rspamd: WebhookReceiver, mutation: str
) -> None:
    rspamd.response = rspamd_reply(0.0)
    message_id = global_ids.encode("Message", (await deliver_to(ada, raw_message("a"))).message_id)
    arguments: dict[str, Any] = {"message": {"id": message_id}, "to": ["carol@example.net"]}
    if mutation == "messageSend":
        arguments = SEND_INPUT
    elif mutation == "draftSend":
        arguments = {"message": {"id": (await save_draft(ada, **SEND_INPUT))["message"]["id"]}}
    send = f"{mutation}(input: $input) {{ errors {{ code message }} }}"
    change = 'mailboxCreate(input: {paths: ["New"]}) { errors { code } }'
    head = f"mutation ($input: {mutation[0].upper()}{mutation[1:]}Input!) @atomic"
    refused = (await ada(f"{head} {{ {change} {send} }}", input=arguments))[mutation]["errors"]
    assert [error["code"] for error in refused] == ["FORBIDDEN_OPERATION"]
    assert refused[0]["message"].endswith("after another field has changed something.")
    sent = await ada(f"{head} {{ {send} {change} }}", input=arguments)
    assert (sent[mutation]["errors"], sent["mailboxCreate"]["errors"]) == ([], [])
