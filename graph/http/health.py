"""Health checks: liveness, readiness and the state of the components.

The responses contain the names of the components and no other details.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[bool]]
Counts = Callable[[], Mapping[str, int]]

STORE = "store"
PATIENCE = 2.0  # seconds
FRESH = 0.25  # seconds
WRITTEN = 1.0  # seconds between test writes: probes must not load the database
HEADERS = {"Cache-Control": "no-store"}


class Health:
    """The checks of all components, run concurrently, and the routes that serve them."""

    def __init__(self, checks: Mapping[str, Check], processes: Counts | None = None) -> None:
        self.checks = checks
        self.processes = processes
        self._turn = asyncio.Lock()
        self._asked = -FRESH
        self._found: dict[str, bool] = {}

    async def found(self) -> dict[str, bool]:
        """Return the state of each component: True if it is healthy."""
        async with self._turn:
            if monotonic() - self._asked >= FRESH:
                answers = await asyncio.gather(*map(_well, self.checks.values()))
                self._found = self._noted(dict(zip(self.checks, answers, strict=True)))
                self._asked = monotonic()
        return self._found

    def _noted(self, found: dict[str, bool]) -> dict[str, bool]:
        """Log the components with a changed state; return the results."""
        for name, well in found.items():
            if well and not self._found.get(name, True):
                log.info("well again", extra={"component": name})
            elif not well and self._found.get(name, True):
                log.warning("not well", extra={"component": name})
        return found

    async def ready(self, _request: Request) -> JSONResponse:
        """Answer 200 if every component is well, else 503, with the state of each component."""
        found = await self.found()
        well = all(found.values())
        answer: dict[str, Any] = {
            "status": "ok" if well else "unavailable",
            "components": {name: "ok" if well else "unavailable" for name, well in found.items()},
        }
        if self.processes is not None:
            answer["processes"] = self.processes()
        return JSONResponse(answer, 200 if well else 503, HEADERS)

    async def store(self, _request: Request) -> JSONResponse:
        """Answer 200 if the database answers, else 503."""
        well = (await self.found())[STORE]
        answer = {"status": "ok" if well else "unavailable"}
        return JSONResponse(answer, 200 if well else 503, HEADERS)


def at_most_every(seconds: float, check: Check) -> Check:
    """Return a check that runs at most once in `seconds`, and else returns its last result."""
    asked_at, answer = -seconds, False

    async def remembered() -> bool:
        nonlocal asked_at, answer
        if monotonic() - asked_at >= seconds:
            answer = await _well(check)
            asked_at = monotonic()
        return answer

    return remembered


async def _well(check: Check) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            return await check()
    except Exception:  # noqa: BLE001 - any error means unhealthy
        return False


async def live(_request: Request) -> JSONResponse:
    """Answer 200, without a check of any component."""
    return JSONResponse({"status": "ok"}, 200, HEADERS)


def routes(checks: Mapping[str, Check], processes: Counts | None = None) -> list[Route]:
    """Return the routes /health, /health/live and /health/ready. DATABASE needs a check."""
    health = Health(checks, processes)
    return [
        Route("/health", health.store),
        Route("/health/live", live),
        Route("/health/ready", health.ready),
    ]
