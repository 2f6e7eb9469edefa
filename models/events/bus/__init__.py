"""Event buses, which carry wake-ups between processes (models/events/wakeups.py)."""

from collections.abc import Callable
from typing import Protocol

MessageHandler = Callable[[str], None]


class EventBus(Protocol):
    """A transport of short messages. Messages can be lost, and can return to their sender.

    A bus does not reconnect: failures raise, and the caller tries again.
    """

    name: str  # for the log

    async def send(self, message: str) -> None:
        """Send a message to all processes that receive."""

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        """Pass messages to `on_message` until the bus breaks.

        From the call of `on_connected` on, no message is missed.
        """

    async def close(self) -> None:
        """Close all connections."""
