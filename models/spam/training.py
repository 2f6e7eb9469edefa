"""Table of messages that spam filters are trained with."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from models.store.columns import Instant, MaybeNumber, Number, lease_index, ref


class Lesson(SQLModel, table=True):
    """A message that a user moved to or from Junk. The row is deleted after the training."""

    __tablename__ = "lessons"
    __table_args__ = (lease_index("lessons"),)

    message_id: int = ref("messages.id", primary_key=True, index=False)
    spam: bool
    turn: Number  # increased each time the user changes the verdict
    due_at: datetime = Field(sa_type=Instant, index=True)
    holder: MaybeNumber = None  # the process with the lease; see models/runtime/leases.py
    attempts: Number = 0
