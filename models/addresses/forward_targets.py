"""The targets of forwards as rows, by which a forward to an address is found.

Triggers keep the rows (migrations/versions/v0113_forward_targets.py).
"""

from sqlmodel import Field, SQLModel

from models.store.columns import foreign_key


class ForwardTarget(SQLModel, table=True):
    """A target of an address in normal form (mail/addresses/address_syntax.py).

    SQLite changes only A to Z to lower case. Targets that are no mail addresses have no row.
    """

    __tablename__ = "forward_targets"

    domain: str = Field(primary_key=True)
    local: str = Field(primary_key=True)
    address_id: int = foreign_key("addresses.id", primary_key=True)
