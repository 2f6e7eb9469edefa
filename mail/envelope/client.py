"""Who handed a message in by SMTP."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """A server that connected, and what it said and did before it sent mail."""

    ip: str | None
    helo: str
    tls: str | None = None  # version and cipher
    authenticated: str | None = None  # as whom
