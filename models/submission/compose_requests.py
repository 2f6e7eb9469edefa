"""Tables of compose requests, of the clients that listen for them, and of the files of drafts."""

from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
    json_column,
)


class ComposeRequest(UserOwnedRow, table=True):
    """A compose window that was requested; clients of the user open it until it expires."""

    __tablename__ = "compose_requests"

    identity_id: OptionalInt64 = None  # also of an identity without a row
    mailbox_id: OptionalInt64 = None  # it may be deleted
    content: dict[str, Any] = json_column(dict)  # the contents of the window, by field
    requested_by: str | None = None
    created_at: Timestamp
    expires_at: Timestamp = Field(sa_type=UtcDateTime, index=True)


class ComposeListener(UserOwnedRow, table=True):
    """A client that opens compose windows. It is connected to the process `holder`."""

    __tablename__ = "compose_listeners"

    holder: Int64 = 0


class DraftFile(SQLModel, table=True):
    """A stored file attached to a draft; `nth` is the order."""

    __tablename__ = "draft_files"

    message_id: int = foreign_key("messages.id", primary_key=True, index=False)
    file_id: int = foreign_key("files.id", primary_key=True)
    nth: Int64 = 0
