"""Who has an account, and what is left of those that were deleted."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Row,
    choice,
    plain,
    ref,
)
from models.users.roles import Role


class UsageKind(StrEnum):
    """What is counted for so long, and then from the beginning."""

    RECIPIENTS = "RECIPIENTS"  # addresses written to; a row of `Usage`
    RECEIVED = "RECEIVED"  # messages that came; in the row of the account
    AUTOREPLIES = "AUTOREPLIES"  # automatic answers; a row of `Usage`
    FORWARDS = "FORWARDS"  # messages sent on to targets; a row of `Usage`


class LimitKind(StrEnum):
    """What an account may have, or do, no more than so much of."""

    STORAGE = "STORAGE"
    RECIPIENTS = "RECIPIENTS"
    RECEIVED = "RECEIVED"
    FORWARDS = "FORWARDS"
    RATE = "RATE"


class LimitSource(StrEnum):
    """Who has set a limit of an account."""

    USER = "USER"
    DOMAIN = "DOMAIN"
    PLATFORM = "PLATFORM"


class UsageLevel(StrEnum):
    """How far a limit is used up."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    FULL = "FULL"


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class ProtocolScope(StrEnum):
    """A protocol of mail programs."""

    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"


class Frequency(StrEnum):
    """How often something is written to somebody."""

    NEVER = "NEVER"
    HOURLY = "HOURLY"
    DAILY = "DAILY"
    WEEKLY = "WEEKLY"


class DelimiterAction(StrEnum):
    """What becomes of mail to an address with a label."""

    NONE = "NONE"
    SUBFOLDER = "SUBFOLDER"
    SUBJECT = "SUBJECT"


class User(Row, table=True):
    """An account. Its journal is the stream of its id."""

    __tablename__ = "users"
    __table_args__ = (
        Index("ix_users_created_at", "created_at", "id"),
        Index("ix_users_used", "used", "id"),
        Index("ix_users_of_domain", "domain_id", "username_key", "id"),
        Index("ix_users_disabled", "username_key", "id", **_where("disabled")),
        Index("ix_users_suspended", "username_key", "id", **_where("suspended")),
        Index("ix_users_staff", "role", "id", **_where("role <> 'USER'")),
        Index("ix_users_forwards", "id", **_where("targets <> '[]'")),
    )

    username: str  # lower case, as shown
    username_key: str = Field(unique=True)  # as compared: mail/addresses/address_syntax.py
    name: str | None = None
    words: str = ""  # user name, name and main address, case folded: models/users/search_index.py
    role: Role = choice(Role, default=Role.USER)
    domain_id: int | None = ref("domains.id", ondelete="RESTRICT", default=None)
    tenant_id: Number  # whose blobs it shares; stays when the domain changes
    password: str | None = None  # Argon2id, PHC form
    temporary_password: str | None = None  # beside the real one, never over it
    temporary_from: MaybeMoment = None
    temporary_until: MaybeMoment = None
    password_changed_at: MaybeMoment = None
    require_password_change: bool = False
    auth_version: Number = 1  # tokens made under an older one have ended
    disabled: bool = False  # neither signs in nor receives
    suspended: bool = False  # does not sign in, still receives
    deleted_at: MaybeMoment = None  # then it is disabled too, and `DeletedUser` has the rest
    kicked_at: MaybeMoment = None  # connections opened before have ended
    smtp_allowed_networks: list[str] = plain(list)  # submission from there only; none: anywhere
    tls_enforce_in: bool = False  # mail from elsewhere comes over TLS, or not at all
    tls_enforce_out: bool = False  # so does what goes to servers elsewhere
    upload_sent_messages: bool = False  # what is sent by submission is kept in Sent
    second_factors: list[str] = plain(list)  # those that are on: TOTP, WEBAUTHN, CUSTOM
    disabled_scopes: list[str] = plain(list)  # of IMAP, POP3, SMTP
    webmail_access: bool = True  # may sign in for a token
    permissions: list[str] = plain(list)  # what a USER may change: models/users/roles.py
    admin_permissions: list[str] = plain(list)  # what a DOMAIN_ADMIN may
    from_whitelist: list[str] = plain(list)  # further senders: addresses, domains, patterns
    pub_key: str | None = None  # OpenPGP, armoured
    key_info: dict[str, Any] | None = plain()  # what it says: name, address, fingerprint, expires
    encrypt_messages: bool = False  # to the key, all that arrives
    targets: list[str] = plain(list)  # what comes goes there too, as an address has them
    relays: str | None = None  # those with their passwords, as an address has them
    encrypt_forwarded: bool = False  # to the key, what goes there
    delimiter_action: DelimiterAction = choice(DelimiterAction, default=DelimiterAction.NONE)
    retention: MaybeNumber = None  # seconds; of new folders and messages
    spam_level: Number = 50  # 0 everything is spam … 100 nothing is
    junk_score: float | None = None
    reject_score: float | None = None
    quarantine_notification: Frequency = choice(Frequency, default=Frequency.DAILY)
    recipients: MaybeNumber = None  # a day; None: the platform's, 0: unlimited
    forwards: MaybeNumber = None  # messages to targets a day; None: the platform's, 0: unlimited
    received_max: MaybeNumber = None  # messages an hour; None: the platform's, 0: unlimited
    received: Number = (
        0  # messages, in the hour that is running; here, as each delivery writes here
    )
    received_until: MaybeMoment = None  # its end
    received_told_until: MaybeMoment = None  # no refusal for it is told before
    quota: MaybeNumber = None  # bytes; None: the domain's, 0: unlimited
    used: Number = 0  # bytes
    # no refusal for want of room is told before; None: no letter told of one yet, since storage
    # passed a mark
    storage_told_until: MaybeMoment = None
    message_count: Number = 0
    uid_validity: Number = 0  # the last one given to a mailbox; rises by at least one
    language: str | None = None
    tags: list[str] = plain(list)
    meta_data: dict[str, Any] | None = plain()
    internal_data: dict[str, Any] | None = plain()
    created_at: Moment
    updated_at: Moment
    last_login_at: MaybeMoment = None


class UserTag(SQLModel, table=True):
    """A label of an account, case folded: what lists are narrowed by."""

    __tablename__ = "user_tags"

    tag: str = Field(primary_key=True)
    user_id: int = ref("users.id", primary_key=True)


class DomainAdmin(SQLModel, table=True):
    """A domain that a DOMAIN_ADMIN is in charge of."""

    __tablename__ = "domain_admins"

    user_id: int = ref("users.id", primary_key=True, index=False)
    domain_id: int = ref("domains.id", primary_key=True)


class Usage(SQLModel, table=True):
    """What an account has used of a limit, in the window that is running."""

    __tablename__ = "usages"

    user_id: int = ref("users.id", primary_key=True, index=False)
    kind: UsageKind = choice(UsageKind, primary_key=True)
    used: Number = 0
    until: datetime = Field(sa_type=Instant, index=True)
    told_until: MaybeMoment = None  # no refusal is told before


class DeletedUser(SQLModel, table=True):
    """An account that waits for its end: what it takes to bring it back.

    Its row among the users stays, with a `username_key` that nobody can have and no domain.
    """

    __tablename__ = "deleted_users"

    id: int = ref("users.id", primary_key=True, index=False)
    username_key: str = Field(index=True)
    disabled: bool = False  # it was, before
    domain_id: int | None = ref("domains.id", ondelete="SET NULL", default=None)  # where it was
    addresses: list[dict[str, Any]] = plain(list)  # rows of `addresses` as they were
    deleted_at: Moment
    delete_after: MaybeMoment = None  # None: at once
    task_id: MaybeNumber = None
