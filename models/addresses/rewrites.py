"""Rules for mail on its way: who gets a copy, and which recipients are replaced."""

from enum import StrEnum

from sqlalchemy import Index

from models.store.columns import Moment, Row, choice, ref
from models.users.rule_makers import MadeByAccount


class BccDirection(StrEnum):
    """Which end of a message a rule looks at."""

    SENDER = "SENDER"
    RECIPIENT = "RECIPIENT"


class BccRule(Row, MadeByAccount, table=True):
    """Mail from or to an address of a domain, or any of its addresses, is copied."""

    __tablename__ = "bcc_rules"
    __table_args__ = (
        Index("uq_bcc_rules_match", "direction", "domain_id", "local", unique=True),
        Index("bcc_rules_oldest", "created_at", "id"),
    )

    direction: BccDirection = choice(BccDirection)
    local: str  # normal form: mail/addresses/address_syntax.py; "": the whole domain
    domain_id: int = ref("domains.id")
    bcc_to: str  # as it was written
    active: bool = True
    created_at: Moment
    updated_at: Moment


class RecipientRewrite(Row, MadeByAccount, table=True):
    """Mail for an address, or for any address of a domain, goes elsewhere."""

    __tablename__ = "recipient_rewrites"
    __table_args__ = (
        Index("uq_recipient_rewrites_from", "domain", "local", unique=True),
        Index("recipient_rewrites_oldest", "created_at", "id"),
    )

    local: str  # normal form, as above
    domain: str  # normal form; it need not be ours
    target: str  # an address as it was written, or "@" and a domain
    outside: bool = False  # that was in no domain of ours when it was said
    active: bool = True
    created_at: Moment
    updated_at: Moment
