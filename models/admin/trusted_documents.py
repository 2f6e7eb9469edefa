"""Table of trusted documents, which operators have added."""

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel

from models.store.columns import Timestamp, json_column


class TrustedDocument(SQLModel, table=True):
    """A GraphQL document that clients can name by its hash. It never changes.

    It belongs to no stream: only the command line writes it, for the whole installation.
    """

    __tablename__ = "trusted_documents"

    hash: bytes = Field(primary_key=True, sa_type=LargeBinary)  # SHA-256 of `text` in UTF-8
    text: str
    operations: list[str] = json_column(list)  # names of its operations
    added_at: Timestamp
