"""Table of filters."""

from typing import Any

from sqlalchemy import ColumnElement, Index, exists
from sqlmodel import col

from models.store.columns import Int64, Timestamp, UserOwnedRow, json_column


class Filter(UserOwnedRow, table=True):
    """A rule of a user for received mail. mail/filters/filter_compiler.py defines its JSON."""

    __tablename__ = "filters"
    __table_args__ = (
        Index("ix_filters_position", "user_id", "position", "id"),
        Index("ix_filters_made", "created_at", "id"),
    )

    name: str = ""
    position: Int64  # ascending; filters with equal position run by age
    query: dict[str, Any] = json_column(dict)
    action: dict[str, Any] = json_column(dict)
    forward_to: list[str] = json_column(list)  # of the action, without passwords
    # encrypted targets with their passwords: mail/recipients/forward_targets.py
    relays: str | None = None
    active: bool = True
    public_metadata: dict[str, Any] | None = json_column()
    match_count: Int64 = 0
    created_at: Timestamp


def has_active_filter(user_id: Any) -> ColumnElement[bool]:
    """Return SQL that is true if the user has active filters."""
    return exists().where(col(Filter.user_id) == user_id, col(Filter.active))
