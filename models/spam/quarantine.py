"""Tables of the quarantine: messages that are held back for a user to release."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
    json_column,
)


class QuarantineItem(UserOwnedRow, table=True):
    """A message in the quarantine of a user. Pages are in descending order of (created_at, id).

    Its bytes are the blob `blob_id` and those of its reference rows.
    """

    __tablename__ = "quarantine_items"
    __table_args__ = (
        Index("quarantine_by_age", "created_at", "id"),
        # of all users; a user has few
        Index("quarantine_by_score", "score", "id"),
        Index("quarantine_by_size", "size", "id"),
        Index("quarantine_of_user", "user_id", "created_at", "id"),
        Index(
            "quarantine_unnotified",
            "created_at",
            sqlite_where=text("NOT notified"),
            postgresql_where=text("NOT notified"),
        ),
    )

    # of `recipient`
    domain_id: int | None = foreign_key("domains.id", ondelete="SET NULL", default=None)
    queue_id: str  # as in log records
    receipt: str  # digest that identifies a repeat of the delivery
    sender: str  # of the envelope; empty: a bounce
    recipient: str  # of the envelope
    from_name: str | None = None
    from_address: str | None = None
    subject: str = ""
    score: float
    symbols: list[dict[str, Any]] = json_column(list)  # name, score, description
    tests: str = ""  # their names, with spaces between
    virus: str | None = None  # its name
    size: Int64  # bytes
    sha256: str  # SHA-256 of the whole message, hex
    blob_id: Int64
    mime_structure: bytes = Field(sa_type=LargeBinary)  # the MIME tree: mail/messages
    attachments: list[dict[str, Any]] = json_column(list)
    authentication: dict[str, Any] | None = json_column()  # as in `Message`
    # the DSN request of the sender, or the account of a fetched message; None: neither
    dsn_request: dict[str, Any] | None = json_column()
    notified: bool = False  # the user got a notice about it
    created_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class QuarantineBlob(SQLModel, table=True):
    """The reference row that keeps a blob of the quarantine from being deleted."""

    __tablename__ = "quarantine_blobs"

    item_id: int = foreign_key("quarantine_items.id", primary_key=True, index=False)
    blob_id: int = foreign_key("blobs.id", primary_key=True, ondelete="RESTRICT")
