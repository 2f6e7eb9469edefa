"""Test messageSend and submissionCancel, from GraphQL to the receiving server."""

import base64
from typing import Any

import pytest
import strawberry
from strawberry.schema.config import StrawberryConfig

import graph.schema
from graph.submission.mutations import SubmissionMutation
from graph.submission.types import SubmissionQuery
from graph.types import global_ids
from graph.types.errors import MutationError
from graph.types.scalars import SCALARS
from models.runtime.environment import Environment
from models.users.roles import Scope
from tests.conftest import GraphQLClient, client_context, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

assert graph.schema.schema

MESSAGE_SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submissions { id queueId state envelopeFrom sendAt undoableUntil message { subject }
    recipients { recipient state attempts nextAttemptAt lastResponse } }
  messages { id subject seen }
  warnings { code path }
  replayed
  errors { __typename code path }
} }
"""
SUBMISSION_CANCEL = """
mutation ($ids: [SubmissionRef!]!) { submissionCancel(input: {submissions: $ids}) {
  submissions { state recipients { state } } errors { __typename code path } } }
"""
SUBMISSION_QUERY = """
query ($by: SubmissionRef!) {
  submission(by: $by) { state recipients { state mx tls { version } } }
}
"""
SEND_INPUT = {
    "to": [{"address": "carol@example.net", "name": "Carol"}],
    "subject": "Hi",
    "text": "Yo",
}


@pytest.fixture
def schema() -> strawberry.Schema:
    return strawberry.Schema(
        query=SubmissionQuery,
        mutation=SubmissionMutation,
        types=list(MutationError.types_by_error.values()),
        config=StrawberryConfig(scalar_map=SCALARS),
    )


async def execute(
    schema: strawberry.Schema, client: GraphQLClient, document: str, **variables: Any
) -> Any:
    ctx = client_context(client)
    result = await schema.execute(document, variable_values=variables, context_value=ctx)
    assert result.errors is None, result.errors
    (answer,) = (result.data or {}).values()
    return answer


async def test_message_is_sent_to_remote_and_local_recipient(
    schema: strawberry.Schema, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    content = base64.b64encode(b"1;2").decode()
    arguments = {
        **SEND_INPUT,
        "cc": [{"address": bob.address}],
        "html": "<p>Yo</p>",
        "headers": [{"name": "X-Campaign", "value": "Spring"}],
        "attachments": [{"content": content, "filename": "a.csv", "contentType": "text/csv"}],
        "priority": "HIGH",
    }
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        sent = await execute(schema, ada, MESSAGE_SEND, input=arguments)
        assert (sent["errors"], sent["warnings"]) == ([], [])
        assert sent["messages"][0] == {
            "id": sent["messages"][0]["id"],
            "subject": "Hi",
            "seen": True,
        }
        assert sent["submissions"][0]["message"] == {"subject": "Hi"}
        assert [recipient["recipient"] for recipient in sent["submissions"][0]["recipients"]] == [
            "carol@example.net",
            "bob@example.org",
        ]
        submission_id = global_ids.decode("Submission", sent["submissions"][0]["id"])
        await wait_until_tried(environment, submission_id)
    for by in (
        {"id": sent["submissions"][0]["id"]},
        {"queueId": sent["submissions"][0]["queueId"]},
    ):
        submission = await execute(schema, ada, SUBMISSION_QUERY, by=by)
        assert submission["state"] == "SENT"
        assert [recipient["state"] for recipient in submission["recipients"]] == [
            "RELAYED",
            "DELIVERED",
        ]
        assert await execute(schema, bob, SUBMISSION_QUERY, by=by) is None
    (received,) = server.messages
    assert b"X-Campaign: Spring\r\n" in received.raw
    assert b"X-Priority: 1\r\n" in received.raw
    assert b"MTsy" in received.raw
    assert [recipient.subject for recipient in await load_inbox_rows(bob)] == ["Hi"]


async def test_held_submission_can_be_cancelled(
    schema: strawberry.Schema, ada: GraphQLClient
) -> None:
    sent = await execute(schema, ada, MESSAGE_SEND, input={**SEND_INPUT, "undoWindow": "PT20S"})
    assert sent["submissions"][0]["state"] == "UNDOABLE"
    assert sent["submissions"][0]["undoableUntil"] == "2030-01-01T00:00:20Z"
    submission_id = sent["submissions"][0]["id"]
    undone = await execute(schema, ada, SUBMISSION_CANCEL, ids=[{"id": submission_id}])
    assert undone["submissions"] == [{"state": "CANCELLED", "recipients": [{"state": "CANCELLED"}]}]
    second_cancel = await execute(schema, ada, SUBMISSION_CANCEL, ids=[{"id": submission_id}])
    assert [(e["__typename"], e["path"]) for e in second_cancel["errors"]] == [
        ("ConflictError", ["submissions", "0"])
    ]


INVALID_INPUTS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    (
        {"from": {"address": "x@example.net"}},
        ("ForbiddenError", "FORBIDDEN_OPERATION", ["from"]),
    ),
    ({"to": [{"address": "x"}]}, ("ValidationError", "VALIDATION", ["to", "0"])),
    ({"to": []}, ("ValidationError", "VALIDATION", ["to"])),
    (
        {"attachments": [{"content": "%%"}]},
        ("ValidationError", "VALIDATION", ["attachments", "0", "content"]),
    ),
    (
        {"attachments": [{"content": "0g", "encoding": "HEX"}]},
        ("ValidationError", "VALIDATION", ["attachments", "0", "content"]),
    ),
    (
        {"headers": [{"name": "Received", "value": "x"}]},
        ("ValidationError", "VALIDATION", ["headers", "0", "name"]),
    ),
    ({"mailbox": {"path": "Nowhere"}}, ("NotFoundError", "NOT_FOUND", ["mailbox"])),
]


async def test_invalid_send_returns_typed_error(
    schema: strawberry.Schema, ada: GraphQLClient
) -> None:
    for case in each_case(INVALID_INPUTS):
        with case as (change, error):
            sent = await execute(schema, ada, MESSAGE_SEND, input={**SEND_INPUT, **change})
            assert (sent["submissions"], sent["messages"]) == ([], [])
            assert [(e["__typename"], e["code"], e["path"]) for e in sent["errors"]] == [error]


async def test_send_with_same_idempotency_key_runs_once(
    schema: strawberry.Schema, ada: GraphQLClient, environment: Environment
) -> None:
    arguments = {**SEND_INPUT, "options": {"idempotencyKey": "k"}}
    first = await execute(schema, ada, MESSAGE_SEND, input=arguments)
    repeated = await execute(schema, ada, MESSAGE_SEND, input=arguments)
    assert (first["replayed"], repeated["replayed"]) == (False, True)
    assert repeated["submissions"][0]["id"] == first["submissions"][0]["id"]
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_until_tried(
            environment, global_ids.decode("Submission", first["submissions"][0]["id"])
        )
    assert len(server.messages) == 1


async def test_send_needs_submit_scope(schema: strawberry.Schema, ada: GraphQLClient) -> None:
    ctx = client_context(ada, Scope.MAIL)
    result = await schema.execute(
        MESSAGE_SEND, variable_values={"input": SEND_INPUT}, context_value=ctx
    )
    assert result.data is not None
    (error,) = result.data["messageSend"]["errors"]
    assert (error["__typename"], error["code"]) == ("ForbiddenError", "FORBIDDEN")


async def test_reply_uses_subject_and_sender_of_original(
    schema: strawberry.Schema, ada: GraphQLClient
) -> None:
    inserted = await deliver_to(ada, raw_message("Plans"))
    reference = {
        "message": {"id": global_ids.encode("Message", inserted.message_id)},
        "relation": "REPLY",
    }
    sent = await execute(schema, ada, MESSAGE_SEND, input={"text": "Yes.", "original": reference})
    assert sent["errors"] == []
    assert sent["messages"][0]["subject"] == "Re: Plans"
    assert [recipient["recipient"] for recipient in sent["submissions"][0]["recipients"]] == [
        "carol@example.com"
    ]
    missing_reference = {**reference, "message": {"emailId": "0" * 32}}
    refused = await execute(
        schema, ada, MESSAGE_SEND, input={"text": "Yes.", "original": missing_reference}
    )
    assert [e["path"] for e in refused["errors"]] == [["original", "message"]]


@pytest.mark.parametrize("extra", [{}, {"raw": "From: ada@example.org\r\n\r\nx"}])
async def test_send_at_too_far_in_future_is_refused(
    ada: GraphQLClient, extra: dict[str, Any]
) -> None:
    arguments = extra if "raw" in extra else {**SEND_INPUT, **extra}
    arguments = {**arguments, "sendAt": "9999-12-31T23:59:59Z"}
    answer = (await ada(MESSAGE_SEND, input=arguments))["messageSend"]
    assert [(error["code"], error["path"]) for error in answer["errors"]] == [
        ("VALIDATION", ["sendAt"])
    ]


# for each case: the variable, and the address that is read
ADDRESS_VARIABLES: list[tuple[str, str]] = [
    ('"a b"@example.org', '"a b"@example.org'),
    ("jürgen@bücher.example", "jürgen@bücher.example"),
    ("bob@xn--bcher-kva.example", "bob@bücher.example"),
    (" bob@example.org ", "bob@example.org"),
]


async def test_address_variable_of_the_address_scalar_is_accepted(ada: GraphQLClient) -> None:
    for case in each_case(ADDRESS_VARIABLES):
        with case as (address, read):
            document = """mutation ($address: EmailAddress!) { messageSend(input: {
              to: [{address: $address, name: "Bob, Bücher"}], text: "Yo", undoWindow: "PT1H"
            }) { messages { to { address name } } errors { message } } }"""
            payload = (await ada(document, address=address))["messageSend"]
            message = {"to": [{"address": read, "name": "Bob, Bücher"}]}
            assert payload == {"messages": [message], "errors": []}


INVALID_ADDRESSES: list[tuple[str, Any, list[str]]] = [
    ("to", [{"address": "bob@example.org"}, {"address": "Bob <b@example.org>"}], ["to", "1"]),
    ("cc", [{"address": "b@example.org, c@example.org"}], ["cc", "0"]),
    ("bcc", [{"address": ""}], ["bcc", "0"]),
    ("replyTo", [{"address": "bob"}], ["replyTo", "0"]),
    ("from", {"address": "a@b@c"}, ["from"]),
]


async def test_invalid_address_is_an_error_with_the_path_to_it(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_ADDRESSES):
        with case as (field, value, path):
            document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
              errors { code message path } } }"""
            input_ = {"to": [{"address": "bob@example.org"}], "text": "Yo"} | {field: value}
            (error,) = (await ada(document, input=input_))["messageSend"]["errors"]
            assert error == {"code": "VALIDATION", "message": "Not an email address.", "path": path}
