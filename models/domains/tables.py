"""Tables of domains, alias domains and storage totals."""

from sqlmodel import Field, SQLModel

from models.store.columns import Big, MaybeNumber, Moment, Number, Row, plain, ref


class Domain(Row, table=True):
    """A domain with its own stream. A limit of 0 means unlimited."""

    __tablename__ = "domains"

    name: str = Field(unique=True)  # normal form: mail/addresses/address_syntax.py
    description: str | None = None
    active: bool = True
    tags: list[str] = plain(list)
    max_addresses: Number = 0
    max_users: Number = 0
    default_user_quota: MaybeNumber = None  # bytes; None: the platform's
    max_user_quota: Number = 0  # bytes
    quota: Number = 0  # bytes of all its users together
    user_count: Number = 0
    address_count: Number = 0
    quota_allocated: Number = 0  # bytes
    backup_mx: bool = False  # mail is only relayed to the primary server
    relay_all_recipients: bool = False  # also recipients without an address here
    relay_unknown_only: bool = False  # recipients with an address here are delivered
    relay_host_id: MaybeNumber = None  # for mail of its senders; ignored if that row is deleted
    password_min: MaybeNumber = None  # characters of a new password; None: the platform's
    # kinds of characters in a new password; None: the platform's
    password_classes: MaybeNumber = None
    global_address_list: bool = True  # its users see each other as contacts
    created_at: Moment
    updated_at: Moment


class DomainAlias(Row, table=True):
    """A second name of a domain, with the same addresses. An alias has no aliases."""

    __tablename__ = "domain_aliases"

    alias: str = Field(unique=True)  # normal form
    domain_id: int = ref("domains.id")
    active: bool = True
    created_at: Moment


class DomainTotal(SQLModel, table=True):
    """The storage of a domain's users: the sum over `part`, which spreads concurrent writers.

    Triggers on `users` update it: models/domains/total_triggers.py.
    """

    __tablename__ = "domain_totals"

    domain_id: int = ref("domains.id", primary_key=True, index=False)
    part: int = Field(primary_key=True, sa_type=Big, sa_column_kwargs={"autoincrement": False})
    used: Number = 0  # bytes
    messages: Number = 0
