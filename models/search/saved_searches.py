"""Table of saved searches."""

from typing import Any

from sqlalchemy import UniqueConstraint

from models.store.columns import Timestamp, UserOwnedRow, json_column


class SavedSearch(UserOwnedRow, table=True):
    """A named filter of a user's messages. The name is case-insensitive."""

    __tablename__ = "saved_searches"
    __table_args__ = (UniqueConstraint("user_id", "folded"),)

    name: str
    folded: str  # the name in lower case
    filter: dict[str, Any] = json_column(dict)  # in the JSON of the API
    created_at: Timestamp
