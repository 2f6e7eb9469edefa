"""Policies of encryption that other domains publish (MTA-STS, RFC 8461), as they were read."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field

from models.store.columns import Instant, MaybeMoment, Moment, Number, Row, choice, plain


class StsMode(StrEnum):
    """What a policy asks of senders."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


class StsPolicy(Row, table=True):
    """The policy of a domain, or that it could not be had."""

    __tablename__ = "sts_policies"

    domain: str = Field(unique=True)  # as the wire has it
    policy_id: str  # that of the record in DNS it was read for
    mode: StsMode = choice(StsMode)
    mx: list[str] = plain(list)  # names of servers; * for the first label
    max_age: Number  # seconds
    fetched_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)
    retry_at: MaybeMoment = None  # until then it is not asked for again
