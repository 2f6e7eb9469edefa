"""Table of MTA-STS policies of other domains (RFC 8461)."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field

from models.store.columns import Instant, MaybeMoment, Moment, Number, Row, choice, plain


class StsMode(StrEnum):
    """The mode of a policy."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


class StsPolicy(Row, table=True):
    """The policy of a domain, or a failed attempt to fetch it."""

    __tablename__ = "sts_policies"

    domain: str = Field(unique=True)  # in ASCII
    policy_id: str  # `id` of the DNS record when it was fetched
    mode: StsMode = choice(StsMode)
    mx: list[str] = plain(list)  # patterns of MX hosts; * for the first label
    max_age: Number  # seconds
    fetched_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)
    retry_at: MaybeMoment = None  # it is not fetched again before
