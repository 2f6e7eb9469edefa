"""Table of MTA-STS policies of other domains (RFC 8461)."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field

from models.store.columns import (
    Int64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    json_column,
)


class MtaStsMode(StrEnum):
    """The mode of a policy."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


class MtaStsPolicy(RowWithId, table=True):
    """The policy of a domain, or a failed attempt to fetch it."""

    __tablename__ = "mta_sts_policies"

    domain: str = Field(unique=True)  # in ASCII
    policy_id: str  # `id` of the DNS record when it was fetched
    mode: MtaStsMode = enum_column(MtaStsMode)
    mx: list[str] = json_column(list)  # patterns of MX hosts; * for the first label
    max_age: Int64  # seconds
    fetched_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    retry_at: OptionalTimestamp = None  # it is not fetched again before
