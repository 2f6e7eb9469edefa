"""Searches that are kept: virtual folders."""

from typing import Any

from sqlalchemy import UniqueConstraint

from models.store.columns import Moment, Owned, plain


class SavedSearch(Owned, table=True):
    """A filter of an account's messages, under a name that is the same in any case."""

    __tablename__ = "saved_searches"
    __table_args__ = (UniqueConstraint("user_id", "folded"),)

    name: str
    folded: str  # the name in lower case
    filter: dict[str, Any] = plain(dict)  # as the API's JSON has it
    created_at: Moment
