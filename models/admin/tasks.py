"""Tables of background tasks and of undo tokens."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
    lease_index,
)


class TaskState(StrEnum):
    """The state of a task."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class TaskKind(StrEnum):
    """What a task does."""

    ADDRESSES_CREATE = "ADDRESSES_CREATE"
    BLOB_COLLECT = "BLOB_COLLECT"
    BLOB_DELETE = "BLOB_DELETE"
    DELETED_MESSAGES_RESTORE = "DELETED_MESSAGES_RESTORE"
    FILTERS_CREATE = "FILTERS_CREATE"
    FILTER_APPLY = "FILTER_APPLY"
    HELD_COPY = "HELD_COPY"
    LIMIT_WARNING = "LIMIT_WARNING"
    MAILBOX_REPAIR = "MAILBOX_REPAIR"
    MAILBOX_RETENTION = "MAILBOX_RETENTION"
    MESSAGE_COPY = "MESSAGE_COPY"
    MESSAGE_DEDUPLICATE = "MESSAGE_DEDUPLICATE"
    MESSAGE_DELETE = "MESSAGE_DELETE"
    MESSAGE_MOVE = "MESSAGE_MOVE"
    MESSAGE_TIER_MOVE = "MESSAGE_TIER_MOVE"
    MESSAGE_UPDATE = "MESSAGE_UPDATE"
    QUARANTINE_NOTIFICATION = "QUARANTINE_NOTIFICATION"
    QUEUE_DELETE = "QUEUE_DELETE"
    QUEUE_FLUSH = "QUEUE_FLUSH"
    QUOTA_RECALCULATE = "QUOTA_RECALCULATE"
    SEARCH_INDEX_BUILD = "SEARCH_INDEX_BUILD"
    SEARCH_INDEX_OPTIMIZE = "SEARCH_INDEX_OPTIMIZE"
    SEARCH_INDEX_REBUILD = "SEARCH_INDEX_REBUILD"
    SECURITY_NOTIFICATION = "SECURITY_NOTIFICATION"
    USERS_CREATE = "USERS_CREATE"
    USER_DELETE = "USER_DELETE"
    USER_EXPORT = "USER_EXPORT"
    USER_IMPORT = "USER_IMPORT"
    USER_IMPORT_COMMAND = "USER_IMPORT_COMMAND"
    WEBHOOK_REPLAY = "WEBHOOK_REPLAY"


class Task(RowWithId, table=True):
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

    kind: TaskKind = enum_column(TaskKind)
    state: TaskState = enum_column(TaskState, default=TaskState.QUEUED)
    user_id: int | None = foreign_key("users.id", default=None)
    # the administrator who requested it for another user
    actor_id: int | None = Field(default=None, sa_type=BIG_INTEGER, index=True)
    not_before: OptionalTimestamp = None  # it starts no earlier
    done_count: Int64 = 0
    total_count: OptionalInt64 = None
    order: dict[str, Any] = json_column(dict)  # the input
    checkpoint: dict[str, Any] | None = json_column()
    result: dict[str, Any] | None = json_column()
    error: str | None = None
    cancelled: bool = False  # requested to stop at the next safe point
    lease: OptionalInt64 = None  # number of the current lease
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    attempts: Int64 = 0
    created_at: Timestamp
    started_at: OptionalTimestamp = None
    finished_at: OptionalTimestamp = None


class UndoRecord(UserOwnedRow, table=True):
    """The data that reverts a change of messages. It is valid for ten minutes, once."""

    __tablename__ = "undo_records"

    digest: str = Field(unique=True)  # SHA-256 of the token, hex
    # the messages before the change: resolvers/admin/tasks.py
    before: dict[str, Any] = json_column(dict)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
