"""The state of a server's shutdown."""

import asyncio
import logging
import signal
from dataclasses import dataclass, field

from merganser.server.http_server import HttpServer
from merganser.server.service_notifier import ServiceNotifier

log = logging.getLogger("merganser")


@dataclass
class GracefulShutdown:
    """Whether a stop was requested, and what a signal must cancel.

    After a stop was requested the server is not ready, but it answers for `drain_seconds` more,
    until a load balancer sends its requests to other servers.
    """

    drain_seconds: float = 0.0
    is_requested: bool = False
    http_server: HttpServer | None = None
    start_task: asyncio.Task[None] | None = None
    worker_error: BaseException | None = (
        None  # of a worker that ended although no stop was requested
    )
    drain_timer: asyncio.TimerHandle | None = None  # ends the drain time
    notifier: ServiceNotifier = field(default_factory=ServiceNotifier)

    def stop_after_worker_error(self, problem: BaseException) -> None:
        """Log the error with which a worker ended unexpectedly, and stop the server."""
        self.worker_error = problem
        self.notifier.notify_stopping()
        log.error("A worker ended unexpectedly", exc_info=problem)
        if self.http_server is not None:
            self.http_server.should_exit = True
        elif self.start_task is not None:
            self.start_task.cancel()

    def begin_stop_or_skip_drain(self, signal_number: signal.Signals) -> None:
        """Begin to stop. A second signal skips the drain time, a second Ctrl-C also requests."""
        is_draining, self.is_requested = self.drain_seconds > 0 and not self.is_requested, True
        self.notifier.notify_stopping()
        if self.drain_timer is not None:
            self.drain_timer.cancel()
        if self.http_server is None:
            if self.start_task is not None:
                self.start_task.cancel()
        elif is_draining:
            log.info("Draining", extra={"seconds": self.drain_seconds})
            loop = asyncio.get_running_loop()
            self.drain_timer = loop.call_later(
                self.drain_seconds, self.http_server.handle_exit, signal_number, None
            )
        else:
            self.http_server.handle_exit(signal_number, None)
