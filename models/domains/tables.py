"""Tables of domains, alias domains and storage totals."""

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    RowWithId,
    Timestamp,
    foreign_key,
    json_column,
)


class Domain(RowWithId, table=True):
    """A domain with its own stream. A limit of 0 means unlimited."""

    __tablename__ = "domains"
    __table_args__ = (
        Index("domains_by_age", "created_at", "id"),
        Index("domains_by_user_count", "user_count", "id"),
        Index(
            "domains_by_relay_host",
            "relay_host_id",
            "name",
            "id",
            sqlite_where=text("relay_host_id IS NOT NULL"),
            postgresql_where=text("relay_host_id IS NOT NULL"),
        ),
    )

    name: str = Field(unique=True)  # normal form: mail/addresses/address_syntax.py
    description: str | None = None
    active: bool = True
    tags: list[str] = json_column(list)
    max_addresses: Int64 = 0
    max_users: Int64 = 0
    default_user_quota: OptionalInt64 = None  # bytes; None: the platform's
    max_user_quota: Int64 = 0  # bytes
    quota: Int64 = 0  # bytes of all its users together
    user_count: Int64 = 0
    address_count: Int64 = 0
    quota_allocated: Int64 = 0  # bytes
    backup_mx: bool = False  # mail is only relayed to the primary server
    relay_all_recipients: bool = False  # also recipients without an address here
    relay_unknown_only: bool = False  # recipients with an address here are delivered
    relay_host_id: OptionalInt64 = None  # for mail of its senders; ignored if that row is deleted
    password_min: OptionalInt64 = None  # characters of a new password; None: the platform's
    # kinds of characters in a new password; None: the platform's
    password_classes: OptionalInt64 = None
    global_address_list: bool = True  # its users see each other as contacts
    created_at: Timestamp
    updated_at: Timestamp


class DomainAlias(RowWithId, table=True):
    """A second name of a domain, with the same addresses. An alias has no aliases."""

    __tablename__ = "domain_aliases"

    alias: str = Field(unique=True)  # normal form
    domain_id: int = foreign_key("domains.id")
    active: bool = True
    created_at: Timestamp


class DomainTotal(SQLModel, table=True):
    """The storage of a domain's users: the sum over `part`, which spreads concurrent writers.

    Triggers on `users` update it: models/domains/total_triggers.py.
    """

    __tablename__ = "domain_totals"

    domain_id: int = foreign_key("domains.id", primary_key=True, index=False)
    part: int = Field(
        primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False}
    )
    used: Int64 = 0  # bytes
    messages: Int64 = 0
