"""Tables of BCC rules and recipient rewrites."""

from enum import StrEnum

from sqlalchemy import Index

from models.store.columns import RowWithId, Timestamp, enum_column, foreign_key
from models.users.rule_makers import RuleWithMaker


class BccDirection(StrEnum):
    """The end of a message that a rule compares."""

    SENDER = "SENDER"
    RECIPIENT = "RECIPIENT"


class BccRule(RowWithId, RuleWithMaker, table=True):
    """Copies the mail from or to an address, or all addresses of a domain."""

    __tablename__ = "bcc_rules"
    __table_args__ = (
        Index("uq_bcc_rules_match", "direction", "domain_id", "local", unique=True),
        Index("bcc_rules_oldest", "created_at", "id"),
    )

    direction: BccDirection = enum_column(BccDirection)
    # normal form: mail/addresses/address_syntax.py; "": all addresses of the domain
    local: str
    domain_id: int = foreign_key("domains.id")
    bcc_to: str  # as it was entered
    active: bool = True
    created_at: Timestamp
    updated_at: Timestamp


class RecipientRewrite(RowWithId, RuleWithMaker, table=True):
    """Replaces a recipient, or all recipients of a domain, before delivery."""

    __tablename__ = "recipient_rewrites"
    __table_args__ = (
        Index("uq_recipient_rewrites_from", "domain", "local", unique=True),
        Index("recipient_rewrites_oldest", "created_at", "id"),
    )

    local: str  # normal form: mail/addresses/address_syntax.py
    domain: str  # normal form; it can be a domain of another server
    target: str  # an address as it was entered, or "@" and a domain
    outside: bool = False  # the target was in no domain of this server when the rule was made
    active: bool = True
    created_at: Timestamp
    updated_at: Timestamp
