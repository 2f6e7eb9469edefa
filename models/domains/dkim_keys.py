"""Keys that domains sign their mail with (DKIM, RFC 6376, RFC 8463)."""

from enum import StrEnum

from sqlalchemy import Index, text

from models.store.columns import MaybeMoment, MaybeNumber, Moment, Number, Row, choice, ref

ALL = "*"  # in place of a domain: of all that have no key of their own


class DkimAlgorithm(StrEnum):
    """What a key signs with (RFC 8301, RFC 8463)."""

    RSA = "RSA"
    ED25519 = "ED25519"


class DkimKeyState(StrEnum):
    """Where a key stands in its life."""

    PENDING = "PENDING"  # it signs as soon as its record is seen
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"  # it signs no more; its record is needed for what is on its way


class DkimKey(Row, table=True):
    """A key, of a domain or another name of one; several of a domain differ by selector."""

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

    domain_id: int | None = ref("domains.id", default=None)  # None: ALL
    domain: str  # normal form, or ALL
    selector: str
    algorithm: DkimAlgorithm = choice(DkimAlgorithm)
    key_size: MaybeNumber = None  # bits, of RSA
    private: str  # PEM, sealed
    public: str  # as p= has it
    state: DkimKeyState = choice(DkimKeyState)
    description: str | None = None
    looks: Number = 0  # at DNS, for a PENDING one
    due_at: MaybeMoment = None  # of the next look, or when a RETIRED one is deleted
    created_at: Moment
    activated_at: MaybeMoment = None
    retired_at: MaybeMoment = None
