"""A client that signs in and submits messages by SMTP."""

import base64

from tests.support.mail_servers.lmtp_client import SmtpTestClient

PASSWORD = "correct horse battery"  # noqa: S105 - a test's
RECIPIENT = "carol@example.net"
SHORT_MESSAGE = (
    b"From: Ada <ada@example.org>\r\nTo: carol@example.net\r\nSubject: Hi\r\n\r\nHello\r\n"
)


def auth_plain_response(
    username: str = "ada", password: str = PASSWORD, authorization_id: str = ""
) -> str:
    """The initial response of AUTH PLAIN (RFC 4616)."""
    return base64.b64encode(f"{authorization_id}\0{username}\0{password}".encode()).decode()


async def sign_in_by_auth_plain(client: SmtpTestClient, **credentials: str) -> None:
    """Sign in by AUTH PLAIN (RFC 4616)."""
    assert (
        await client.run_command(f"AUTH PLAIN {auth_plain_response(**credentials)}")
    ).startswith("235 2.7.0")


async def submit_message(
    client: SmtpTestClient,
    raw: bytes = SHORT_MESSAGE,
    *recipients: str,
    sender: str = "ada@example.org",
) -> str:
    """Submit a message and return the reply to its end."""
    await client.start_data(*(recipients or (RECIPIENT,)), sender=sender)
    client.send_bytes(raw + b".\r\n")
    return await client.read_reply()
