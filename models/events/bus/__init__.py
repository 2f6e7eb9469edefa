"""Roads on which wake-ups go from process to process (models/events/wakeups.py)."""

from collections.abc import Callable
from typing import Protocol

Heard = Callable[[str], None]


class Bus(Protocol):
    """A road. Messages may be lost, and may come back to who sent them.

    Nothing here goes on by itself: what breaks raises, and the caller tries again.
    """

    name: str  # for the log

    async def send(self, message: str) -> None:
        """Send a message to all who hear."""

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Hear until the bus breaks. From the call of `begun` on nothing is missed."""

    async def close(self) -> None:
        """Let go of all connections."""
