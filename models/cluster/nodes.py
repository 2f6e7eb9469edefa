"""Tables of the nodes of the platform, and of the users who are pinned to one."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
)

DEFAULT_WEIGHT = 100
MAX_WEIGHT = 10_000


class NodeKind(StrEnum):
    """What a node does."""

    BACKEND = "BACKEND"  # a server of this project
    FRONT = "FRONT"  # a load balancer


class AdministrativeNodeState(StrEnum):
    """The state that an administrator has set."""

    UP = "UP"
    DRAINING = "DRAINING"
    DOWN = "DOWN"


class ClusterNodeState(StrEnum):
    """The state of a node: the one that was set, or that the node can't be reached."""

    UP = "UP"
    DRAINING = "DRAINING"
    DOWN = "DOWN"
    UNREACHABLE = "UNREACHABLE"


class NodeSyncState(StrEnum):
    """Whether the server of a node has applied the last change of the node."""

    SYNCED = "SYNCED"
    CATCHING_UP = "CATCHING_UP"


class ClusterNode(RowWithId, table=True):
    """A server or load balancer. A server registers itself at its start.

    Its server increases `heartbeat_count` every second. Another server sets `unreachable_at` when
    the counter stops.
    """

    __tablename__ = "cluster_nodes"
    __table_args__ = (
        UniqueConstraint("host", "port", name="uq_cluster_nodes_address"),
        Index("cluster_nodes_by_host", "host", "id"),
        Index("cluster_nodes_by_state_change", "state_changed_at", "id"),
        Index("cluster_nodes_by_creation", "created_at", "id"),
    )

    host: str  # lower case, or an IP address
    port: Int64  # of HTTP; of a FRONT node the port that is probed
    kind: NodeKind = enum_column(NodeKind)
    tag: str | None = None
    weight: Int64 = DEFAULT_WEIGHT
    state: AdministrativeNodeState = enum_column(AdministrativeNodeState)
    state_changed_at: Timestamp
    drain_seconds: Int64 = 0  # over which a DRAINING node ends its sessions
    drain_ends_at: OptionalTimestamp = None  # for people only; each process measures it itself
    is_added: bool = False  # by an administrator, so it is kept without a server
    server: str | None = Field(default=None, index=True)  # identity of the server that registered
    version: str | None = None
    process_count: Int64 = 0
    smtp_port: OptionalInt64 = None
    submission_port: OptionalInt64 = None
    ip_addresses: list[str] = json_column(list)  # never banned
    change_number: Int64 = 0  # of the last change by an administrator
    applied_change_number: Int64 = 0  # the last one that the server has applied
    heartbeat_count: Int64 = 0
    last_heartbeat_at: OptionalTimestamp = None  # of a FRONT node: of the last successful probe
    unreachable_at: OptionalTimestamp = None
    last_failure_at: OptionalTimestamp = None
    last_failure: str | None = None
    created_at: Timestamp


class UserAffinity(SQLModel, table=True):
    """The node that an administrator has pinned a user to."""

    __tablename__ = "user_affinities"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    node_id: int = foreign_key("cluster_nodes.id")
    created_at: Timestamp
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
