"""A credential without MAIL_READ reads no stored mail by sending it somewhere."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from graph.types import global_ids
from models.submission.tables import Submission
from models.users.roles import Scope
from tests.conftest import Client, make_key, raw_message, receive

OTHERS = [Scope.SUBMIT, Scope.SETTINGS, Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SIEVE]
FORWARD = """
mutation ($input: MessageForwardInput!) { messageForward(input: $input) {
  queueId errors { code path ... on ForbiddenError { requires } } } }
"""
SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submission { queueId } errors { code path ... on ForbiddenError { requires } } } }
"""
REFUSED = [{"code": "FORBIDDEN", "path": [], "requires": "MAIL_READ"}]
TO = "mallory@example.net"
WHOLE: dict[str, Any] = {"includeMessage": True}


async def client_for(ada: Client, *scopes: Scope) -> Client:
    """Ada's client with a key for these scopes only."""
    name = "-".join(scopes).lower().replace("_", "-")
    key = await make_key(
        ada.world, name, user_id=ada.user.id, role=ada.user.role, scopes=list(scopes)
    )
    return replace(ada, secret=key)


async def stored_message(ada: Client) -> str:
    placed = await receive(ada, raw_message("Salary", body="The secret is 4711."))
    return global_ids.encode("Message", placed.message_id)


async def submissions(client: Client) -> int:
    asked = select(func.count(col(Submission.id)).label("many"))
    (row,) = await client.world.database.read(asked)
    return int(row.many)


async def test_forwarding_a_stored_message_needs_mail_read(ada: Client) -> None:
    given = {"message": {"id": await stored_message(ada)}, "addresses": [TO]}
    sender = await client_for(ada, Scope.SUBMIT)
    answer = (await sender(FORWARD, input=given))["messageForward"]
    assert answer == {"queueId": None, "errors": REFUSED}
    assert await submissions(ada) == 0
    reader = await client_for(ada, Scope.SUBMIT, Scope.MAIL_READ)
    answer = (await reader(FORWARD, input=given))["messageForward"]
    assert answer["errors"] == []
    assert answer["queueId"]


@pytest.mark.parametrize("action", ["FORWARD", "REPLY", "REPLY_ALL"])
@pytest.mark.parametrize("more", [{}, WHOLE, {"quote": "ABOVE"}, {"attachments": {"all": True}}])
async def test_a_reference_to_a_stored_message_needs_mail_read(
    ada: Client, action: str, more: dict[str, Any]
) -> None:
    reference = {"message": {"id": await stored_message(ada)}, "action": action, **more}
    given = {"bcc": [{"address": TO}], "to": [{"address": TO}], "reference": reference}
    sender = await client_for(ada, Scope.SUBMIT)
    answer = (await sender(SEND, input=given))["messageSend"]
    assert answer["errors"] == REFUSED
    assert await submissions(ada) == 0
    reader = await client_for(ada, Scope.SUBMIT, Scope.MAIL_READ)
    assert (await reader(SEND, input=given))["messageSend"]["errors"] == []


async def test_a_message_without_a_reference_needs_submit_alone(ada: Client) -> None:
    sender = await client_for(ada, Scope.SUBMIT)
    given = {"to": [{"address": TO}], "subject": "Hi", "text": "Yo"}
    assert (await sender(SEND, input=given))["messageSend"]["errors"] == []
    assert await submissions(ada) == 1
