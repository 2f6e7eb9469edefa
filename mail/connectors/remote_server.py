"""A remote server of a connector: its address, credentials, mailboxes and failures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity

PORTS = {
    (ConnectorProtocol.IMAP, ConnectorSecurity.TLS): 993,
    (ConnectorProtocol.IMAP, ConnectorSecurity.STARTTLS): 143,
    (ConnectorProtocol.IMAP, ConnectorSecurity.NONE): 143,
    (ConnectorProtocol.POP3, ConnectorSecurity.TLS): 995,
    (ConnectorProtocol.POP3, ConnectorSecurity.STARTTLS): 110,
    (ConnectorProtocol.POP3, ConnectorSecurity.NONE): 110,
}
MAX_MESSAGES = 1_000_000  # of a mailbox
MAX_TEXT_LENGTH = 300  # characters of a text of the server that are shown


class ConnectorStage(StrEnum):
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
    IDLE = "IDLE"


class RemoteFailure(Exception):
    """The remote server doesn't work as it should. The text can be shown to the user."""

    def __init__(self, stage: ConnectorStage, message: str, *, is_permanent: bool = False) -> None:
        self.stage, self.message = stage, message
        self.is_permanent = is_permanent  # the credentials are refused: a retry is useless
        super().__init__(message)


class RequestRefused(RemoteFailure):
    """The remote server has refused a request; the session can continue."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """The address and credentials of an account on another server. The secret is never shown."""

    protocol: ConnectorProtocol
    host: str
    port: int
    security: ConnectorSecurity
    mechanism: AuthMechanism
    username: str
    secret: str = field(repr=False)  # a password, or an OAuth 2.0 access token
    timeout: float = 600.0  # seconds of silence
    bytes_per_second: int | None = None  # None: unlimited


TOKEN_MECHANISMS = frozenset({AuthMechanism.XOAUTH2, AuthMechanism.OAUTHBEARER})
SASL_MECHANISMS = TOKEN_MECHANISMS | {AuthMechanism.CRAM_MD5}  # need the AUTH command


class ListedMailbox(NamedTuple):
    """A remote mailbox: its raw name, and its decoded levels."""

    raw_name: bytes
    levels: Sequence[str]
    special_use: str | None  # "\\Sent", as RFC 6154 spells it


class OpenedMailbox(NamedTuple):
    """The state of a remote mailbox when it was opened."""

    uid_validity: int  # 0: the protocol has none
    modseq: int  # HIGHESTMODSEQ of RFC 7162; 0: the server has none
    message_count: int


class RemoteMessage(NamedTuple):
    """The metadata of a remote message before it is fetched."""

    message_id: str  # UID of IMAP, or UIDL of POP3
    size: int
    flags: frozenset[str]
    received_at: datetime | None


def printable_text(value: object) -> str:
    """The text of a server or an error in one printable line of limited length."""
    return printable_line(value)[:MAX_TEXT_LENGTH]


def printable_line(value: object) -> str:
    """The text of a server or an error in one printable line."""
    words = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    clean_text = "".join(sign if sign.isprintable() else " " for sign in words)
    return " ".join(clean_text.split())
