"""Table of filters."""

from typing import Any

from sqlalchemy import ColumnElement, Index, exists
from sqlmodel import col

from models.store.columns import Moment, Number, Owned, plain


class Filter(Owned, table=True):
    """A rule of a user for received mail. mail/filters/filter_compiler.py defines its JSON."""

    __tablename__ = "filters"
    __table_args__ = (
        Index("ix_filters_order", "user_id", "order", "id"),
        Index("ix_filters_made", "created_at", "id"),
    )

    name: str = ""
    order: Number  # ascending; filters with equal order run by age
    query: dict[str, Any] = plain(dict)
    action: dict[str, Any] = plain(dict)
    targets: list[str] = plain(list)  # of the action, without passwords
    # encrypted targets with their passwords: mail/recipients/forward_targets.py
    relays: str | None = None
    active: bool = True
    meta_data: dict[str, Any] | None = plain()
    match_count: Number = 0
    created_at: Moment


def filtered(owner: Any) -> ColumnElement[bool]:
    """Return SQL that is true if the user has active filters."""
    return exists().where(col(Filter.user_id) == owner, col(Filter.active))
