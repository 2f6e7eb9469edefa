"""Table of labels: names and colours of keywords."""

from sqlalchemy import UniqueConstraint

from models.store.columns import Timestamp, UserOwnedRow


class Label(UserOwnedRow, table=True):
    """The name and the colour of a keyword for people.

    Keywords are case-insensitive: `folded` is unique for each user.
    """

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("user_id", "folded"),)

    keyword: str  # as it was entered
    folded: str  # in lower case
    name: str
    color: str | None = None  # #rrggbb
    created_at: Timestamp
