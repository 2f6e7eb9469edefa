"""Stored payloads of mutations with an idempotency key."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import UtcDateTime, json_column


class IdempotentPayload(SQLModel, table=True):
    """The payload of a mutation under its idempotency key, stored in the same transaction."""

    __tablename__ = "idempotent_payloads"

    # the user or API key that has sent the idempotency key
    principal: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_digest: str  # digest of mutation and input; the key is valid for these only
    answer: dict[str, Any] = json_column(dict)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
