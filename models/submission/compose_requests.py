"""What is asked of a client that writes, who would hear it, and which files a draft was given."""

from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import Instant, MaybeNumber, Moment, Number, Owned, plain, ref


class ComposeRequest(Owned, table=True):
    """A window to write in that was asked for; clients of the account open it while it lasts."""

    __tablename__ = "compose_requests"

    identity_id: MaybeNumber = None  # of what has no row of its own as well
    mailbox_id: MaybeNumber = None  # may be gone by now
    written: dict[str, Any] = plain(dict)  # what is in the window, by field
    requested_by: str | None = None
    created_at: Moment
    expires_at: Moment = Field(sa_type=Instant, index=True)


class ComposeListener(Owned, table=True):
    """A client that would open such a window. It is connected to the process `holder`."""

    __tablename__ = "compose_listeners"

    holder: Number = 0


class DraftFile(SQLModel, table=True):
    """A stored file that a draft was given, in their order by `nth`."""

    __tablename__ = "draft_files"

    message_id: int = ref("messages.id", primary_key=True, index=False)
    file_id: int = ref("files.id", primary_key=True)
    nth: Number = 0
