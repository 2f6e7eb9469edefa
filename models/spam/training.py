"""Table of messages that spam filters are trained with."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from models.store.columns import Int64, OptionalInt64, UtcDateTime, foreign_key, lease_index


class TrainingMessage(SQLModel, table=True):
    """A message that a user moved to or from Junk. The row is deleted after the training."""

    __tablename__ = "training_messages"
    __table_args__ = (lease_index("training_messages"),)

    message_id: int = foreign_key("messages.id", primary_key=True, index=False)
    spam: bool
    revision: Int64  # increased each time the user changes the verdict
    due_at: datetime = Field(sa_type=UtcDateTime, index=True)
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    attempts: Int64 = 0
