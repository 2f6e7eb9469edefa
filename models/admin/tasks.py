"""Work that goes on behind a request, and tokens that take work back."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import (
    Big,
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    Row,
    choice,
    lease_index,
    plain,
    ref,
)


class TaskState(StrEnum):
    """Where a task stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Task(Row, table=True):
    """Background work. Held by a lease with a heartbeat; goes on from its checkpoint."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index(
            "tasks_due",
            "created_at",
            "id",
            sqlite_where=text("finished_at IS NULL"),
            postgresql_where=text("finished_at IS NULL"),
        ),
        lease_index("tasks"),
    )

    kind: str
    state: TaskState = choice(TaskState, default=TaskState.QUEUED)
    user_id: int | None = ref("users.id", default=None)
    actor_id: int | None = Field(default=None, sa_type=Big, index=True)  # who asked, of another's
    not_before: MaybeMoment = None  # it waits until then
    done: Number = 0
    total: MaybeNumber = None
    order: dict[str, Any] = plain(dict)  # what is to be done
    checkpoint: dict[str, Any] | None = plain()
    result: dict[str, Any] | None = plain()
    error: str | None = None
    cancelled: bool = False  # asked to stop at the next safe point
    lease: MaybeNumber = None  # who holds it
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py
    attempts: Number = 0
    created_at: Moment
    started_at: MaybeMoment = None
    finished_at: MaybeMoment = None


class Undo(Owned, table=True):
    """How to take back what was done to messages. Good for ten minutes, once."""

    __tablename__ = "undos"

    digest: str = Field(unique=True)  # SHA-256 of the token, hex
    before: dict[str, Any] = plain(dict)  # what each message was: resolvers/admin/tasks.py
    expires_at: datetime = Field(sa_type=Instant, index=True)
