"""A remote server of a connector: its address, credentials, mailboxes and failures."""

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
MESSAGES = 1_000_000  # of a mailbox
SAID = 300  # characters of a text of the server that are shown


class Stage(StrEnum):
    """The stage that a connector run is at, or at which it failed."""

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
    """The remote server doesn't work as it should. The text can be shown to the user."""

    def __init__(self, stage: Stage, message: str, *, refused: bool = False) -> None:
        self.stage, self.message = stage, message
        self.refused = refused  # the credentials are refused: a retry is useless
        super().__init__(message)


class Denied(Failure):
    """The remote server has refused a request; the session can continue."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address and credentials of an account on another server. The secret is never shown."""

    protocol: Protocol
    host: str
    port: int
    security: Security
    mechanism: str  # one of MECHANISMS
    username: str
    secret: str = field(repr=False)  # a password, or an OAuth 2.0 access token
    timeout: float = 600.0  # seconds of silence
    rate: int = 0  # 0: unlimited


MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER")
BY_TOKEN = frozenset({"XOAUTH2", "OAUTHBEARER"})


class Listed(NamedTuple):
    """A remote mailbox: its raw name, and its decoded levels."""

    raw: bytes
    levels: Sequence[str]
    use: str | None  # "\\Sent", as RFC 6154 spells it


class Opened(NamedTuple):
    """The state of a remote mailbox when it was opened."""

    validity: int  # 0: the protocol has none
    modseq: int  # HIGHESTMODSEQ of RFC 7162; 0: the server has none
    exists: int


class Head(NamedTuple):
    """The metadata of a remote message before it is fetched."""

    mark: str  # UID of IMAP, or UIDL of POP3
    size: int
    flags: frozenset[str]
    received_at: datetime | None


def said(text: object) -> str:
    """The text of a server or an error in one printable line of limited length."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    shown = "".join(sign if sign.isprintable() else " " for sign in words)
    return " ".join(shown.split())[:SAID]
