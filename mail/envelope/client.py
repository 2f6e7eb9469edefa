"""The SMTP client that submitted a message."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """The address, HELO name, TLS connection and login of an SMTP client."""

    ip: str | None
    helo: str
    tls: str | None = None  # protocol version and cipher
    authenticated: str | None = None  # of SMTP AUTH
