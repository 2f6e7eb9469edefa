"""A circuit breaker that stops requests to a scanner which does not respond."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import lru_cache
from time import monotonic
from typing import TypeVar

from models.observability import metrics
from models.runtime.clock_steps import is_ahead
from models.runtime.environment import World
from models.store.database import Database

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)

AT_ONCE = 16  # requests to a scanner per process
FAILURES = 3  # in a row, that open the breaker
SHUT = timedelta(seconds=10)  # then one request decides
SCANS = metrics.counter(
    "merganser_scans",
    "Messages for a scanner: judged, clean, virus; failed, shut, busy, too_large.",
    "scanner",
    "result",
)
TOOK = metrics.histogram("merganser_scan_seconds", "Time of a scan.", "scanner")
DOWN = metrics.level("merganser_scanners_down", "Scanners that are not asked for now.", "scanner")


class Down(Exception):
    """The scanner does not respond, or not correctly. The text can be shown to users."""


class TooLarge(Exception):
    """The message exceeds the size limit of the scanner."""


class Breaker:
    """The circuit breaker of one scanner. While it is open, no request is sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self.until: datetime | None = None  # no requests before
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ask(
        self, world: World, seconds: float, question: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Run a request; wait up to the timeout for a slot, and again for the result.

        Raises ScannerUnavailable, MessageTooLargeForScanner.
        """
        if self._shut(world):
            SCANS.add(self.name, "shut")
            raise Down("not asked: it has not answered for a while")
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError:
            SCANS.add(self.name, "busy")
            raise Down("too many questions wait for it") from None
        try:
            return await self._asked(world, seconds, question)
        finally:
            self._places.release()

    async def _asked(
        self, world: World, seconds: float, question: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Run the request with a timeout and count its result."""
        begun = monotonic()
        try:
            async with asyncio.timeout(seconds):
                found = await question()
        except TimeoutError:
            self._failed(world, f"no answer within {seconds:g} seconds")
            raise Down(f"no answer within {seconds:g} seconds") from None
        except Down as problem:
            self._failed(world, str(problem))
            raise
        except TooLarge:
            SCANS.add(self.name, "too_large")
            self._answered()
            raise
        TOOK.note(monotonic() - begun, self.name)
        self._answered()
        return found

    def _shut(self, world: World) -> bool:
        """Return True if the breaker is open. After the interval one request is let through."""
        now = world.now()
        if self.until is None:
            return False
        if is_ahead(self.until, now, SHUT):
            return True
        self.until = now + SHUT  # others wait for the result of this request
        return False

    def _failed(self, world: World, why: str) -> None:
        """Count a failure and open the breaker after MAX_FAILURES in a row."""
        SCANS.add(self.name, "failed")
        self.failures += 1
        if self.failures < FAILURES:
            return
        if self.failures == FAILURES:  # one log line for all concurrent failures
            log.error("a scanner does not answer", extra={"scanner": self.name, "why": why})
            DOWN.add(self.name)
        self.until = world.now() + SHUT

    def _answered(self) -> None:
        """Close the breaker after a response."""
        if self.failures >= FAILURES:
            log.info("a scanner answers again", extra={"scanner": self.name})
            DOWN.add(self.name, by=-1)
        self.failures, self.until = 0, None


@lru_cache(maxsize=16)
def breaker_of(_database: Database, name: str, _place: str) -> Breaker:
    """Return the breaker of a scanner endpoint. There is one per database and endpoint."""
    return Breaker(name)
