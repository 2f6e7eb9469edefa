"""Tables of requests from one process to all others, and of the answers."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    RowWithId,
    Timestamp,
    UtcDateTime,
    json_column,
)


class ProcessRequest(RowWithId, table=True):
    """A request of one process to all other processes. The requester deletes it at the end."""

    __tablename__ = "process_requests"

    kind: str
    arguments: dict[str, Any] = json_column(dict)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    reply_by: Timestamp  # by the clock of the requester; later answers are not read


class ProcessAnswer(RowWithId, table=True):
    """The answer of one process to a request."""

    __tablename__ = "process_answers"

    # no foreign key: an answer can come after the request was deleted
    request_id: int = Field(sa_type=BIG_INTEGER, index=True)
    process_id: Int64  # of the answering process, in `server_processes`
    answer: dict[str, Any] = json_column(dict)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
