"""Transactions of an LMTP client, and their replies."""

import re
from typing import Any

from tests.support.mail_servers.lmtp_client import Neighbour

ACCEPTED_REPLIES = (["250 2.1.5"], ["250 2.0.0"])
DELIVERED_REPLY = "250 2.0.0 Delivered"
_QUEUE_ID = re.compile(r"(?<=Delivered) as [0-9a-f]{20}\Z")


async def send_transaction(
    neighbour: Neighbour, raw: bytes, *to: str, sender: str = "carol@far.example"
) -> Any:
    """Reply codes to RCPT, and to the message if any recipient was accepted."""
    codes = [(await neighbour.say(f"MAIL FROM:<{sender}>"))[:9]]
    assert codes == ["250 2.1.0"]
    rcpt = [(await neighbour.say(f"RCPT TO:<{each}>"))[:9] for each in to]
    accepted = [code for code in rcpt if code.startswith("250")]
    if not accepted:
        await neighbour.say("RSET")
        return rcpt, []
    await neighbour.say("DATA")
    neighbour.send(raw + b".\r\n")
    return rcpt, [(await neighbour.hear())[:9] for _ in accepted]


async def deliver_message(neighbour: Neighbour, raw: bytes, *to: str, sender: str) -> list[str]:
    """Deliver a message and return the reply for each recipient."""
    await neighbour.begin(*to, sender=sender)
    neighbour.send(raw + b"\r\n.\r\n")
    return [await neighbour.hear() for _ in to]


async def deliver_for_reply_codes(neighbour: Neighbour, raw: bytes, *to: str) -> list[str]:
    """Deliver a message and return the codes of the reply for each recipient."""
    await neighbour.begin(*to)
    neighbour.send(raw + b".\r\n")
    return [(await neighbour.hear())[:9] for _ in to]


async def deliver_without_queue_id(
    neighbour: Neighbour, raw: bytes, *to: str, sender: str = "carol@example.com"
) -> list[str]:
    """Deliver a message and return the reply for each recipient without its queue id."""
    replies = await deliver_message(neighbour, raw, *(to or ("ada@example.org",)), sender=sender)
    return [_QUEUE_ID.sub("", reply) for reply in replies]
