"""The Received header field that each server adds (RFC 5321, section 4.4)."""

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from mail.envelope.client import Client

HELLO = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")  # a name or an address literal
_FIELD = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Hop:
    """The values of a Received field."""

    client: Client
    hostname: str  # of this server
    key: str  # as in the log
    at: datetime
    extended: bool = True  # EHLO was sent
    utf8: bool = False

    @property
    def protocol(self) -> str:
        """The protocol name of RFC 3848 and RFC 6531, section 4.3."""
        if not self.extended:
            return "SMTP"
        name = "UTF8SMTP" if self.utf8 else "ESMTP"
        secure = "S" if self.client.tls else ""
        return f"{name}{secure}{'A' if self.client.authenticated else ''}"

    def field(self) -> bytes:
        """Return the header field. The address of a signed-in client is omitted."""
        client = self.client
        begin = "" if client.authenticated else f"from {client.helo} ({_literal(client.ip)})\r\n\t"
        tls = f" ({client.tls})" if client.tls else ""
        text = f"{begin}by {self.hostname} with {self.protocol}{tls}\r\n\tid {self.key}"
        return f"Received: {text}; {format_datetime(self.at)}\r\n".encode()


def _literal(ip: str | None) -> str:
    """Return the IP address as a literal (RFC 5321, section 4.1.3)."""
    if ip is None:
        return "unknown"
    return f"[IPv6:{ip}]" if ipaddress.ip_address(ip).version == 6 else f"[{ip}]"  # noqa: PLR2004


def hops(raw: bytes) -> int:
    """Return the number of Received fields in the header."""
    end = _HEADER_END.search(raw)
    return len(_FIELD.findall(raw[: end.start()] if end else raw))
