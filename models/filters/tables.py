"""Filters: forms that say what happens to mail that comes in."""

from typing import Any

from sqlalchemy import ColumnElement, Index, exists
from sqlmodel import col

from models.store.columns import Moment, Number, Owned, plain


class Filter(Owned, table=True):
    """A rule of a user. mail/filters/filter_compiler.py defines `query` and `action`."""

    __tablename__ = "filters"
    __table_args__ = (
        Index("ix_filters_order", "user_id", "order", "id"),
        Index("ix_filters_made", "created_at", "id"),
    )

    name: str = ""
    order: Number  # the lowest first, of equal ones the oldest
    query: dict[str, Any] = plain(dict)
    action: dict[str, Any] = plain(dict)
    targets: list[str] = plain(list)  # of the action, as they are shown
    relays: str | None = (
        None  # those of the targets with passwords, sealed: mail/recipients/forward_targets.py
    )
    active: bool = True
    meta_data: dict[str, Any] | None = plain()
    match_count: Number = 0
    created_at: Moment


def filtered(owner: Any) -> ColumnElement[bool]:
    """SQL: whether this account has filters that are in force."""
    return exists().where(col(Filter.user_id) == owner, col(Filter.active))
