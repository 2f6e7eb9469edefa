"""The targets of forwards as rows, by which the forwards to an address are found.

Triggers keep the rows (migrations/versions/v0113_forward_target_keys.py).
"""

from sqlmodel import Field, SQLModel

from models.store.columns import foreign_key


class ForwardTargetKey(SQLModel, table=True):
    """The local part and domain of a target, for comparison with addresses.

    Both are in lower case; SQLite changes only A to Z. The local part has no label and no dots.
    The first `@` separates them. Targets with `://` and targets of more than 320 characters have
    no row.
    """

    __tablename__ = "forward_target_keys"

    domain: str = Field(primary_key=True)
    local: str = Field(primary_key=True)
    address_id: int = foreign_key("addresses.id", primary_key=True)
