"""The SMTP client that submitted a message."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SmtpClientInfo:
    """The address, HELO name, TLS connection and login of an SMTP client."""

    ip_address: str | None
    helo_name: str
    tls_description: str | None = None  # protocol version and cipher
    username: str | None = None  # of SMTP AUTH
