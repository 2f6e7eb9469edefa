"""Tables of connectors, their runs, remote mailboxes and fetched messages."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from models.admin.tasks import TaskState
from models.store.columns import (
    BIG_INTEGER,
    BYTEWISE_TEXT,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    enum_column,
    foreign_key,
    json_column,
    lease_index,
)


class ConnectorProtocol(StrEnum):
    """The protocol of the source; ARCHIVE and USER are for single imports only."""

    IMAP = "IMAP"
    POP3 = "POP3"
    ARCHIVE = "ARCHIVE"
    USER = "USER"


class ConnectorSecurity(StrEnum):
    """How the connection is encrypted."""

    NONE = "NONE"
    STARTTLS = "STARTTLS"
    TLS = "TLS"


class AuthMechanism(StrEnum):
    """A SASL mechanism. The names have `_` where SASL has `-`."""

    PLAIN = "PLAIN"
    LOGIN = "LOGIN"
    CRAM_MD5 = "CRAM_MD5"
    XOAUTH2 = "XOAUTH2"
    OAUTHBEARER = "OAUTHBEARER"

    @property
    def sasl_name(self) -> str:
        """The name in the protocols, such as `CRAM-MD5`."""
        return self.value.replace("_", "-")


class Connector(UserOwnedRow, table=True):
    """An account on another server. The process that runs it has a lease."""

    __tablename__ = "connectors"
    __table_args__ = (
        Index(
            "connectors_due",
            "next_run_at",
            sqlite_where=text("next_run_at IS NOT NULL"),
            postgresql_where=text("next_run_at IS NOT NULL"),
        ),
        lease_index("connectors"),
    )

    name: str
    protocol: ConnectorProtocol = enum_column(ConnectorProtocol)
    host: str  # in ASCII
    port: Int64
    security: ConnectorSecurity = enum_column(ConnectorSecurity)
    auth_mechanism: AuthMechanism = enum_column(AuthMechanism)
    username: str
    secret: str  # encrypted: a password, or the OAuth credentials as JSON
    oauth: dict[str, Any] | None = json_column()  # token endpoint and its parameters
    target_domain: str | None = None
    target_folder: str | None = None
    interval: OptionalInt64 = None  # seconds between two runs; None: on request
    max_age: OptionalInt64 = None  # seconds
    max_bytes_per_second: OptionalInt64 = None  # None: unlimited
    exclude: str | None = None
    folder_rewrites: list[dict[str, str]] = json_column(list)
    auto_map_folders: bool = True
    subscribe_all: bool = True
    skip_cross_duplicates: bool = False
    remove_duplicates: bool = True
    source_retention: OptionalInt64 = None  # seconds; None: messages stay at the source
    mirror_deletes: bool = False
    remote_timeout: Int64 = 600
    local_timeout: Int64 = 600
    custom_options: list[dict[str, Any]] = json_column(list)
    import_options: dict[str, Any] | None = json_column()  # what a single import includes
    spam_check: bool = True
    virus_check: bool = True
    apply_filters: bool = False
    active: bool = True
    last_run_at: OptionalTimestamp = None
    last_success_at: OptionalTimestamp = None
    last_error: str | None = None
    failures: Int64 = 0  # in a row
    next_run_at: OptionalTimestamp = None
    run_id: OptionalInt64 = None  # the run that is queued or running
    lease: OptionalInt64 = None
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    created_at: Timestamp
    updated_at: OptionalTimestamp = None
    is_one_time: bool = False  # a single import: hidden, and deleted with its run


class ConnectorRun(UserOwnedRow, table=True):
    """One execution of a connector, with its result. Pages are in descending order of id."""

    __tablename__ = "connector_runs"
    __table_args__ = (Index("connector_runs_of_connector", "connector_id", "id"),)

    connector_id: int = foreign_key("connectors.id", index=False)
    state: TaskState = enum_column(TaskState, default=TaskState.QUEUED)
    dry_run: bool = False  # nothing is stored or deleted
    cancelled: bool = False  # requested to stop at the next safe point
    created_at: Timestamp
    started_at: OptionalTimestamp = None
    finished_at: OptionalTimestamp = None
    stage: str | None = None
    folder: str | None = None
    seen_count: Int64 = 0
    imported_count: Int64 = 0
    skipped_count: Int64 = 0
    deleted_remote_count: Int64 = 0
    size: Int64 = 0  # bytes of the fetched messages
    error: str | None = None
    log: list[str] = json_column(list)
    # the position after which a single import continues
    checkpoint: dict[str, Any] | None = json_column()


class RemoteMailbox(RowWithId, table=True):
    """A mailbox on the other server, and the changes of it that were fetched."""

    __tablename__ = "remote_mailboxes"
    __table_args__ = (Index("connector_folders_by_name", "connector_id", "name", unique=True),)

    connector_id: int = foreign_key("connectors.id", index=False)
    name: str = Field(sa_type=BYTEWISE_TEXT)  # as the server spells it, one character for each byte
    validity: Int64 = 0  # UIDVALIDITY
    modseq: Int64 = 0  # HIGHESTMODSEQ up to which flags were fetched


class FetchedMessage(SQLModel, table=True):
    """A message that was fetched, and the message it is stored as."""

    __tablename__ = "fetched_messages"
    __table_args__ = (
        Index("connector_messages_by_digest", "folder_id", "digest"),
        Index("connector_messages_of_message", "message_id"),
    )

    folder_id: int = foreign_key("remote_mailboxes.id", primary_key=True, index=False)
    remote_id: str = Field(primary_key=True, sa_type=BYTEWISE_TEXT)  # UID of IMAP, UIDL of POP3
    digest: str  # SHA-256 of the whole message, hex
    message_id: int | None = Field(default=None, sa_type=BIG_INTEGER)  # it may be deleted
    flags: str = ""  # as they were last at the source
    fetched_at: Timestamp
    removed: bool = False  # deleted at the source
    may_delete_source: bool = (
        True  # it is or was stored here: refused messages are not deleted at the source
    )
