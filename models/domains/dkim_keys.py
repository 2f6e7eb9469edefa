"""Table of DKIM signing keys (RFC 6376, RFC 8463)."""

from enum import StrEnum

from sqlalchemy import Index, text

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
)

ALL_DOMAINS = "*"  # instead of a domain: all domains without their own key


class DkimAlgorithm(StrEnum):
    """The algorithm of a signing key (RFC 8301, RFC 8463)."""

    RSA = "RSA"
    ED25519 = "ED25519"


class DkimKeyState(StrEnum):
    """The state of a signing key."""

    PENDING = "PENDING"  # it signs as soon as DNS has its record
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"  # it no longer signs; messages in transit still need its record


class DkimKey(RowWithId, table=True):
    """A signing key of a domain or alias domain; keys of a domain differ by selector."""

    __tablename__ = "dkim_keys"
    __table_args__ = (
        Index("uq_dkim_keys_selector", "domain", "selector", unique=True),
        Index(
            "dkim_keys_due",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )

    domain_id: int | None = foreign_key("domains.id", default=None)  # None: ALL_DOMAINS
    domain: str  # normal form, or ALL_DOMAINS
    selector: str
    algorithm: DkimAlgorithm = enum_column(DkimAlgorithm)
    key_size: OptionalInt64 = None  # bits, of RSA
    private: str  # PEM, encrypted
    public: str  # the p= tag of its DNS record
    state: DkimKeyState = enum_column(DkimKeyState)
    description: str | None = None
    dns_check_count: Int64 = 0  # DNS checks of a PENDING key
    due_at: OptionalTimestamp = None  # time of the next check, or of the deletion of a RETIRED key
    created_at: Timestamp
    activated_at: OptionalTimestamp = None
    retired_at: OptionalTimestamp = None
