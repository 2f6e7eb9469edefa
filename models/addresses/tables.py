"""Which addresses take mail, and to whom accounts write."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import (
    ByBytes,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    Row,
    choice,
    plain,
    ref,
)


class AddressKind(StrEnum):
    """What happens to its mail."""

    MAILBOX = "MAILBOX"
    FORWARD = "FORWARD"
    DISCARD = "DISCARD"
    LEARN_SPAM = "LEARN_SPAM"
    LEARN_HAM = "LEARN_HAM"


LEARNING = (AddressKind.LEARN_SPAM, AddressKind.LEARN_HAM)


class Address(Row, table=True):
    """An address, or a pattern with one "*". Without a domain it holds in all of them."""

    __tablename__ = "addresses"
    __table_args__ = (
        Index("uq_addresses_local_domain_id", "local", "domain_id", unique=True),
        Index("ix_addresses_domain_id_local", "domain_id", "local", "id"),
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
        Index(
            "ix_addresses_forwards",
            "id",
            sqlite_where=text("kind = 'FORWARD'"),
            postgresql_where=text("kind = 'FORWARD'"),
        ),
    )

    local: str  # normal form: mail/addresses/address_syntax.py
    domain_id: int | None = ref("domains.id", default=None)
    shown: str  # the whole address as its owner writes it, dots and all
    kind: AddressKind = choice(AddressKind, default=AddressKind.MAILBOX)
    user_id: int | None = ref("users.id", default=None)
    targets: list[str] = plain(list)  # of a FORWARD, as they are shown: without passwords
    relays: str | None = (
        None  # those with their passwords, as JSON, sealed: mail/recipients/forward_targets.py
    )
    forwards_max: MaybeNumber = None  # messages a day; None: the platform's, 0: unlimited
    forwarded: Number = 0  # messages, in the day that is running
    forwarded_until: MaybeMoment = None  # its end
    answers: bool = False  # a FORWARD, by itself: what is in models/autoreply.py is switched on
    replied: Number = 0  # answers, in the day that is running
    replied_until: MaybeMoment = None  # its end
    name: str | None = None
    main: bool = False
    active: bool = True
    send_as: bool = True
    expires_at: MaybeMoment = None
    masked: bool = False  # made by who owns it, who may also switch it off
    for_domain: str | None = None  # site that it was given to
    last_received_at: MaybeMoment = None  # noted behind the deliveries: mail/recipients/contacts.py
    tags: list[str] = plain(list)
    public_comment: str | None = None
    private_comment: str | None = None
    meta_data: dict[str, Any] | None = plain()
    internal_data: dict[str, Any] | None = plain()
    created_at: Moment
    updated_at: Moment


class Correspondent(Owned, table=True):
    """Somebody an account has had mail from, or has written to: the address register."""

    __tablename__ = "correspondents"
    __table_args__ = (
        Index("uq_correspondents_user_id_key", "user_id", "key", unique=True),
        Index("ix_correspondents_called", "user_id", "called"),
        Index("ix_correspondents_used", "user_id", "last_used_at", "id"),
    )

    user_id: int = ref("users.id", index=False)
    key: str = Field(sa_type=ByBytes)  # the address as compared: mail/addresses/address_syntax.py
    called: str | None = Field(default=None, sa_type=ByBytes)  # the name, case folded
    address: str  # as it was written last
    name: str | None = None
    last_used_at: Moment
