"""Documents that are trusted: whoever runs the server has added them."""

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel

from models.store.columns import Moment, plain


class Document(SQLModel, table=True):
    """A GraphQL document that clients may name by its hash. Never changed: another text is another.

    Beside no stream: it belongs to the installation, and only the command line writes it.
    """

    __tablename__ = "documents"

    hash: bytes = Field(primary_key=True, sa_type=LargeBinary)  # SHA-256 of `text` in UTF-8
    text: str
    operations: list[str] = plain(list)  # their names; one without a name is none of them
    added_at: Moment
