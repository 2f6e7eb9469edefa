"""Who has been told to come again."""

from sqlmodel import Field, SQLModel

from models.store.columns import Moment


class Greylisted(SQLModel, table=True):
    """A network, a sender and a recipient that were seen together."""

    __tablename__ = "greylisted"

    key: str = Field(primary_key=True)  # a digest of the three
    since: Moment  # its mail is taken from then on
    until: Moment = Field(index=True)  # then it is forgotten
