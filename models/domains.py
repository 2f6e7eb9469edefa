"""Domains whose mail we take."""

from sqlmodel import Field

from models.columns import MaybeNumber, Moment, Number, Row, plain, ref


class Domain(Row, table=True):
    """A domain. It has a stream of its own. In limits 0 is: none."""

    __tablename__ = "domains"

    name: str = Field(unique=True)  # normal form: mail/addresses.py
    description: str | None = None
    active: bool = True
    tags: list[str] = plain(list)
    max_addresses: Number = 0
    max_users: Number = 0
    default_user_quota: MaybeNumber = None  # bytes; None: the platform's
    max_user_quota: Number = 0  # bytes
    quota: Number = 0  # bytes, of all its users together
    user_count: Number = 0
    address_count: Number = 0
    quota_allocated: Number = 0  # bytes
    created_at: Moment
    updated_at: Moment


class DomainAlias(Row, table=True):
    """A second name of a domain: one level only, an alias has no aliases."""

    __tablename__ = "domain_aliases"

    alias: str = Field(unique=True)  # normal form
    domain_id: int = ref("domains.id")
    active: bool = True
    created_at: Moment
