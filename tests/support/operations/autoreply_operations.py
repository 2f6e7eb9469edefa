"""Autoreplies, and messages that they answer."""

from itertools import count
from typing import Any

from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.operations.address_operations import create_address

_MESSAGE_NUMBERS = count(1)
AUTOREPLY_ADDRESS = "info@example.org"
AUTOREPLY_SETTINGS = {"enabled": True, "text": "We have it."}


async def set_autoreply(client: GraphQLClient, **settings: Any) -> Any:
    """Turn the autoreply of the signed-in user on."""
    settings = {"enabled": True, "text": "I am away.", **settings}
    payload = await execute_mutation(client, "autoreplySet", "autoreplies { id }", set=settings)
    assert payload["errors"] == []
    return payload


async def send_unique_message(
    client: SmtpTestClient,
    sender: str = "carol@example.com",
    to: str = "ada@example.org",
    *,
    reply: str = "250 2.0.0 OK: queued",
    **header_fields: str,
) -> None:
    """Deliver a message with a subject and id of its own."""
    number = next(_MESSAGE_NUMBERS)
    fields = {"To": to, "Message_ID": f"<{number}@example.com>", **header_fields}
    subject = fields.pop("Subject", f"Letter {number}")
    raw = raw_message(subject, sender=sender or "carol@example.com", **fields)
    (received_reply,) = await deliver_message(client, raw, to, sender=sender)
    assert received_reply.startswith(reply)


async def make_autoreply_address(
    root: GraphQLClient, address: str = AUTOREPLY_ADDRESS, **values: Any
) -> Any:
    """Create an address that forwards to dave@far.example and sends autoreplies."""
    fields = {"forwardTo": ["dave@far.example"], "autoreply": AUTOREPLY_SETTINGS, **values}
    return await create_address(root, address, **fields)


async def send_message_to_address(
    client: SmtpTestClient,
    sender: str = "carol@far.example",
    to: str = AUTOREPLY_ADDRESS,
    *,
    reply: str = "250 2.0.0",
    **header_fields: str,
) -> None:
    """Deliver a message with a subject and id of its own to the address with an autoreply."""
    await send_unique_message(client, sender, to, reply=reply, **header_fields)
