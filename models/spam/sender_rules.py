"""Table of allow and block rules for senders, of a user, a tag, a domain, or the platform."""

from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import ByBytes, Moment, Row, choice, ref
from models.users.rule_makers import MadeByAccount

EVERYBODY = "all"  # `place` of rules for all users


class SenderAction(StrEnum):
    """What a rule does with the mail of a sender."""

    ALLOW = "ALLOW"
    BLOCK = "BLOCK"


class SenderRule(Row, MadeByAccount, table=True):
    """A pattern of senders, once for each `place`.

    At most one of `user_id`, `domain_id` and `tag` is set. `place` is the same as text, and is what
    deliveries read by.
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
    """Return the `place` of a user's rules."""
    return f"user:{key}"


def of_tag(folded: str) -> str:
    """Return the `place` of the rules for all users with a tag, which is case folded."""
    return f"tag:{folded}"


def of_domain(key: int) -> str:
    """Return the `place` of a domain's rules."""
    return f"domain:{key}"
