"""The state of a server's shutdown."""

import asyncio
import logging
import signal
from dataclasses import dataclass, field

from merganser.server import http_server

log = logging.getLogger("merganser")


@dataclass
class Ending:
    """Whether a stop was requested, and what a signal must cancel.

    After a stop was requested the server is not ready, but it answers for `drain_seconds` more,
    until a load balancer sends its requests to other servers.
    """

    drain: float = 0.0
    asked: bool = False
    web: http_server.Web | None = None
    starting: asyncio.Task[None] | None = None
    broken: BaseException | None = None  # of a worker that ended although no stop was requested
    workers: list[asyncio.Task[None]] = field(default_factory=list)
    later: asyncio.TimerHandle | None = None  # ends the drain time
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def signalled(self, which: signal.Signals) -> None:
        """Begin to stop. A second signal skips the drain time, a second Ctrl-C also requests."""
        patient, self.asked = self.drain > 0 and not self.asked, True
        if self.later is not None:
            self.later.cancel()
        if self.web is None:
            if self.starting is not None:
                self.starting.cancel()
        elif patient:
            log.info("draining", extra={"seconds": self.drain})
            loop = asyncio.get_running_loop()
            self.later = loop.call_later(self.drain, self.web.handle_exit, which, None)
        else:
            self.web.handle_exit(which, None)
