"""Health checks: liveness, readiness and the state of the components.

The responses contain the names of the components and no other details.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

log = logging.getLogger(__name__)

HealthCheck = Callable[[], Awaitable[bool]]
ProcessCounts = Callable[[], Mapping[str, int]]
StoppedNames = Callable[[], Collection[str]]  # of components that an operator has stopped

DATABASE = "store"
CHECK_TIMEOUT = 2.0  # seconds
RESULT_LIFETIME = 0.25  # seconds
WRITE_CHECK_INTERVAL = 1.0  # seconds between test writes: probes must not load the database
NO_STORE = {"Cache-Control": "no-store"}


class HealthChecks:
    """The checks of all components, run concurrently, and the routes that serve them."""

    def __init__(
        self,
        checks: Mapping[str, HealthCheck],
        processes: ProcessCounts | None = None,
        stopped_names: StoppedNames = tuple,
    ) -> None:
        self.checks = checks
        self.processes = processes
        self._stopped_names = stopped_names
        self._lock = asyncio.Lock()
        self._checked_at = -RESULT_LIFETIME
        self._results: dict[str, bool] = {}

    async def check_components_with_cached_result(self) -> dict[str, bool]:
        """Return the state of each component: True if it is healthy."""
        async with self._lock:
            if monotonic() - self._checked_at >= RESULT_LIFETIME:
                self._results = self._log_components_with_changed_state(
                    await run_health_checks(self.checks)
                )
                self._checked_at = monotonic()
        return self._results

    def _log_components_with_changed_state(self, results: dict[str, bool]) -> dict[str, bool]:
        """Log the components with a changed state; return the results."""
        for name, well in results.items():
            if well and not self._results.get(name, True):
                log.info("Server is ready again", extra={"component": name})
            elif not well and self._results.get(name, True):
                log.warning("Server is not ready", extra={"component": name})
        return results

    async def serve_readiness(self, _request: Request) -> JSONResponse:
        """Answer 200 if every component is well, else 503, with the state of each component."""
        problems = await self.check_components_with_cached_result()
        well = all(problems.values())
        answer: dict[str, Any] = {
            "status": "ok" if well else "unavailable",
            "components": {
                **dict.fromkeys(sorted(self._stopped_names()), "stopped"),
                **{name: "ok" if well else "unavailable" for name, well in problems.items()},
            },
        }
        if self.processes is not None:
            answer["processes"] = self.processes()
        return JSONResponse(answer, 200 if well else 503, NO_STORE)

    async def serve_database_health(self, _request: Request) -> JSONResponse:
        """Answer 200 if the database answers, else 503."""
        well = (await self.check_components_with_cached_result())[DATABASE]
        answer = {"status": "ok" if well else "unavailable"}
        return JSONResponse(answer, 200 if well else 503, NO_STORE)


def health_check_with_cached_result(seconds: float, check: HealthCheck) -> HealthCheck:
    """Return a check that runs at most once in `seconds`, and else returns its last result."""
    asked_at, answer = -seconds, False

    async def check_or_last_result() -> bool:
        nonlocal asked_at, answer
        if monotonic() - asked_at >= seconds:
            answer = await _is_healthy(check)
            asked_at = monotonic()
        return answer

    return check_or_last_result


async def run_health_checks(checks: Mapping[str, HealthCheck]) -> dict[str, bool]:
    """Run checks concurrently. Returns False for a check that fails or takes too long."""
    answers = await asyncio.gather(*map(_is_healthy, checks.values()))
    return dict(zip(checks, answers, strict=True))


async def _is_healthy(check: HealthCheck) -> bool:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            return await check()
    except Exception:  # noqa: BLE001 - any error means unhealthy
        return False


async def serve_liveness(_request: Request) -> JSONResponse:
    """Answer 200, without a check of any component."""
    return JSONResponse({"status": "ok"}, 200, NO_STORE)


def health_routes(
    checks: Mapping[str, HealthCheck],
    processes: ProcessCounts | None = None,
    stopped_names: StoppedNames = tuple,
) -> list[Route]:
    """Return the routes /health, /health/live and /health/ready. DATABASE needs a check.

    /health/ready also names the components that an operator has stopped. It stays ready.
    """
    health = HealthChecks(checks, processes, stopped_names)
    return [
        Route("/health", health.serve_database_health),
        Route("/health/live", serve_liveness),
        Route("/health/ready", health.serve_readiness),
    ]
