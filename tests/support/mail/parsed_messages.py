"""Messages as Python's parser reads them."""

import email
from email import policy
from email.message import EmailMessage


def parse_message(raw: bytes) -> EmailMessage:
    """Parse a message with Python's parser."""
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def body_text(message: EmailMessage, kind: str = "plain") -> str:
    """The text of a message, of the plain part or of another kind."""
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).strip()


def parse_smtp_message(raw: bytes) -> EmailMessage:
    """Parse a message and check its line lengths and line ends (RFC 5322, section 2.1.1)."""
    message = parse_message(raw)
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    return message
