"""The Received header field that each server adds (RFC 5321, section 4.4)."""

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from mail.envelope.client import SmtpClientInfo

HELO_PATTERN = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")  # a name or an address literal
_RECEIVED_FIELD = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class ReceivedField:
    """The values of a Received field."""

    client: SmtpClientInfo
    hostname: str  # of this server
    queue_id: str  # as in the log
    received_at: datetime
    is_esmtp: bool = True  # EHLO was sent
    smtputf8: bool = False

    @property
    def protocol_name(self) -> str:
        """The protocol name of RFC 3848 and RFC 6531, section 4.3."""
        if not self.is_esmtp:
            return "SMTP"
        name = "UTF8SMTP" if self.smtputf8 else "ESMTP"
        secure = "S" if self.client.tls_description else ""
        return f"{name}{secure}{'A' if self.client.username else ''}"

    def to_bytes(self) -> bytes:
        """Return the header field. The address of a signed-in client is omitted."""
        client = self.client
        begin = (
            ""
            if client.username
            else f"from {client.helo_name} ({_address_literal(client.ip_address)})\r\n\t"
        )
        tls = f" ({client.tls_description})" if client.tls_description else ""
        text = f"{begin}by {self.hostname} with {self.protocol_name}{tls}\r\n\tid {self.queue_id}"
        return f"Received: {text}; {format_datetime(self.received_at)}\r\n".encode()


def _address_literal(ip: str | None) -> str:
    """Return the IP address as a literal (RFC 5321, section 4.1.3)."""
    if ip is None:
        return "unknown"
    return f"[IPv6:{ip}]" if ipaddress.ip_address(ip).version == 6 else f"[{ip}]"  # noqa: PLR2004


def count_received_fields(raw_message: bytes) -> int:
    """Return the number of Received fields in the header."""
    end = _HEADER_END.search(raw_message)
    return len(_RECEIVED_FIELD.findall(raw_message[: end.start()] if end else raw_message))
