"""Table of greylisted senders."""

from sqlmodel import Field, SQLModel

from models.store.columns import Timestamp


class GreylistEntry(SQLModel, table=True):
    """A network, a sender and a recipient that were seen together."""

    __tablename__ = "greylist_entries"

    key: str = Field(primary_key=True)  # digest of the three
    since: Timestamp  # mail is accepted from then on
    until: Timestamp = Field(index=True)  # the row is deleted then
