"""A credential without MAIL_READ can't read stored messages by sending them."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from graph.types import global_ids
from models.submission.tables import Submission
from models.users.roles import Scope
from tests.conftest import GraphQLClient, deliver_to, make_api_key, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.message_sources import save_draft

OTHER_SCOPES = [Scope.SUBMIT, Scope.SETTINGS, Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SIEVE]
FORWARD = """
mutation ($input: MessageRedirectInput!) { messageRedirect(input: $input) {
  submission { queueId } errors { code path ... on ForbiddenError { requires } } } }
"""
SEND_DRAFT = """
mutation ($input: DraftSendInput!) { draftSend(input: $input) {
  submissions { queueId } errors { code path ... on ForbiddenError { requires } } } }
"""
SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submissions { queueId } errors { code path ... on ForbiddenError { requires } } } }
"""
FORBIDDEN_ERRORS = [{"code": "FORBIDDEN", "path": [], "requires": "MAIL_READ"}]
RECIPIENT = "mallory@example.net"
INCLUDE_MESSAGE: dict[str, Any] = {"includeMessage": True}


async def make_scoped_client(ada: GraphQLClient, *scopes: Scope) -> GraphQLClient:
    """Make a client of ada with a key for these scopes only."""
    name = "-".join(scopes).lower().replace("_", "-")
    secret = await make_api_key(
        ada.environment, name, user_id=ada.user.id, role=ada.user.role, scopes=list(scopes)
    )
    return replace(ada, secret=secret)


async def store_message(ada: GraphQLClient) -> str:
    stored = await deliver_to(ada, raw_message("Salary", body="The secret is 4711."))
    return global_ids.encode("Message", stored.message_id)


async def count_submissions(client: GraphQLClient) -> int:
    query = select(func.count(col(Submission.id)).label("many"))
    (row,) = await client.environment.database.read(query)
    return int(row.many)


async def test_forwarding_a_stored_message_needs_mail_read(ada: GraphQLClient) -> None:
    arguments = {"message": {"id": await store_message(ada)}, "to": [RECIPIENT]}
    sender = await make_scoped_client(ada, Scope.SUBMIT)
    payload = (await sender(FORWARD, input=arguments))["messageRedirect"]
    assert payload == {"submission": None, "errors": FORBIDDEN_ERRORS}
    assert await count_submissions(ada) == 0
    reader = await make_scoped_client(ada, Scope.SUBMIT, Scope.MAIL_READ)
    payload = (await reader(FORWARD, input=arguments))["messageRedirect"]
    assert payload["errors"] == []
    assert payload["submission"]


async def test_reference_to_stored_message_needs_mail_read(ada: GraphQLClient) -> None:
    message_id = await store_message(ada)
    sender = await make_scoped_client(ada, Scope.SUBMIT)
    reader = await make_scoped_client(ada, Scope.SUBMIT, Scope.MAIL_READ)
    for case in each_case(
        product(
            [{}, INCLUDE_MESSAGE, {"quote": "ABOVE"}, {"attachments": {"all": True}}],
            ["FORWARD", "REPLY", "REPLY_ALL"],
        )
    ):
        with case as (reference_fields, action):
            reference = {
                "message": {"id": message_id},
                "relation": action,
                **reference_fields,
            }
            arguments = {
                "bcc": [{"address": RECIPIENT}],
                "to": [{"address": RECIPIENT}],
                "original": reference,
            }
            submission_count = await count_submissions(ada)
            payload = (await sender(SEND, input=arguments))["messageSend"]
            assert payload["errors"] == FORBIDDEN_ERRORS
            assert await count_submissions(ada) == submission_count
            assert (await reader(SEND, input=arguments))["messageSend"]["errors"] == []


async def test_message_without_reference_needs_only_submit(ada: GraphQLClient) -> None:
    sender = await make_scoped_client(ada, Scope.SUBMIT)
    arguments = {"to": [{"address": RECIPIENT}], "subject": "Hi", "text": "Yo"}
    assert (await sender(SEND, input=arguments))["messageSend"]["errors"] == []
    assert await count_submissions(ada) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"envelope": {"to": [{"address": RECIPIENT}]}},
        {"mailMerge": [{"to": [{"address": RECIPIENT}]}]},
    ],
)
async def test_draft_to_other_recipients_needs_mail_read(
    ada: GraphQLClient, root: GraphQLClient, options: dict[str, Any]
) -> None:
    saved = await save_draft(ada, subject="Salary", text="The secret is 4711.")
    arguments = {"message": {"id": saved["message"]["id"]}, **options}
    sender = await make_scoped_client(ada, Scope.SUBMIT)
    for client in (sender, root):  # an administrator sends for a user without reading mail
        payload = (await client(SEND_DRAFT, input=arguments))["draftSend"]
        assert payload == {"submissions": [], "errors": FORBIDDEN_ERRORS}
    assert await count_submissions(ada) == 0
    reader = await make_scoped_client(ada, Scope.SUBMIT, Scope.MAIL_READ)
    assert (await reader(SEND_DRAFT, input=arguments))["draftSend"]["errors"] == []


async def test_draft_to_its_own_recipients_needs_only_submit(ada: GraphQLClient) -> None:
    saved = await save_draft(ada, subject="Salary {{x}}", to=[{"address": RECIPIENT}])
    sender = await make_scoped_client(ada, Scope.SUBMIT)
    arguments = {
        "message": {"id": saved["message"]["id"]},
        "envelope": {"from": {"address": ada.address}},
        "template": {"x": 1},
        "requestDsn": True,
    }
    assert (await sender(SEND_DRAFT, input=arguments))["draftSend"]["errors"] == []
