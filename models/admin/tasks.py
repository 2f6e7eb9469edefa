"""Tables of background tasks and of undo tokens."""

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
    """The state of a task."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Task(Row, table=True):
    """A task. The process that works on it has a lease, and continues after its checkpoint."""

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
    # the administrator who requested it for another user
    actor_id: int | None = Field(default=None, sa_type=Big, index=True)
    not_before: MaybeMoment = None  # it starts no earlier
    done: Number = 0
    total: MaybeNumber = None
    order: dict[str, Any] = plain(dict)  # the input
    checkpoint: dict[str, Any] | None = plain()
    result: dict[str, Any] | None = plain()
    error: str | None = None
    cancelled: bool = False  # requested to stop at the next safe point
    lease: MaybeNumber = None  # number of the current lease
    holder: MaybeNumber = None  # the process with the lease; see models/runtime/leases.py
    attempts: Number = 0
    created_at: Moment
    started_at: MaybeMoment = None
    finished_at: MaybeMoment = None


class Undo(Owned, table=True):
    """The data that reverts a change of messages. It is valid for ten minutes, once."""

    __tablename__ = "undos"

    digest: str = Field(unique=True)  # SHA-256 of the token, hex
    before: dict[str, Any] = plain(dict)  # the messages before the change: resolvers/admin/tasks.py
    expires_at: datetime = Field(sa_type=Instant, index=True)
