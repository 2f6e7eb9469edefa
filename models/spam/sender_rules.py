"""Table of allow and block rules for senders, of a user, a tag, a domain, or the platform."""

from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import BYTEWISE_TEXT, RowWithId, Timestamp, enum_column, foreign_key
from models.users.rule_makers import RuleWithMaker

PLATFORM_SCOPE = "all"  # `scope` of rules for all users


class SenderAction(StrEnum):
    """What a rule does with the mail of a sender."""

    ALLOW = "ALLOW"
    BLOCK = "BLOCK"


class SenderRule(RowWithId, RuleWithMaker, table=True):
    """A pattern of senders, once for each `scope`.

    At most one of `user_id`, `domain_id` and `tag` is set. `scope` is the same as text, and is what
    deliveries read by.
    """

    __tablename__ = "sender_rules"
    __table_args__ = (
        Index("uq_sender_rules_scope", "scope", "pattern", unique=True),
        Index("ix_sender_rules_pattern", "pattern", "id"),
    )

    scope: str = Field(sa_type=BYTEWISE_TEXT)
    pattern: str = Field(sa_type=BYTEWISE_TEXT)  # normal form: mail/spam/sender_rules.py
    action: SenderAction = enum_column(SenderAction)
    user_id: int | None = foreign_key("users.id", default=None)
    domain_id: int | None = foreign_key("domains.id", default=None)
    tag: str | None = None  # case folded
    comment: str | None = None
    created_at: Timestamp


def scope_of_user(user_id: int) -> str:
    """Return the `scope` of a user's rules."""
    return f"user:{user_id}"


def scope_of_tag(folded_tag: str) -> str:
    """Return the `scope` of the rules for all users with a tag, which is case folded."""
    return f"tag:{folded_tag}"


def scope_of_domain(domain_id: int) -> str:
    """Return the `scope` of a domain's rules."""
    return f"domain:{domain_id}"
