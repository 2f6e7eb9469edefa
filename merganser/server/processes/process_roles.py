"""The role of a process in a server: all work, or a part if there are several processes."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merganser.server.processes.shared_metrics import FleetMetrics, ProcessStatusBoard


@dataclass(frozen=True, slots=True)
class ProcessRole:
    """What one process does, with the sockets and memory that the first process prepared."""

    accepts_connections: bool = True
    runs_workers: bool = True  # those that only one process runs
    http_sockets: Sequence[socket.socket] = ()  # if empty, the process binds its own
    lmtp_sockets: Sequence[socket.socket] = ()
    # by setting name
    smtp_sockets: Mapping[str, Sequence[socket.socket]] = field(default_factory=dict)
    process_index: int = 0
    listening_process_count: int = 1
    status_board: ProcessStatusBoard | None = None
    fleet_metrics: FleetMetrics | None = None  # None if there is one process
    parent_pipe: int | None = None  # descriptor that closes when the first process ends
    server_id: str = ""  # empty if this process is the whole server

    def mark_up(self) -> None:
        """Mark this process as up in the memory that all processes share."""
        if self.status_board is not None:
            self.status_board.set_up(self.process_index, up=True)

    def record_heartbeat(self) -> None:
        """Record that the event loop of this process runs, for the first process."""
        if self.status_board is not None:
            self.status_board.record_heartbeat(self.process_index)


WHOLE_SERVER = ProcessRole()
