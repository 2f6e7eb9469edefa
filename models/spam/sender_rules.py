"""Senders whose mail is never spam, or always: for an account, a label, a domain, or all."""

from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import ByBytes, Moment, Row, choice, ref
from models.users.rule_makers import MadeByAccount

EVERYBODY = "all"  # the place of rules for all


class SenderAction(StrEnum):
    """What becomes of a sender's mail."""

    ALLOW = "ALLOW"
    BLOCK = "BLOCK"


class SenderRule(Row, MadeByAccount, table=True):
    """A pattern of senders, once in each place: of an account, a tag, a domain, or of all.

    At most one of `user_id`, `domain_id` and `tag` is set; `place` says the same, and is what
    deliveries look for.
    """

    __tablename__ = "sender_rules"
    __table_args__ = (
        Index("uq_sender_rules_place", "place", "pattern", unique=True),
        Index("ix_sender_rules_pattern", "pattern", "id"),
    )

    place: str = Field(sa_type=ByBytes)
    pattern: str = Field(sa_type=ByBytes)  # normal form: mail/spam/sender_rules.py
    action: SenderAction = choice(SenderAction)
    user_id: int | None = ref("users.id", default=None)
    domain_id: int | None = ref("domains.id", default=None)
    tag: str | None = None  # case folded
    comment: str | None = None
    created_at: Moment


def of_user(key: int) -> str:
    """The place of an account's rules."""
    return f"user:{key}"


def of_tag(folded: str) -> str:
    """The place of the rules for all that have a tag, which is case folded."""
    return f"tag:{folded}"


def of_domain(key: int) -> str:
    """The place of a domain's rules."""
    return f"domain:{key}"
