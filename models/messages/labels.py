"""Keywords that have a name and a colour."""

from sqlalchemy import UniqueConstraint

from models.store.columns import Moment, Owned


class Label(Owned, table=True):
    """What a keyword of an account's messages is called, and its colour.

    A keyword is the same in any case: `folded` is unique per user.
    """

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("user_id", "folded"),)

    keyword: str  # as it was spelled
    folded: str  # in lower case
    name: str
    color: str | None = None  # #rrggbb
    created_at: Moment
