"""Mail that is held: nobody has it in a folder, and its owner decides what becomes of it."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from models.store.columns import Instant, Moment, Number, Owned, plain, ref


class QuarantineItem(Owned, table=True):
    """A message that is held for one account. Pages run newest first, by (created_at, id).

    Its bytes are the blob `blob_id` and those that its reference rows name.
    """

    __tablename__ = "quarantine_items"
    __table_args__ = (
        Index("quarantine_by_age", "created_at", "id"),
        Index("quarantine_of_user", "user_id", "created_at", "id"),
        Index(
            "quarantine_untold",
            "created_at",
            sqlite_where=text("NOT notified"),
            postgresql_where=text("NOT notified"),
        ),
    )

    domain_id: int | None = ref("domains.id", ondelete="SET NULL", default=None)  # of `recipient`
    queue_id: str  # by which logs tell of it
    receipt: str  # by which a repeat of the delivery is known
    sender: str  # of the envelope; empty: a bounce
    recipient: str  # of the envelope
    from_name: str | None = None
    from_address: str | None = None
    subject: str = ""
    score: float
    symbols: list[dict[str, Any]] = plain(list)  # name, score, description
    tests: str = ""  # their names, with spaces between
    virus: str | None = None  # what was found
    size: Number  # bytes
    digest: str  # SHA-256 of the whole message, hex
    blob_id: Number
    structure: bytes = Field(sa_type=LargeBinary)  # the MIME tree: mail/messages
    attachments: list[dict[str, Any]] = plain(list)
    verification: dict[str, Any] | None = plain()  # as a message has it
    # what its sender wants to be told of, and the address that he named; None: he has not said
    wish: dict[str, Any] | None = plain()
    notified: bool = False  # a letter has told of it
    created_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)


class QuarantineBlob(SQLModel, table=True):
    """A message that is held needs a blob."""

    __tablename__ = "quarantine_blobs"

    item_id: int = ref("quarantine_items.id", primary_key=True, index=False)
    blob_id: int = ref("blobs.id", primary_key=True, ondelete="RESTRICT")
