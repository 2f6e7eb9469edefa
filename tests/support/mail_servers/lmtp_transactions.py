"""Transactions of an LMTP client, and their replies."""

import re
from typing import Any

from tests.support.mail_servers.lmtp_client import SmtpTestClient

ACCEPTED_REPLIES = (["250 2.1.5"], ["250 2.0.0"])
DELIVERED_REPLY = "250 2.0.0 OK: queued"
_QUEUE_ID = re.compile(r"(?<=OK: queued) as [0-9a-f]{20}\Z")


async def send_transaction(
    client: SmtpTestClient, raw: bytes, *recipients: str, sender: str = "carol@far.example"
) -> Any:
    """Reply codes to RCPT, and to the message if any recipient was accepted."""
    codes = [(await client.run_command(f"MAIL FROM:<{sender}>"))[:9]]
    assert codes == ["250 2.1.0"]
    rcpt_codes = [
        (await client.run_command(f"RCPT TO:<{recipient}>"))[:9] for recipient in recipients
    ]
    accepted = [code for code in rcpt_codes if code.startswith("250")]
    if not accepted:
        await client.run_command("RSET")
        return rcpt_codes, []
    await client.run_command("DATA")
    client.send_bytes(raw + b".\r\n")
    return rcpt_codes, [(await client.read_reply())[:9] for _ in accepted]


async def deliver_message(
    client: SmtpTestClient, raw: bytes, *recipients: str, sender: str
) -> list[str]:
    """Deliver a message and return the reply for each recipient."""
    await client.start_data(*recipients, sender=sender)
    client.send_bytes(raw + b"\r\n.\r\n")
    return [await client.read_reply() for _ in recipients]


async def deliver_for_reply_codes(
    client: SmtpTestClient, raw: bytes, *recipients: str
) -> list[str]:
    """Deliver a message and return the codes of the reply for each recipient."""
    await client.start_data(*recipients)
    client.send_bytes(raw + b".\r\n")
    return [(await client.read_reply())[:9] for _ in recipients]


async def deliver_without_queue_id(
    client: SmtpTestClient, raw: bytes, *recipients: str, sender: str = "carol@example.com"
) -> list[str]:
    """Deliver a message and return the reply for each recipient without its queue id."""
    replies = await deliver_message(
        client, raw, *(recipients or ("ada@example.org",)), sender=sender
    )
    return [_QUEUE_ID.sub("", reply) for reply in replies]
