"""What users say of themselves as senders."""

from sqlalchemy import Index, text

from models.store.columns import MaybeNumber, Moment, Owned, plain


class Identity(Owned, table=True):
    """What belongs to one sender of an account. Without a row a sender has what is implied.

    Of one of the account's own addresses it has the key of that address, which it follows
    where it is renamed; of any other sender one that is made of account and address. So its
    id was known before there was a row: resolvers/submission/identities.py.
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
    )

    local: str  # with the domain the normal form of the address: mail/addresses/address_syntax.py
    domain: str
    shown: str  # the whole address as it is written
    name: str | None = None  # None: that of the address, or of the account
    preferred: bool = False  # the default; where no row is, the main address is
    reply_to: str | None = None
    bcc: list[str] = plain(list)
    signature_text: str | None = None
    signature_html: str | None = None  # sanitised
    mailbox_id: MaybeNumber = None  # for copies; one that is gone is Sent
    created_at: Moment
    updated_at: Moment
