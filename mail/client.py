"""Who handed a message in by SMTP."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """The other side of a connection: its address, the name it gave, its TLS, and its user."""

    ip: str | None
    helo: str
    tls: str | None = None
    authenticated: str | None = None
