"""Table of identities."""

from sqlalchemy import Index, text

from models.store.columns import OptionalInt64, Timestamp, UserOwnedRow, json_column


class Identity(UserOwnedRow, table=True):
    """A From address of a user with its name and signature. Without a row it has the defaults.

    The id of one of the user's own addresses is the id of that address, so it follows a rename. Any
    other id is computed from user and address, so it is known before there is a row:
    resolvers/submission/identities/loaders.py.
    """

    __tablename__ = "identities"
    __table_args__ = (
        Index(
            "uq_identities_preferred",
            "user_id",
            unique=True,
            sqlite_where=text("preferred"),
            postgresql_where=text("preferred"),
        ),
        Index(
            "identities_diverted_by",
            "diverted_by",
            sqlite_where=text("diverted_by IS NOT NULL"),
            postgresql_where=text("diverted_by IS NOT NULL"),
        ),
    )

    # with `domain`: normal form, mail/addresses/address_syntax.py
    local: str
    domain: str
    display_address: str  # the whole address as it is written
    name: str | None = None  # None: that of the address, or of the user
    preferred: bool = False  # the default identity; without such a row, the main address
    reply_to: str | None = None
    bcc: list[str] = json_column(list)
    # users.id of the administrator who set `reply_to` or `bcc` last; None: the user
    diverted_by: OptionalInt64 = None
    signature_text: str | None = None
    signature_html: str | None = None  # sanitised
    mailbox_id: OptionalInt64 = None  # for copies; Sent if it is deleted
    created_at: Timestamp
    updated_at: Timestamp
