"""Test messageRedirect: forwarding a stored message to given addresses."""

from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import Scope
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to, make_api_key, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.bulk_operations import list_message_ids, list_messages
from tests.support.operations.send_operations import MESSAGE_REDIRECT, forward_errors
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def forward_message(
    client: GraphQLClient, message_id: str, *addresses: str, **extra: Any
) -> Any:
    arguments = {"message": {"id": message_id}, "to": list(addresses), **extra}
    return (await client(MESSAGE_REDIRECT, input=arguments))["messageRedirect"]


async def receive_message(client: GraphQLClient, raw: bytes) -> str:
    """Receive a message and return its ID."""
    return global_ids.encode("Message", (await deliver_to(client, raw)).message_id)


async def test_forwarded_message_is_unchanged(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    raw = raw_message("kept", body="\r\n".join(["as it is. "] * 9), X_Odd="  spaced  ")
    message_id = await receive_message(ada, raw)
    last = await load_stream_position(environment, ada.user.id)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        answer = await forward_message(
            ada, message_id, "carol@example.net", bob.address, "CAROL@example.net"
        )
        assert answer["errors"] == []
        assert [tuple(item.values()) for item in answer["forwardTargets"]] == [
            (1, "MAIL", "carol@example.net"),
            (2, "MAIL", bob.address),
        ]
        ((submission_id,),) = await select_rows(environment, "SELECT id FROM submissions")
        await wait_until_tried(environment, submission_id)
    (received,) = server.messages
    assert received.raw.endswith(raw)
    assert [message.subject for message in await load_inbox_rows(bob)] == ["kept"]
    document = """query ($by: SubmissionRef!) { submission(by: $by) {
        state envelopeFrom message { id } recipients { recipient } } }"""
    loaded = (await ada(document, by={"queueId": answer["submission"]["queueId"]}))["submission"]
    assert (loaded["state"], loaded["envelopeFrom"], loaded["message"]) == (
        "SENT", ada.address, {"id": message_id},
    )  # fmt: skip
    (stored,) = await list_messages(ada)
    assert stored["imap"]["flags"] == ["$Forwarded"]
    kinds = {kind for kind, _ in await load_journal_entries(environment, ada.user.id, last)}
    assert kinds == {
        EventType.SUBMISSION_CREATED,
        EventType.SUBMISSION_UPDATED,
        EventType.SUBMISSION_SENT,
        EventType.MESSAGE_UPDATED,
    }


async def test_deleted_message_is_still_forwarded(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = await receive_message(ada, raw_message("gone"))
    await forward_message(ada, message_id, "carol@example.net")
    document = """mutation ($input: MessageDeleteInput!) {
        messageDelete(input: $input) { deletedCount } }"""
    await ada(document, input={"select": {"ids": [message_id]}, "permanent": True})
    ((submission_id,),) = await select_rows(environment, "SELECT id FROM submissions")
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(environment, submission_id)
    (received,) = server.messages
    assert b"Subject: gone" in received.raw


INVALID_TARGETS: list[tuple[list[str], tuple[Any, ...]]] = [
    ([], ("VALIDATION", ["to"], None)),
    (["carol@example.net", "nobody"], ("VALIDATION", ["to"], 1)),
    (["carol@example.net\r\nRCPT TO:<x@y>"], ("VALIDATION", ["to"], 0)),
    (["ada@example.org"], ("VALIDATION", ["to"], 0)),
    ([f"x{n}@example.net" for n in range(401)], ("LIMIT_REACHED", ["to"], None)),
]


async def test_invalid_forward_addresses_are_refused(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = await receive_message(ada, raw_message("a"))
    for case in each_case(INVALID_TARGETS):
        with case as (to, refusal):
            assert forward_errors(await forward_message(ada, message_id, *to)) == [refusal]
            assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(0,)]
            assert (await list_messages(ada))[0]["imap"]["flags"] == []


async def test_foreign_message_or_draft_is_not_forwarded(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    foreign_id = await receive_message(bob, raw_message("b"))
    for client, message_id in ((ada, foreign_id), (ada, global_ids.encode("Message", 7))):
        assert forward_errors(await forward_message(client, message_id, "carol@example.net")) == [
            ("NOT_FOUND", ["message"], None)
        ]
    document = """mutation ($input: DraftSaveInput!) { draftSave(input: $input) {
        message { id } } }"""
    arguments = {"set": {"subject": "d", "text": "x"}}
    draft_id = (await ada(document, input=arguments))["draftSave"]["message"]["id"]
    assert forward_errors(await forward_message(ada, draft_id, "carol@example.net")) == [
        ("CONFLICT", ["message"], None)
    ]
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(0,)]


async def test_mail_loop_is_not_forwarded(ada: GraphQLClient) -> None:
    for hops, expected in ((29, []), (30, [("CONFLICT", ["message"])])):
        trace = "".join(f"Received: from h{n}\r\n by h{n + 1}; x\r\n" for n in range(hops))
        message_id = await receive_message(ada, trace.encode() + raw_message(f"hops {hops}"))
        answer = await forward_message(ada, message_id, "carol@example.net")
        assert [(e["code"], e["path"]) for e in answer["errors"]] == expected


async def test_forward_counts_towards_recipient_limit(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = await receive_message(ada, raw_message("a"))
    async with environment.write_session(ada.user.id) as session:
        await session.exec(update(User).values(recipients_per_day=2))
    assert (await forward_message(ada, message_id, "c@example.net", "d@example.net"))[
        "errors"
    ] == []
    answer = await forward_message(ada, message_id, "e@example.net")
    assert [e["code"] for e in answer["errors"]] == ["RATE_LIMITED"]
    async with environment.write_session(ada.user.id) as session:
        await session.exec(update(User).values(recipients_per_day=None))
    assert len(await select_rows(environment, "SELECT id FROM submissions")) == 1


async def test_idempotency_key_forwards_once_and_validate_only_never(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = await receive_message(ada, raw_message("a"))
    validated = await forward_message(
        ada, message_id, "c@example.net", options={"validateOnly": True}
    )
    assert validated["errors"] == []
    first = await forward_message(ada, message_id, "c@example.net", options={"idempotencyKey": "k"})
    repeated = await forward_message(
        ada, message_id, "c@example.net", options={"idempotencyKey": "k"}
    )
    assert (repeated["submission"], repeated["replayed"]) == (first["submission"], True)
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(1,)]


async def test_forward_needs_submit_scope(ada: GraphQLClient, environment: Environment) -> None:
    await deliver_to(ada)
    (message_id,) = await list_message_ids(ada)
    scopes = [Scope.MAIL]
    secret = await make_api_key(
        environment, "mail", user_id=ada.user.id, role=ada.user.role, scopes=scopes
    )
    client = GraphQLClient(ada.http, environment, ada.user, secret)
    assert [
        e["code"] for e in (await forward_message(client, message_id, "c@example.net"))["errors"]
    ] == ["FORBIDDEN"]


COPIES = """{ viewer { user { messages { nodes { draft mailbox { path }
    envelope { from } } } } } }"""


@pytest.mark.parametrize("is_rescheduled", [False, True])
async def test_redirected_sent_message_stays_in_its_mailbox(
    ada: GraphQLClient, is_rescheduled: bool
) -> None:
    message_input = {"to": [{"address": "dave@example.net"}], "text": "x"}
    sent = await execute_mutation(ada, "messageSend", "messages { id }", **message_input)
    before = await ada(COPIES)
    answer = await forward_message(ada, sent["messages"][0]["id"], "carol@example.net")
    redirect = [{"queueId": answer["submission"]["queueId"]}]
    if is_rescheduled:
        rescheduled = await execute_mutation(
            ada,
            "submissionReschedule",
            "submissions { state }",
            submissions=redirect,
            sendAt="2030-02-01T00:00:00Z",
        )
        assert rescheduled["submissions"] == [{"state": "SCHEDULED"}]
        assert await ada(COPIES) == before
    cancelled = await execute_mutation(
        ada, "submissionCancel", "submissions { state }", submissions=redirect
    )
    assert cancelled["submissions"] == [{"state": "CANCELLED"}]
    assert await ada(COPIES) == before
