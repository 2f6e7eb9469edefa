"""Tables of settings that are changed at run time."""

from typing import Any

from sqlalchemy import Column, Index
from sqlmodel import Field, SQLModel

from models.store.columns import JSON_TYPE, OptionalInt64, RowWithId, Timestamp, json_column


class SettingValue(SQLModel, table=True):
    """A setting with another value than its default."""

    __tablename__ = "setting_values"

    key: str = Field(primary_key=True)
    value: dict[str, Any] = Field(sa_column=Column(JSON_TYPE, nullable=True))  # {"value": …}
    updated_at: Timestamp


class SettingHistoryEntry(RowWithId, table=True):
    """A change of a setting, and who made it."""

    __tablename__ = "setting_history"
    __table_args__ = (Index("ix_setting_history_key", "key", "at", "id"),)

    key: str
    before: dict[str, Any] | None = json_column()  # {"value": …}; None: the default
    after: dict[str, Any] | None = json_column()
    at: Timestamp
    actor: str
    actor_id: OptionalInt64 = None
    reason: str | None = None
