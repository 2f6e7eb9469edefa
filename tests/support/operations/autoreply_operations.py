"""Autoreplies, and messages that are answered by them."""

from itertools import count
from typing import Any

from tests.conftest import Client, raw_message
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.operations.address_operations import made

_MESSAGE_NUMBERS = count(1)
AUTOREPLY_ADDRESS = "info@example.org"
AUTOREPLY_SETTINGS = {"enabled": True, "text": "We have it."}


async def set_autoreply(client: Client, **given: Any) -> Any:
    """Turn the autoreply of the signed-in user on."""
    given = {"enabled": True, "text": "I am away.", **given}
    done = await run(client, "autoreplySet", "autoreplies { id }", set=given)
    assert done["errors"] == []
    return done


async def send_unique_message(
    neighbour: Neighbour,
    sender: str = "carol@example.com",
    to: str = "ada@example.org",
    *,
    reply: str = "250 2.0.0 Delivered",
    **more: str,
) -> None:
    """Deliver a message with a subject and id of its own."""
    number = next(_MESSAGE_NUMBERS)
    head = {"To": to, "Message_ID": f"<{number}@example.com>", **more}
    subject = head.pop("Subject", f"Letter {number}")
    raw = raw_message(subject, sender=sender or "carol@example.com", **head)
    (received,) = await deliver_message(neighbour, raw, to, sender=sender)
    assert received.startswith(reply)


async def make_autoreply_address(
    root: Client, address: str = AUTOREPLY_ADDRESS, **more: Any
) -> Any:
    """Create an address that forwards to dave@far.example and sends autoreplies."""
    given = {"targets": ["dave@far.example"], "autoreply": AUTOREPLY_SETTINGS, **more}
    return await made(root, address, **given)


async def send_message_to_address(
    neighbour: Neighbour,
    sender: str = "carol@far.example",
    to: str = AUTOREPLY_ADDRESS,
    *,
    reply: str = "250 2.0.0",
    **head: str,
) -> None:
    """Deliver a message with a subject and id of its own to the address with an autoreply."""
    await send_unique_message(neighbour, sender, to, reply=reply, **head)
