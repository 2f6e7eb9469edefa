"""Which addresses take mail."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text

from models.columns import MaybeMoment, Moment, Row, choice, plain, ref


class AddressKind(StrEnum):
    """What happens to its mail."""

    MAILBOX = "MAILBOX"
    FORWARD = "FORWARD"
    DISCARD = "DISCARD"
    LEARN_SPAM = "LEARN_SPAM"
    LEARN_HAM = "LEARN_HAM"


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

    local: str  # normal form: mail/addresses.py
    domain_id: int | None = ref("domains.id", default=None)
    shown: str  # the whole address as its owner writes it, dots and all
    kind: AddressKind = choice(AddressKind, default=AddressKind.MAILBOX)
    user_id: int | None = ref("users.id", default=None)
    targets: list[str] = plain(list)  # of a FORWARD
    name: str | None = None
    main: bool = False
    active: bool = True
    send_as: bool = True
    expires_at: MaybeMoment = None
    tags: list[str] = plain(list)
    public_comment: str | None = None
    private_comment: str | None = None
    meta_data: dict[str, Any] | None = plain()
    internal_data: dict[str, Any] | None = plain()
    created_at: Moment
    updated_at: Moment
