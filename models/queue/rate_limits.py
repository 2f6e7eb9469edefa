"""How many messages accounts, domains and the platform may send in a time, and what is counted."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.queue.rate_values import RateFrame
from models.store.columns import Big, Instant, Moment, Number, Row, choice, ref
from models.users.tables import LimitSource


class RateLimit(Row, table=True):
    """What an account or a domain may send: its key is that one's. Of others settings say it."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index("rate_limits_by_age", "created_at", "id"),)

    user_id: int | None = ref("users.id", default=None)
    domain_id: int | None = ref("domains.id", default=None)
    value: Number = 0  # messages; 0: any number, whatever the settings say
    frame: RateFrame = choice(RateFrame)
    created_at: Moment
    updated_at: Moment


class RateWindow(SQLModel, table=True):
    """What has been sent in the time that is running, of an account, a domain, or the platform.

    It belongs to nobody by reference: who counts must not wait for who changes an account.
    What is over is swept away.
    """

    __tablename__ = "rate_windows"

    id: int = Field(primary_key=True, sa_type=Big, sa_column_kwargs={"autoincrement": False})
    frame: RateFrame = choice(RateFrame)  # of another one nothing is counted
    allowed: Number  # as it was when the last message was counted
    used: Number
    until: datetime = Field(sa_type=Instant, index=True)


class RateHold(SQLModel, table=True):
    """An account that was turned away, until the time that is running ends."""

    __tablename__ = "rate_holds"
    __table_args__ = (Index("rate_holds_by_age", "since", "id"),)

    id: int = ref("users.id", primary_key=True, index=False)
    window_id: Number  # which one is full: a key of `RateWindow`
    source: LimitSource = choice(LimitSource)  # whose that is
    value: Number
    frame: RateFrame = choice(RateFrame)
    since: Moment
    until: Moment
    told_until: datetime = Field(sa_type=Instant, index=True)  # the account is not told before
