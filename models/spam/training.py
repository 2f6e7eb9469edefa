"""What a spam filter is to learn from what users do with their mail."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from models.store.columns import Instant, MaybeNumber, Number, lease_index, ref


class Lesson(SQLModel, table=True):
    """A message that was spam after all, or was not. It goes once it has been learned."""

    __tablename__ = "lessons"
    __table_args__ = (lease_index("lessons"),)

    message_id: int = ref("messages.id", primary_key=True, index=False)
    spam: bool
    turn: Number  # another one each time that somebody changes his mind
    due_at: datetime = Field(sa_type=Instant, index=True)
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py
    attempts: Number = 0
