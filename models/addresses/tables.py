"""Tables of addresses and contacts."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import (
    BYTEWISE_TEXT,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    enum_column,
    foreign_key,
    json_column,
)


class AddressKind(StrEnum):
    """The kind of an address: what happens to its mail."""

    MAILBOX = "MAILBOX"
    FORWARD = "FORWARD"
    DISCARD = "DISCARD"
    LEARN_SPAM = "LEARN_SPAM"
    LEARN_HAM = "LEARN_HAM"
    RESOURCE = "RESOURCE"  # models/resources/tables.py


TRAINING_KINDS = (AddressKind.LEARN_SPAM, AddressKind.LEARN_HAM)


class Address(RowWithId, table=True):
    """An address, or a pattern with one "*". Without a domain it applies to all domains."""

    __tablename__ = "addresses"
    __table_args__ = (
        Index("uq_addresses_local_domain_id", "local", "domain_id", unique=True),
        Index("ix_addresses_domain_id_local", "domain_id", "local", "id"),
        # the same local part can be in all domains
        Index("addresses_by_local", "local", "id"),
        Index("addresses_by_age", "created_at", "id"),
        Index(
            "uq_addresses_everywhere",
            "local",
            unique=True,
            sqlite_where=text("domain_id IS NULL"),
            postgresql_where=text("domain_id IS NULL"),
        ),
        Index(
            "ix_addresses_ending",
            "expires_at",
            sqlite_where=text("expires_at IS NOT NULL"),
            postgresql_where=text("expires_at IS NOT NULL"),
        ),
        Index(
            "uq_addresses_main",
            "user_id",
            unique=True,
            sqlite_where=text("main"),
            postgresql_where=text("main"),
        ),
        # Servers of versions before migration 0113 read by it. The next migration without
        # expand_only can drop it.
        Index(
            "ix_addresses_forwards",
            "id",
            sqlite_where=text("kind = 'FORWARD'"),
            postgresql_where=text("kind = 'FORWARD'"),
        ),
    )

    local: str  # normal form: mail/addresses/address_syntax.py
    domain_id: int | None = foreign_key("domains.id", default=None)
    display_address: str  # the whole address as its owner writes it
    kind: AddressKind = enum_column(AddressKind, default=AddressKind.MAILBOX)
    user_id: int | None = foreign_key("users.id", default=None)
    forward_to: list[str] = json_column(list)  # of a FORWARD, without passwords
    # encrypted JSON of the targets with their passwords: mail/recipients/forward_targets.py
    relays: str | None = None
    forwards_per_day: OptionalInt64 = None  # messages; None: the platform's limit, 0: unlimited
    forwarded: Int64 = 0  # messages in the current day
    forwarded_until: OptionalTimestamp = None  # end of that day
    answers: bool = False  # a FORWARD with its own autoreply (models/autoreply.py)
    replied: Int64 = 0  # autoreplies in the current day
    replied_until: OptionalTimestamp = None  # end of that day
    name: str | None = None
    main: bool = False
    active: bool = True
    send_as: bool = True
    expires_at: OptionalTimestamp = None
    masked: bool = False  # created by its owner, who can also deactivate it
    for_site: str | None = None  # the website it was created for
    last_received_at: OptionalTimestamp = (
        None  # updated after deliveries: mail/recipients/contacts.py
    )
    tags: list[str] = json_column(list)
    public_comment: str | None = None
    private_comment: str | None = None
    public_metadata: dict[str, Any] | None = json_column()
    private_metadata: dict[str, Any] | None = json_column()
    created_at: Timestamp
    updated_at: Timestamp


class Contact(UserOwnedRow, table=True):
    """An address the user has received mail from or sent mail to."""

    __tablename__ = "contacts"
    __table_args__ = (
        Index("uq_contacts_user_id_key", "user_id", "key", unique=True),
        Index("ix_contacts_folded_name", "user_id", "folded_name"),
        Index("ix_contacts_used", "user_id", "last_used_at", "id"),
    )

    user_id: int = foreign_key("users.id", index=False)
    # the address in normal form: mail/addresses/address_syntax.py
    key: str = Field(sa_type=BYTEWISE_TEXT)
    folded_name: str | None = Field(default=None, sa_type=BYTEWISE_TEXT)  # the name, case folded
    address: str  # as it was last written
    name: str | None = None
    last_used_at: Timestamp
