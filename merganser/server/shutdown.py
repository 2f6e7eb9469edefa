"""How a server is told to stop."""

import asyncio
import logging
import signal
from dataclasses import dataclass, field

from merganser.server import http_server

log = logging.getLogger("merganser")


@dataclass
class Ending:
    """Whether we have been told to stop, and what a signal breaks off until we listen.

    Told to stop we are not ready any more, but for `drain` seconds we answer as before: so
    long a load balancer may take to send its requests elsewhere.
    """

    drain: float = 0.0
    asked: bool = False
    web: http_server.Web | None = None
    starting: asyncio.Task[None] | None = None
    broken: BaseException | None = None  # a worker that ended by itself
    workers: list[asyncio.Task[None]] = field(default_factory=list)
    later: asyncio.TimerHandle | None = None  # ends the draining
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def signalled(self, which: signal.Signals) -> None:
        """Stop; a second signal does not wait, a second Ctrl-C not even for requests to end."""
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
