"""Tables of users, their tags, limits and deleted accounts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
)
from models.users.roles import Role


class UsageKind(StrEnum):
    """A count that is limited in a window."""

    RECIPIENTS = "RECIPIENTS"  # addresses written to; a row of `Usage`
    RECEIVED = "RECEIVED"  # messages received; columns of `User`
    AUTOREPLIES = "AUTOREPLIES"  # automatic replies; a row of `Usage`
    FORWARDS = "FORWARDS"  # messages forwarded to targets; a row of `Usage`


class LimitKind(StrEnum):
    """What a limit of a user restricts."""

    STORAGE = "STORAGE"
    RECIPIENTS = "RECIPIENTS"
    RECEIVED = "RECEIVED"
    FORWARDS = "FORWARDS"
    RATE = "RATE"


class LimitSource(StrEnum):
    """The owner of a limit that applies to a user."""

    USER = "USER"
    DOMAIN = "DOMAIN"
    PLATFORM = "PLATFORM"


class UsageLevel(StrEnum):
    """How much of a limit is used."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    FULL = "FULL"


def _index_condition(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class ProtocolScope(StrEnum):
    """A protocol of mail programs."""

    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"


class Frequency(StrEnum):
    """The frequency of a notice."""

    NEVER = "NEVER"
    HOURLY = "HOURLY"
    DAILY = "DAILY"
    WEEKLY = "WEEKLY"


class SubaddressAction(StrEnum):
    """What happens to mail for an address with a label."""

    NONE = "NONE"
    SUBFOLDER = "SUBFOLDER"
    SUBJECT = "SUBJECT"


class User(RowWithId, table=True):
    """A user. Its journal is the stream with the same id."""

    __tablename__ = "users"
    __table_args__ = (
        Index("ix_users_created_at", "created_at", "id"),
        Index("ix_users_used", "used", "id"),
        # with `active` and `suspended`: SCIM counts by them without reading the rows
        Index("ix_users_of_domain", "domain_id", "username_key", "id", "active", "suspended"),
        Index("ix_users_of_domain_by_used", "domain_id", "used", "id"),
        Index("ix_users_of_domain_by_update", "domain_id", "updated_at", "username_key", "id"),
        Index("ix_users_inactive", "username_key", "id", **_index_condition("NOT active")),
        Index("ix_users_suspended", "username_key", "id", **_index_condition("suspended")),
        Index("ix_users_staff", "role", "id", **_index_condition("role <> 'USER'")),
        Index("ix_users_full", "id", **_index_condition("quota > 0 AND used >= quota")),
        Index(
            "ix_users_with_factor",
            "username_key",
            "id",
            **_index_condition("second_factors <> '[]'"),
        ),
        Index(
            "ix_users_without_factor",
            "username_key",
            "id",
            **_index_condition("second_factors = '[]'"),
        ),
        Index("ix_users_forwards", "id", **_index_condition("forward_to <> '[]'")),
    )

    username: str  # lower case, as shown
    username_key: str = Field(unique=True)  # normal form: mail/addresses/address_syntax.py
    name: str | None = None
    words: str = ""  # username, name and main address, case folded: models/users/search_index.py
    role: Role = enum_column(Role, default=Role.USER)
    domain_id: int | None = foreign_key("domains.id", ondelete="RESTRICT", default=None)
    tenant_id: Int64  # of its blobs; it stays if the domain changes
    password: str | None = None  # Argon2id, PHC form
    temporary_password: str | None = None  # in addition to the password
    temporary_from: OptionalTimestamp = None
    temporary_until: OptionalTimestamp = None
    password_changed_at: OptionalTimestamp = None
    password_change_required: bool = False
    auth_version: Int64 = 1  # tokens of an older version are invalid
    active: bool = True  # False: can neither sign in nor receive
    suspended: bool = False  # can't sign in, still receives
    deleted_at: OptionalTimestamp = (
        None  # then `active` is false too, and `DeletedUser` has its other data
    )
    sessions_ended_at: OptionalTimestamp = None  # connections opened before were closed
    smtp_allowed_networks: list[str] = json_column(list)  # for submission; empty: any
    require_inbound_tls: bool = False  # mail from other servers is accepted over TLS only
    require_outbound_tls: bool = False  # mail to other servers is sent over TLS only
    upload_sent_messages: bool = False  # submitted mail is stored in Sent
    second_factors: list[str] = json_column(list)  # enabled: TOTP, WEBAUTHN, EXTERNAL
    disabled_scopes: list[str] = json_column(list)  # of IMAP, POP3, SMTP
    webmail_access: bool = True  # can sign in for a token
    allow_local: bool = False  # belongs to no directory: models/identity_providers.py
    permissions: list[str] = json_column(list)  # of a USER: models/users/roles.py
    admin_permissions: list[str] = json_column(list)  # of a DOMAIN_ADMIN
    # additional From addresses: addresses, domains, patterns
    allowed_senders: list[str] = json_column(list)
    openpgp_public_key: str | None = None  # OpenPGP, armoured
    # of that key: name, address, fingerprint, expires
    openpgp_key: dict[str, Any] | None = json_column()
    encrypt_messages: bool = False  # received mail is encrypted to the key
    forward_to: list[str] = json_column(list)  # received mail is also sent there; see `Address`
    relays: str | None = None  # encrypted targets with their passwords; see `Address`
    encrypt_forwarded: bool = False  # forwarded mail is encrypted to the key
    subaddress_action: SubaddressAction = enum_column(
        SubaddressAction, default=SubaddressAction.NONE
    )
    retention: OptionalInt64 = None  # seconds; of new mailboxes and messages
    spam_level: Int64 = 50  # 0: everything is spam … 100: nothing is
    junk_score: float | None = None
    reject_score: float | None = None
    quarantine_notification: Frequency = enum_column(Frequency, default=Frequency.DAILY)
    recipients_per_day: OptionalInt64 = None  # None: the platform's limit, 0: unlimited
    forwards_per_day: OptionalInt64 = None  # messages; None: the platform's limit, 0: unlimited
    received_per_hour: OptionalInt64 = None  # messages; None: the platform's limit, 0: unlimited
    # messages in the current hour; in this row, which each delivery updates anyway
    received: Int64 = 0
    received_until: OptionalTimestamp = None  # end of that hour
    received_notified_until: OptionalTimestamp = None  # no other notice about refused mail before
    quota: OptionalInt64 = None  # bytes; None: the domain's, 0: unlimited
    used: Int64 = 0  # bytes
    # no other notice about a full quota before; None: no notice since storage reached a level
    storage_notified_until: OptionalTimestamp = None
    message_count: Int64 = 0
    uid_validity: Int64 = 0  # the last one of a mailbox; increases by at least one
    language: str | None = None
    tags: list[str] = json_column(list)
    public_metadata: dict[str, Any] | None = json_column()
    private_metadata: dict[str, Any] | None = json_column()
    created_at: Timestamp
    updated_at: Timestamp
    last_login_at: OptionalTimestamp = None


class UserTag(SQLModel, table=True):
    """A tag of a user, case folded, by which lists are filtered."""

    __tablename__ = "user_tags"

    tag: str = Field(primary_key=True)
    user_id: int = foreign_key("users.id", primary_key=True)


class DomainAdmin(SQLModel, table=True):
    """A domain that a DOMAIN_ADMIN administers."""

    __tablename__ = "domain_admins"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    domain_id: int = foreign_key("domains.id", primary_key=True)


class Usage(SQLModel, table=True):
    """The usage of a limit of a user in the current window."""

    __tablename__ = "usages"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    kind: UsageKind = enum_column(UsageKind, primary_key=True)
    used: Int64 = 0
    until: datetime = Field(sa_type=UtcDateTime, index=True)
    notified_until: OptionalTimestamp = None  # no other notice before


class DeletedUser(SQLModel, table=True):
    """A user that waits for its final deletion, with the data to restore it.

    Its row in `users` stays, with a `username_key` that no other user can have and no domain.
    """

    __tablename__ = "deleted_users"
    __table_args__ = (Index("deleted_users_by_age", "deleted_at", "id"),)

    id: int = foreign_key("users.id", primary_key=True, index=False)
    username_key: str = Field(index=True)
    active: bool = True  # the value before the deletion
    # before the deletion
    domain_id: int | None = foreign_key("domains.id", ondelete="SET NULL", default=None)
    addresses: list[dict[str, Any]] = json_column(list)  # rows of `addresses` before the deletion
    deleted_at: Timestamp
    purge_at: OptionalTimestamp = None  # None: at once
    task_id: OptionalInt64 = None
