"""A test message that is sent to the running server over LMTP."""

import mimetypes
import smtplib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, make_msgid
from pathlib import Path

from merganser.errors import Trouble
from merganser.server.sockets import split_host_port

TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Test:
    """Sender, recipient and content of a test message."""

    to: str
    sender: str
    subject: str
    text: str
    files: tuple[Path, ...] = ()


def message(test: Test) -> EmailMessage:
    """Compose the message. Raises CommandError if an attachment or an address is invalid."""
    email = EmailMessage()
    try:
        email["From"], email["To"], email["Subject"] = test.sender, test.to, test.subject
    except (ValueError, IndexError) as problem:
        raise Trouble(f"such a header is not possible: {problem}") from problem
    email["Date"] = format_datetime(datetime.now(UTC))
    email["Message-ID"] = make_msgid(domain="merganser.test")
    email.set_content(test.text)
    for file in test.files:
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        main_type, _, subtype = media_type.partition("/")
        try:
            content = file.read_bytes()
        except OSError as problem:
            raise Trouble(f"cannot read {file}: {(problem.strerror or '').lower()}") from problem
        email.add_attachment(content, maintype=main_type, subtype=subtype, filename=file.name)
    return email


def send(lmtp: str, test: Test) -> str:
    """Send a test message to an LMTP server at `host:port`, and return its reply.

    Raises CommandError if the server can't be reached or rejects the message.
    """
    host, port = split_host_port(lmtp)
    raw = message(test).as_bytes(policy=SMTPUTF8)
    try:
        with smtplib.LMTP(host, port, timeout=TIMEOUT) as client:
            client.ehlo_or_helo_if_needed()
            _checked(client.mail(test.sender, ["SMTPUTF8"]), test.sender)
            _checked(client.rcpt(test.to), test.to)
            return _checked(client.data(raw), test.to)
    except smtplib.SMTPException as problem:
        raise Trouble(f"{lmtp} does not speak LMTP as it should: {problem}") from problem
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise Trouble(
            f"no LMTP server answers at {lmtp} ({reason}): start one with `merganser serve`, "
            "or set MERGANSER_LMTP to where it is"
        ) from problem


def _checked(answer: tuple[int, bytes], whose: str) -> str:
    """Return the reply as text. Raises CommandError if its code is not 2xx."""
    code, words = answer
    text = f"{code} {words.decode(errors='replace')}"
    if not 200 <= code < 300:  # noqa: PLR2004 - RFC 5321, section 4.2.1
        raise Trouble(f"{whose} was refused: {text}")
    return text
