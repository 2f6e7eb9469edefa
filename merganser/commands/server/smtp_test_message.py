"""A test message that is sent to the running server over LMTP."""

import mimetypes
import smtplib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, make_msgid
from pathlib import Path

from merganser.errors import CommandError
from merganser.server.sockets import split_host_port

SMTP_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class TestMessage:
    """Sender, recipient and content of a test message."""

    recipient: str
    sender: str
    subject: str
    text: str
    attachments: tuple[Path, ...] = ()


def compose_message(test_message: TestMessage) -> EmailMessage:
    """Compose the message. Raises CommandError if an attachment or an address is invalid."""
    email = EmailMessage()
    try:
        email["From"], email["To"], email["Subject"] = (
            test_message.sender,
            test_message.recipient,
            test_message.subject,
        )
    except (ValueError, IndexError) as problem:
        raise CommandError(f"The header is invalid: {problem}.") from problem
    email["Date"] = format_datetime(datetime.now(UTC))
    email["Message-ID"] = make_msgid(domain="merganser.test")
    email.set_content(test_message.text)
    for file in test_message.attachments:
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        main_type, _, subtype = media_type.partition("/")
        try:
            content = file.read_bytes()
        except OSError as problem:
            raise CommandError(
                f"Cannot read {file}: {(problem.strerror or '').lower()}."
            ) from problem
        email.add_attachment(content, maintype=main_type, subtype=subtype, filename=file.name)
    return email


def send_over_lmtp(lmtp_address: str, test_message: TestMessage) -> str:
    """Send a test message to an LMTP server at `host:port`, and return its reply.

    Raises CommandError if the server can't be reached or rejects the message.
    """
    host, port = split_host_port(lmtp_address)
    raw = compose_message(test_message).as_bytes(policy=SMTPUTF8)
    try:
        with smtplib.LMTP(host, port, timeout=SMTP_TIMEOUT) as client:
            client.ehlo_or_helo_if_needed()
            _success_reply_text_or_fail_command(
                client.mail(test_message.sender, ["SMTPUTF8"]), test_message.sender
            )
            _success_reply_text_or_fail_command(
                client.rcpt(test_message.recipient), test_message.recipient
            )
            return _success_reply_text_or_fail_command(client.data(raw), test_message.recipient)
    except smtplib.SMTPException as problem:
        raise CommandError(
            f"{lmtp_address} does not answer as an LMTP server: {problem}."
        ) from problem
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise CommandError(
            f"No LMTP server responds at {lmtp_address} ({reason}): start one with "
            "`merganser serve`, or set MERGANSER_LMTP_LISTEN to its address."
        ) from problem


def _success_reply_text_or_fail_command(reply: tuple[int, bytes], address: str) -> str:
    """Return the reply as text. Raises CommandError if its code is not 2xx."""
    code, reply_text = reply
    text = f"{code} {reply_text.decode(errors='replace')}"
    if not 200 <= code < 300:  # noqa: PLR2004 - RFC 5321, section 4.2.1
        raise CommandError(f"{address} was rejected: {text}")
    return text
