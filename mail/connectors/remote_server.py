"""An account elsewhere: where it is, how one signs in, and at which stage that failed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from models.connectors import Protocol, Security

PORTS = {
    (Protocol.IMAP, Security.TLS): 993,
    (Protocol.IMAP, Security.STARTTLS): 143,
    (Protocol.IMAP, Security.PLAIN): 143,
    (Protocol.POP3, Security.TLS): 995,
    (Protocol.POP3, Security.STARTTLS): 110,
    (Protocol.POP3, Security.PLAIN): 110,
}
MESSAGES = 1_000_000  # of a folder, at most
SAID = 300  # characters of what a server says that are passed on


class Stage(StrEnum):
    """Where a run is, or was when it failed."""

    RESOLVE = "RESOLVE"
    CONNECT = "CONNECT"
    TLS = "TLS"
    GREETING = "GREETING"
    LOGIN = "LOGIN"
    LIST = "LIST"
    FETCH = "FETCH"
    STORE = "STORE"
    DELETE = "DELETE"
    LISTEN = "LISTEN"


class Failure(Exception):
    """The server elsewhere does not do what it should. The text is fit to be shown."""

    def __init__(self, stage: Stage, message: str, *, refused: bool = False) -> None:
        self.stage, self.message = stage, message
        self.refused = refused  # by whoever asked for a password: trying again is no use
        super().__init__(message)


class Denied(Failure):
    """The server says no; the session can go on."""


@dataclass(frozen=True, slots=True)
class Server:
    """How an account elsewhere is reached; what is secret is never shown."""

    protocol: Protocol
    host: str
    port: int
    security: Security
    mechanism: str  # one of MECHANISMS
    username: str
    secret: str = field(repr=False)  # a password, or the access token of OAuth 2.0
    timeout: float = 600.0  # seconds of silence
    rate: int = 0  # bytes a second, 0: as fast as it can


MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER")
BY_TOKEN = frozenset({"XOAUTH2", "OAUTHBEARER"})


class Listed(NamedTuple):
    """A folder of the account: the name as the server spells it, and as people read it."""

    raw: bytes
    levels: Sequence[str]
    use: str | None  # "\\Sent", as RFC 6154 spells it


class Opened(NamedTuple):
    """A folder, as it was when it was opened."""

    validity: int  # UIDVALIDITY; 0: the protocol has none
    modseq: int  # HIGHESTMODSEQ of RFC 7162; 0: the server has none
    exists: int


class Head(NamedTuple):
    """What is known of a message before it is fetched."""

    mark: str  # its UID, or its UIDL of POP3
    size: int
    flags: frozenset[str]
    received_at: datetime | None


def said(text: object) -> str:
    """What a server says, or what is wrong with it, fit to be shown."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    shown = "".join(sign if sign.isprintable() else " " for sign in words)
    return " ".join(shown.split())[:SAID]
