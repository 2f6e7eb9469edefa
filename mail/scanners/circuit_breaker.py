"""A circuit breaker that stops requests to a scanner which does not respond."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import lru_cache
from time import monotonic
from typing import TypeVar

from models.observability import metrics
from models.runtime.clock_steps import is_plausible_wait_running
from models.runtime.environment import Environment
from models.store.database import Database

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)

MAX_CONCURRENT_SCANS = 16  # requests to a scanner per process
MAX_FAILURES = 3  # in a row, that open the breaker
OPEN_FOR = timedelta(seconds=10)  # then one request decides
SCANS = metrics.counter(
    "merganser_scans",
    "Messages for a scanner: scored, clean, virus, failed, paused (after failures), busy, "
    "too_large.",
    "scanner",
    "result",
)
SCAN_SECONDS = metrics.histogram("merganser_scan_seconds", "Duration of a scan.", "scanner")
SCANNERS_DOWN = metrics.up_down_counter(
    "merganser_scanners_paused", "Scanners that are paused after failures.", "scanner"
)


class ScannerUnavailable(Exception):
    """The scanner does not respond, or not correctly. The text can be shown to users."""


class MessageTooLargeForScanner(Exception):
    """The message exceeds the size limit of the scanner."""


class ScannerCircuitBreaker:
    """The circuit breaker of one scanner. While it is open, no request is sent."""

    def __init__(self, scanner_name: str) -> None:
        self.scanner_name = scanner_name
        self.failure_count = 0
        self.open_until: datetime | None = None  # no requests before
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_SCANS)

    async def call_unless_open(
        self,
        environment: Environment,
        timeout_seconds: float,
        request: Callable[[], Awaitable[ResultT]],
    ) -> ResultT:
        """Run a request; wait up to the timeout for a slot, and again for the result.

        Raises ScannerUnavailable, MessageTooLargeForScanner.
        """
        if self._reserve_probe_or_report_open(environment):
            SCANS.add(self.scanner_name, "paused")
            raise ScannerUnavailable("scanner paused after failures")
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._slots.acquire()
        except TimeoutError:
            SCANS.add(self.scanner_name, "busy")
            raise ScannerUnavailable("too many requests are waiting") from None
        try:
            return await self._call_and_count_failure(environment, timeout_seconds, request)
        finally:
            self._slots.release()

    async def _call_and_count_failure(
        self,
        environment: Environment,
        timeout_seconds: float,
        request: Callable[[], Awaitable[ResultT]],
    ) -> ResultT:
        """Run the request with a timeout and count its result."""
        begun = monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await request()
        except TimeoutError:
            self._count_failure_and_open_at_limit(
                environment, f"no response within {timeout_seconds:g} seconds"
            )
            raise ScannerUnavailable(f"no response within {timeout_seconds:g} seconds") from None
        except ScannerUnavailable as problem:
            self._count_failure_and_open_at_limit(environment, str(problem))
            raise
        except MessageTooLargeForScanner:
            SCANS.add(self.scanner_name, "too_large")
            self._close_after_response()
            raise
        SCAN_SECONDS.observe(monotonic() - begun, self.scanner_name)
        self._close_after_response()
        return response

    def _reserve_probe_or_report_open(self, environment: Environment) -> bool:
        """Return True if the breaker is open. After the interval one request is let through."""
        now = environment.now()
        if self.open_until is None:
            return False
        if is_plausible_wait_running(self.open_until, now, OPEN_FOR):
            return True
        self.open_until = now + OPEN_FOR  # others wait for the result of this request
        return False

    def _count_failure_and_open_at_limit(self, environment: Environment, reason: str) -> None:
        """Count a failure and open the breaker after MAX_FAILURES in a row."""
        SCANS.add(self.scanner_name, "failed")
        self.failure_count += 1
        if self.failure_count < MAX_FAILURES:
            return
        if self.failure_count == MAX_FAILURES:  # one log line for all concurrent failures
            log.error("Scanner unavailable", extra={"scanner": self.scanner_name, "why": reason})
            SCANNERS_DOWN.add(self.scanner_name)
        self.open_until = environment.now() + OPEN_FOR

    def _close_after_response(self) -> None:
        """Close the breaker after a response."""
        if self.failure_count >= MAX_FAILURES:
            log.info("Scanner available again", extra={"scanner": self.scanner_name})
            SCANNERS_DOWN.add(self.scanner_name, amount=-1)
        self.failure_count, self.open_until = 0, None


@lru_cache(maxsize=16)
def breaker_of_scanner(
    _database: Database, scanner_name: str, _endpoint: str
) -> ScannerCircuitBreaker:
    """Return the breaker of a scanner endpoint. There is one per database and endpoint."""
    return ScannerCircuitBreaker(scanner_name)
