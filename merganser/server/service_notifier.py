"""Notify systemd of the state of the server, by the protocol of sd_notify(3).

The notifications are datagrams to the socket in `NOTIFY_SOCKET`. A server of several processes
notifies from its first process only, since systemd accepts those of the main process.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

log = logging.getLogger("merganser")

SEND_TIMEOUT = 1.0  # seconds; systemd reads its socket late while it is busy


@dataclass
class ServiceNotifier:
    """Sends the state of this process to a service manager. Without an address it does nothing."""

    address: str | None = None  # of the socket; an abstract one begins with a null character
    watchdog_interval: float | None = None  # seconds between two notifications; None: no watchdog
    is_stopping: bool = False
    _next_watchdog_at: float = field(default=0.0, repr=False)  # by the monotonic clock

    def notify_ready(self) -> None:
        """Report that the listeners accept connections. The watchdog begins."""
        self._send("READY=1")

    def notify_stopping(self) -> None:
        """Report that the server begins to stop. Only the first call has an effect."""
        if not self.is_stopping:
            self.is_stopping = True
            self._send("STOPPING=1")

    def notify_watchdog_if_due(self) -> None:
        """Report that this process runs, unless it did so within the watchdog interval."""
        now = time.monotonic()
        if self.watchdog_interval is not None and now >= self._next_watchdog_at:
            self._next_watchdog_at = now + self.watchdog_interval
            self._send("WATCHDOG=1")

    @asynccontextmanager
    async def watchdog_of_event_loop(self) -> AsyncGenerator[None]:
        """Report from the event loop that it runs, until the end of the block."""
        if self.watchdog_interval is None:
            yield
            return
        task = asyncio.create_task(self._notify_watchdog_until_cancelled(self.watchdog_interval))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _notify_watchdog_until_cancelled(self, interval: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(interval)

    def _send(self, assignment: str) -> None:
        """Send one datagram. An error is logged, since the server works without systemd."""
        if self.address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT)
                sender.sendto(assignment.encode(), self.address)
        except OSError as problem:
            log.warning(
                "Could not notify the service manager",
                extra={"what": assignment, "problem": str(problem)},
            )


def notifier_from_environment(variables: Mapping[str, str] | None = None) -> ServiceNotifier:
    """Create the notifier that systemd has asked for by variables of the environment.

    The watchdog interval is half of `WATCHDOG_USEC`. It is ignored if `WATCHDOG_PID` names another
    process. Addresses that are neither a path nor an abstract name are ignored.
    """
    variables = os.environ if variables is None else variables
    address = variables.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    elif not address.startswith("/"):
        return ServiceNotifier()
    microseconds = variables.get("WATCHDOG_USEC", "")
    is_for_this_process = variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    has_watchdog = is_for_this_process and microseconds.isdecimal() and int(microseconds) > 0
    return ServiceNotifier(address, int(microseconds) / 2e6 if has_watchdog else None)
