"""What a process does of a server: everything, or its part where there are several."""

import mmap
import socket
from collections.abc import Sequence
from dataclasses import dataclass


class Board:
    """Which processes are up: memory that all of them share."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._marks = mmap.mmap(-1, size)

    def mark(self, index: int, *, up: bool) -> None:
        """Note that a process is up, or is not."""
        self._marks[index] = int(up)

    def is_up(self, index: int) -> bool:
        """Whether that process is up."""
        return bool(self._marks[index])

    @property
    def all_up(self) -> bool:
        """Whether none is missing."""
        return all(self._marks[: self._size])


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one process."""

    listens: bool = True
    works: bool = True  # does what only one process should do
    http: Sequence[socket.socket] = ()  # bound before; none: it binds its own
    lmtp: Sequence[socket.socket] = ()
    index: int = 0
    board: Board | None = None
    parent: int | None = None  # what is read here ends when the first process does

    def up(self) -> None:
        """Note that this process does its part from now on."""
        if self.board is not None:
            self.board.mark(self.index, up=True)


ALONE = Part()
