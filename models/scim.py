"""Tables of SCIM (RFC 7643): attributes of users that only SCIM has, and groups."""

from sqlalchemy import Index
from sqlmodel import SQLModel

from models.store.columns import (
    Int64,
    RowWithId,
    Timestamp,
    foreign_key,
)


class ScimUser(SQLModel, table=True):
    """Attributes of a user that only SCIM has. Users that SCIM never changed have no row."""

    __tablename__ = "scim_users"
    __table_args__ = (Index("scim_users_by_external_id", "external_id", "user_id"),)

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    external_id: str | None = None  # the identifier that the client uses
    formatted_name: str | None = None
    family_name: str | None = None
    given_name: str | None = None
    middle_name: str | None = None
    honorific_prefix: str | None = None
    honorific_suffix: str | None = None
    suspended_by_scim: bool = False  # only then can SCIM lift the suspension


class ScimAddress(SQLModel, table=True):
    """An additional address that SCIM shows, or properties of the main address."""

    __tablename__ = "scim_addresses"

    address_id: int = foreign_key("addresses.id", primary_key=True, index=False)
    user_id: int = foreign_key("users.id")
    type: str | None = None  # such as work or home
    is_primary: bool | None = None  # as the client wrote it
    created_by_scim: bool = False  # only then does SCIM delete it


class ScimGroup(RowWithId, table=True):
    """A group of users of one domain, or of the domains of one API key."""

    __tablename__ = "scim_groups"
    __table_args__ = (
        Index("scim_groups_of_domain", "domain_id", "id"),
        Index("scim_groups_by_external_id", "external_id", "id"),
        Index("scim_groups_by_name", "domain_id", "name_key", "id"),
    )

    domain_id: int = foreign_key("domains.id", index=False)
    display_name: str
    name_key: str  # the display name without case and accents: models/store/text_folding.py
    external_id: str | None = None
    version: Int64 = 1  # increases with each change
    created_at: Timestamp
    updated_at: Timestamp


class ScimGroupMember(SQLModel, table=True):
    """A member of a group."""

    __tablename__ = "scim_group_members"

    group_id: int = foreign_key("scim_groups.id", primary_key=True, index=False)
    user_id: int = foreign_key("users.id", primary_key=True)


SCIM_NAME_COLUMNS = (
    "formatted_name",
    "family_name",
    "given_name",
    "middle_name",
    "honorific_prefix",
    "honorific_suffix",
)
MAX_EXTERNAL_ID_LENGTH = 256  # characters
MAX_NAME_PART_LENGTH = 256
MAX_TYPE_LENGTH = 64
MAX_GROUP_NAME_LENGTH = 256
