"""Source of the bytes that a client sends."""

from collections.abc import Awaitable, Callable

PIECE_SIZE = 256 << 10  # bytes that are taken from the socket's buffer at once
ReadBytes = Callable[[int], Awaitable[bytes]]  # of so many bytes at most; none at the end


class ConnectionClosed(Exception):
    """The client has closed the connection."""
