"""Domains whose mail we take."""

from sqlmodel import Field, SQLModel

from models.store.columns import Big, MaybeNumber, Moment, Number, Row, plain, ref


class Domain(Row, table=True):
    """A domain. It has a stream of its own. In limits 0 is: none."""

    __tablename__ = "domains"

    name: str = Field(unique=True)  # normal form: mail/addresses/address_syntax.py
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
    backup_mx: bool = False  # only relayed to the primary server
    relay_all_recipients: bool = False  # also those without an address here
    relay_unknown_only: bool = False  # those with an address here are delivered
    relay_host_id: MaybeNumber = None  # mail of its senders leaves by that host, if it is there
    password_min: MaybeNumber = None  # characters of a password that is set; None: the platform's
    password_classes: MaybeNumber = None  # kinds of characters, likewise
    global_address_list: bool = True  # its users see each other
    created_at: Moment
    updated_at: Moment


class DomainAlias(Row, table=True):
    """A second name of a domain: one level only, an alias has no aliases."""

    __tablename__ = "domain_aliases"

    alias: str = Field(unique=True)  # normal form
    domain_id: int = ref("domains.id")
    active: bool = True
    created_at: Moment


class DomainTotal(SQLModel, table=True):
    """What users of a domain store: the sum over `part`, which spreads those who write.

    Triggers on `users` keep it: models/domains/total_triggers.py.
    """

    __tablename__ = "domain_totals"

    domain_id: int = ref("domains.id", primary_key=True, index=False)
    part: int = Field(primary_key=True, sa_type=Big, sa_column_kwargs={"autoincrement": False})
    used: Number = 0  # bytes
    messages: Number = 0
