"""The role of a process in a server: all work, or a part if there are several processes."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merganser.server.processes.shared_metrics import Board, Ship


@dataclass(frozen=True, slots=True)
class Part:
    """What one process does, with the sockets and memory that the first process prepared."""

    listens: bool = True
    works: bool = True  # those that only one process runs
    http: Sequence[socket.socket] = ()  # if empty, the process binds its own
    lmtp: Sequence[socket.socket] = ()
    smtp: Mapping[str, Sequence[socket.socket]] = field(default_factory=dict)  # by setting name
    index: int = 0
    many: int = 1
    board: Board | None = None
    ship: Ship | None = None  # None if there is one process
    parent: int | None = None  # descriptor that closes when the first process ends
    server: str = ""  # empty if this process is the whole server

    def up(self) -> None:
        """Mark this process as up in the memory that all processes share."""
        if self.board is not None:
            self.board.mark(self.index, up=True)


ALONE = Part()
