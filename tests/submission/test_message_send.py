"""messageSend and its kin, from GraphQL to the neighbour's mail server."""

import base64
from typing import Any

import pytest
import strawberry
from strawberry.schema.config import StrawberryConfig

import graph.schema
from graph.submission.types import SubmissionMutation, SubmissionQuery
from graph.types import global_ids
from graph.types.errors import MutationError
from graph.types.scalars import SCALARS
from models.runtime.environment import Environment
from models.users.roles import Scope
from tests.conftest import Client, context, raw_message, receive
from tests.support.mail_servers.queue_worker import inbox, relay, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening

assert graph.schema.schema

SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submission { id queueId state envelopeFrom sendTime undoUntil message { subject }
    recipients { recipient state attempts nextAttemptAt lastResponse } }
  message { id subject seen }
  warnings { code path }
  replayed
  errors { __typename code path index }
} }
"""
CANCEL = """
mutation ($ids: [ID!]!) { submissionCancel(input: {ids: $ids}) {
  submissions { state recipients { state } } errors { __typename code path index } } }
"""
ONE = """
query ($by: SubmissionRef!) {
  submission(by: $by) { state recipients { state mx tls { version } } }
}
"""
HELLO = {"to": [{"address": "carol@example.net", "name": "Carol"}], "subject": "Hi", "text": "Yo"}


@pytest.fixture
def schema() -> strawberry.Schema:
    return strawberry.Schema(
        query=SubmissionQuery,
        mutation=SubmissionMutation,
        types=list(MutationError.types_by_error.values()),
        config=StrawberryConfig(scalar_map=SCALARS),
    )


async def ask(schema: strawberry.Schema, client: Client, document: str, **variables: Any) -> Any:
    ctx = context(client)
    result = await schema.execute(document, variable_values=variables, context_value=ctx)
    assert result.errors is None, result.errors
    (answer,) = (result.data or {}).values()
    return answer


async def test_a_message_goes_from_graphql_to_the_neighbour(
    schema: strawberry.Schema, ada: Client, bob: Client, world: Environment
) -> None:
    content = base64.b64encode(b"1;2").decode()
    given = {
        **HELLO,
        "cc": [{"address": bob.address}],
        "html": "<p>Yo</p>",
        "headers": [{"key": "X-Campaign", "value": "Spring"}],
        "attachments": [{"content": content, "filename": "a.csv", "contentType": "text/csv"}],
        "priority": "HIGH",
    }
    async with listening(Server()) as there, working(world, relay(there)):
        sent = await ask(schema, ada, SEND, input=given)
        assert (sent["errors"], sent["warnings"]) == ([], [])
        assert sent["message"] == {"id": sent["message"]["id"], "subject": "Hi", "seen": True}
        assert sent["submission"]["message"] == {"subject": "Hi"}
        assert [each["recipient"] for each in sent["submission"]["recipients"]] == [
            "carol@example.net",
            "bob@example.org",
        ]
        key = global_ids.decode("Submission", sent["submission"]["id"])
        await settled(world, key)
    for by in ({"id": sent["submission"]["id"]}, {"queueId": sent["submission"]["queueId"]}):
        now = await ask(schema, ada, ONE, by=by)
        assert now["state"] == "SENT"
        assert [each["state"] for each in now["recipients"]] == ["RELAYED", "DELIVERED"]
        assert await ask(schema, bob, ONE, by=by) is None
    (mail,) = there.mails
    assert b"X-Campaign: Spring\r\n" in mail.raw
    assert b"X-Priority: 1\r\n" in mail.raw
    assert b"MTsy" in mail.raw
    assert [each.subject for each in await inbox(bob)] == ["Hi"]


async def test_what_is_held_can_be_undone(schema: strawberry.Schema, ada: Client) -> None:
    sent = await ask(schema, ada, SEND, input={**HELLO, "undoWindow": "PT20S"})
    assert sent["submission"]["state"] == "HELD_FOR_UNDO"
    assert sent["submission"]["undoUntil"] == "2030-01-01T00:00:20Z"
    key = sent["submission"]["id"]
    undone = await ask(schema, ada, CANCEL, ids=[key])
    assert undone["submissions"] == [{"state": "CANCELLED", "recipients": [{"state": "CANCELLED"}]}]
    late = await ask(schema, ada, CANCEL, ids=[key])
    assert [(e["__typename"], e["index"]) for e in late["errors"]] == [("ConflictError", 0)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"from": {"address": "x@example.net"}},
            ("ForbiddenError", "FORBIDDEN_OPERATION", ["from"]),
        ),
        ({"to": [{"address": "x"}]}, ("ValidationError", "VALIDATION", ["to"])),
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
            {"headers": [{"key": "Received", "value": "x"}]},
            ("ValidationError", "VALIDATION", ["headers", "0", "key"]),
        ),
        ({"mailbox": {"path": "Nowhere"}}, ("NotFoundError", "NOT_FOUND", ["mailbox"])),
    ],
)
async def test_refusals_are_data(
    schema: strawberry.Schema, ada: Client, change: dict[str, Any], error: tuple[Any, ...]
) -> None:
    sent = await ask(schema, ada, SEND, input={**HELLO, **change})
    assert (sent["submission"], sent["message"]) == (None, None)
    assert [(e["__typename"], e["code"], e["path"]) for e in sent["errors"]] == [error]


async def test_one_key_sends_once(
    schema: strawberry.Schema, ada: Client, world: Environment
) -> None:
    given = {**HELLO, "options": {"idempotencyKey": "k"}}
    first = await ask(schema, ada, SEND, input=given)
    again = await ask(schema, ada, SEND, input=given)
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["submission"]["id"] == first["submission"]["id"]
    async with listening(Server()) as there, working(world, relay(there)):
        await settled(world, global_ids.decode("Submission", first["submission"]["id"]))
    assert len(there.mails) == 1


async def test_sending_needs_its_scope(schema: strawberry.Schema, ada: Client) -> None:
    ctx = context(ada, Scope.MAIL)
    result = await schema.execute(SEND, variable_values={"input": HELLO}, context_value=ctx)
    assert result.data is not None
    (error,) = result.data["messageSend"]["errors"]
    assert (error["__typename"], error["code"]) == ("ForbiddenError", "FORBIDDEN")


async def test_an_answer_names_its_message(schema: strawberry.Schema, ada: Client) -> None:
    placed = await receive(ada, raw_message("Plans"))
    reference = {
        "message": {"id": global_ids.encode("Message", placed.message_id)},
        "action": "REPLY",
    }
    sent = await ask(schema, ada, SEND, input={"text": "Yes.", "reference": reference})
    assert sent["errors"] == []
    assert sent["message"]["subject"] == "Re: Plans"
    assert [r["recipient"] for r in sent["submission"]["recipients"]] == ["carol@example.com"]
    other = {**reference, "message": {"guid": "0" * 32}}
    refused = await ask(schema, ada, SEND, input={"text": "Yes.", "reference": other})
    assert [e["path"] for e in refused["errors"]] == [["reference", "message"]]


@pytest.mark.parametrize("more", [{}, {"isDraft": True}, {"raw": "From: ada@example.org\r\n\r\nx"}])
async def test_a_time_that_nobody_foresees_is_refused(ada: Client, more: dict[str, Any]) -> None:
    given = more if "raw" in more else {**HELLO, **more}
    given = {**given, "sendTime": "9999-12-31T23:59:59Z"}
    done = (await ada(SEND, input=given))["messageSend"]
    assert [(each["code"], each["path"]) for each in done["errors"]] == [
        ("VALIDATION", ["sendTime"])
    ]
