"""The node that this process belongs to, as the process knows it."""

import socket
from dataclasses import dataclass, field
from datetime import datetime

from models.cluster.nodes import AdministrativeNodeState

DRAINING_REASON = "The server is draining: connect again."
DOWN_REASON = "The server is down for maintenance: connect again."
RETRY_AFTER_SECONDS = 5  # of refused sessions; the load balancer chooses another node then


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """The name of a node, and the ports of its mail listeners that load balancers use."""

    host: str
    port: int
    smtp_port: int | None = None
    submission_port: int | None = None

    def __str__(self) -> str:
        return address_text(self.host, self.port)


def address_text(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass
class OwnNode:
    """The node of this process and the state that the process enforces.

    `node_id` is None if no server has registered, as in commands; then `name` is the host name of
    the machine. `address` is None in processes that don't write the heartbeat.
    `applied_change_number` is the last change of the node that this process has applied.
    """

    node_id: int | None = None
    name: str = field(default_factory=socket.gethostname)  # host:port
    address: NodeAddress | None = None
    state: AdministrativeNodeState = AdministrativeNodeState.UP
    applied_change_number: int = 0
    drain_ends_at: float = 0.0  # seconds of the monotonic clock
    applied_drain: datetime | None = None  # the end of the drain in the row, by the setter's clock

    @property
    def refusal_reason(self) -> str | None:
        """Why new sessions are refused; None if they are accepted."""
        if self.state is AdministrativeNodeState.UP:
            return None
        is_draining = self.state is AdministrativeNodeState.DRAINING
        return DRAINING_REASON if is_draining else DOWN_REASON
