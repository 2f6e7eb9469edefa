"""Answers to be given again."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import Instant, plain


class Replay(SQLModel, table=True):
    """What a mutation answered under an idempotency key. Lies in the unit that did the work."""

    __tablename__ = "replays"

    principal: str = Field(primary_key=True)  # whose key it is: a user, an API key
    key: str = Field(primary_key=True)
    asked: str  # digest of mutation and input: the key is good for no other
    answer: dict[str, Any] = plain(dict)
    at: datetime = Field(sa_type=Instant, index=True)
