"""Tables of compose requests, of the clients that listen for them, and of the files of drafts."""

from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import Instant, MaybeNumber, Moment, Number, Owned, plain, ref


class ComposeRequest(Owned, table=True):
    """A compose window that was requested; clients of the user open it until it expires."""

    __tablename__ = "compose_requests"

    identity_id: MaybeNumber = None  # also of an identity without a row
    mailbox_id: MaybeNumber = None  # it may be deleted
    written: dict[str, Any] = plain(dict)  # the contents of the window, by field
    requested_by: str | None = None
    created_at: Moment
    expires_at: Moment = Field(sa_type=Instant, index=True)


class ComposeListener(Owned, table=True):
    """A client that opens compose windows. It is connected to the process `holder`."""

    __tablename__ = "compose_listeners"

    holder: Number = 0


class DraftFile(SQLModel, table=True):
    """A stored file attached to a draft; `nth` is the order."""

    __tablename__ = "draft_files"

    message_id: int = ref("messages.id", primary_key=True, index=False)
    file_id: int = ref("files.id", primary_key=True)
    nth: Number = 0
