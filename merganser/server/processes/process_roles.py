"""What a process does of a server: everything, or its part where there are several."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merganser.server.processes.shared_metrics import Board, Ship


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one process."""

    listens: bool = True
    works: bool = True  # does what only one process should do
    http: Sequence[socket.socket] = ()  # bound before; none: it binds its own
    lmtp: Sequence[socket.socket] = ()
    smtp: Mapping[str, Sequence[socket.socket]] = field(
        default_factory=dict
    )  # by the setting's name
    index: int = 0
    many: int = 1  # processes that listen
    board: Board | None = None
    ship: Ship | None = None  # tells what this process counts to the others
    parent: int | None = None  # what is read here ends when the first process does
    server: str = ""  # identity of the server; empty: this process is the whole server

    def up(self) -> None:
        """Note that this process does its part from now on."""
        if self.board is not None:
            self.board.mark(self.index, up=True)


ALONE = Part()
