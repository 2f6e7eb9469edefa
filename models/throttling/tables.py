"""Tables of the ban policy, of failures of networks, and of bans."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    json_column,
)
from models.throttling.policy import BanCause


class BanPolicy(RowWithId, table=True):
    """The ban policy: one row, or none if it was never changed."""

    __tablename__ = "ban_policies"

    ban_seconds: Int64
    ban_time_increment: bool
    max_attempts: Int64
    retry_window_seconds: Int64
    netmask_ipv4: Int64
    netmask_ipv6: Int64
    allowlist: list[str] = json_column(list)  # networks and host names
    denylist: list[str] = json_column(list)
    updated_at: Timestamp


class BanListHost(SQLModel, table=True):
    """A host name of the allow list or the deny list, with its addresses from DNS."""

    __tablename__ = "ban_list_hosts"

    name: str = Field(primary_key=True)
    addresses: list[str] = json_column(list)  # of the last answer that was used
    resolved_at: OptionalTimestamp = None  # time of that answer
    checked_at: Timestamp  # time of the last query
    problem: str | None = None  # why the last query gave no usable answer


class NetworkFailure(SQLModel, table=True):
    """Failures of a network in the current window."""

    __tablename__ = "network_failures"
    __table_args__ = (Index("network_failures_by_ip", "first_ip", "last_ip"),)

    network: str = Field(primary_key=True)
    first_ip: str  # 32 hex digits: `NetworkNumber.first_and_last_digits`
    last_ip: str
    failure_count: Int64
    window_ends_at: datetime = Field(sa_type=UtcDateTime, index=True)


class NetworkBan(RowWithId, table=True):
    """The last ban of a network. It is kept after its end, since it makes the next one longer."""

    __tablename__ = "network_bans"
    __table_args__ = (
        Index("network_bans_by_start", "started_at", "id"),
        Index("network_bans_by_end", "ends_at", "id"),
        Index("network_bans_by_ip", "first_ip", "last_ip"),
    )

    network: str = Field(unique=True)
    first_ip: str
    last_ip: str
    cause: BanCause = enum_column(BanCause)
    reason: str | None = None  # given by the administrator who banned it
    failure_count: Int64 = 0
    ban_count: Int64 = 1  # bans in a row, each less than `BAN_HISTORY` after the one before
    started_at: Timestamp
    ends_at: Timestamp
    change_number: int = Field(sa_type=BIG_INTEGER, index=True)  # `BanChangeCounter.last_change`


class BanChangeCounter(RowWithId, table=True):
    """The number of the last change of bans, policy or host addresses, in one row.

    Processes read it every second. They then read only the bans with a higher number.
    """

    __tablename__ = "ban_change_counters"

    last_change: Int64 = 0


def host_values(name: str, addresses: list[str], checked_at: datetime) -> dict[str, Any]:
    """Return the column values of a host name whose addresses were found."""
    return {
        "name": name,
        "addresses": addresses,
        "resolved_at": checked_at,
        "checked_at": checked_at,
        "problem": None,
    }
