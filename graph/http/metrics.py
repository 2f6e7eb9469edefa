"""GET /metrics: the metrics of all processes of a server."""

import asyncio
import hmac
import ipaddress
import logging
import platform
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from graph.execution.resolver_plans import REASONS, TALLY
from graph.http import openmetrics
from graph.http.http_errors import client_address
from models.errors import Refused, Unauthenticated
from models.observability import metrics, process_stats
from models.observability.metrics import Across, Family, Kind, Point, gauge
from models.runtime.environment import World
from models.users.roles import Role, Scope
from resolvers.admin.metrics import MOST, Standing, standing
from resolvers.context import Needs, Viewer

log = logging.getLogger(__name__)

SignIn = Callable[[Mapping[str, str], str | None], Awaitable[Viewer]]  # headers, address

FRESH = 5.0  # seconds
PATIENCE = 2.0  # seconds
HEADERS = {"Cache-Control": "no-store"}
PASSED_ON = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
MAY = Needs(role=Role.ADMIN, scope=Scope.READ)


class Access(StrEnum):
    """The setting that says who can read the metrics."""

    OFF = "off"  # nobody
    KEY = "key"  # with the configured key, or a credential of an ADMIN
    LOOPBACK = "loopback"  # as KEY, and every client on this machine


@dataclass(frozen=True, slots=True)
class Readers:
    """The readers of the metrics, and the key that only reads metrics."""

    access: Access = Access.KEY
    key: str | None = field(default=None, repr=False)


class Fleet(Protocol):
    """The shared metrics of the processes of one server."""

    def note(self) -> None:
        """Publish the metrics of this process to the other processes."""

    def families(self) -> list[Family]:
        """Return the metrics that all processes have published. It is thread-safe."""


def counted() -> list[Family]:
    """Return the metrics of this process."""
    return [*metrics.families(), _plans(), _reasons(), *process_stats.families()]


class Census:
    """The collection of all metrics. The database is read every few seconds at most.

    Without `process_metrics` it has the metrics of this process only.
    """

    def __init__(self, world: World, fleet: Fleet | None = None) -> None:
        self.world = world
        self._fleet = fleet
        self._turn = asyncio.Lock()
        self._asked = -FRESH
        self._standing: Standing | None = None

    async def families(self) -> list[Family]:
        """Return all metrics."""
        if self._fleet is None:
            found = counted()
        else:
            self._fleet.note()
            found = await asyncio.to_thread(self._fleet.families)  # tens of milliseconds
        return [*found, *_build(self.world), *await self._stored()]

    async def _stored(self) -> list[Family]:
        async with self._turn:
            if monotonic() - self._asked >= FRESH:
                self._standing = await self._look()
                self._asked = monotonic()
        well = int(self._standing is not None)
        up = gauge("merganser_store_up", "1 where the store answers.", well, Across.SAME)
        return [up, *_waiting(self._standing)] if self._standing else [up]

    async def _look(self) -> Standing | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await standing(self.world)
        except Exception as problem:  # noqa: BLE001 - the other metrics are still served
            log.warning("the store was not counted", extra={"problem": type(problem).__name__})
            return None


def _plans() -> Family:
    """Return the counters of compiled plans by outcome and name, the most frequent only."""
    counts = {
        (outcome, where): many
        for outcome, tally in TALLY._asdict().items()
        for where, many in tally.most_common(metrics.MOST // len(TALLY))
    }
    points = [Point(labels, many) for labels, many in counts.items()]
    words = "Functions made of selections: used, compiled, refused, fell back, given up."
    return Family("merganser_plans", Kind.COUNTER, words, ("outcome", "where"), points)


def _reasons() -> Family:
    """Return the counters of the reasons for fallbacks to graphql-core."""
    points = [Point(labels, many) for labels, many in REASONS.most_common(metrics.MOST)]
    words = "Why functions were not made (refused), or gave a value to graphql-core (fell)."
    return Family("merganser_plan_reasons", Kind.COUNTER, words, ("outcome", "reason"), points)


def _build(world: World) -> list[Family]:
    facts = {
        "version": version_of("merganser"),
        "python": platform.python_version(),
        "store": world.database.dialect,
    }
    return [metrics.info("merganser_build", "What runs here.", facts)]


def version_of(package: str) -> str:
    """Return the version of an installed package; "unknown" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"


def _waiting(now: Standing) -> list[Family]:
    up_to = f", counted up to {MOST}"
    return [
        _by_state(
            "merganser_queue_deliveries", f"Recipients still to be sent to{up_to}.", now.deliveries
        ),
        _by_state(
            "merganser_queue_submissions",
            f"Submissions of those recipients{up_to}.",
            now.submissions,
        ),
        gauge(
            "merganser_queue_overdue_seconds",
            "How long the first attempt that nobody has in hand has been due.",
            now.overdue,
            Across.SAME,
        ),
        gauge(
            "merganser_unindexed_messages",
            f"Messages the text index does not have yet{up_to}.",
            now.unindexed,
            Across.SAME,
        ),
        *_certificates(now),
    ]


def _certificates(now: Standing) -> list[Family]:
    """Return the metrics of certificates; without certificates the expiry has no point."""
    words = "Certificates that ACME failed to make the last time."
    failing = gauge("merganser_certificates_failing", words, now.unissued, Across.SAME)
    name = "merganser_certificate_expires_seconds"
    words = "How long the stored certificate is valid that ends first."
    points = [] if now.expires is None else [Point((), now.expires)]
    return [failing, Family(name, Kind.GAUGE, words, (), points, across=Across.SAME)]


def _by_state(name: str, help: str, many: Mapping[str, int]) -> Family:
    points = [Point((state,), count) for state, count in sorted(many.items())]
    return Family(name, Kind.GAUGE, help, ("state",), points, across=Across.SAME)


class Metrics:
    """The endpoint /metrics."""

    def __init__(self, census: Census, sign_in: SignIn, readers: Readers) -> None:
        self.census = census
        self.sign_in = sign_in
        self.readers = readers

    async def answer(self, request: Request) -> Response:
        """Serve the metrics. The status is 401 or 403 without the right, 404 if turned off."""
        if self.readers.access is Access.OFF:
            return _refused(404, "There are no metrics here.")
        if not self._local(request) and not self._knows_key(request):
            try:
                (await self.sign_in(request.headers, client_address(request))).require(MAY)
            except Refused as refusal:
                return _turned_away(refusal)
        accept = request.headers.get("accept", "")
        new = openmetrics.preferred(accept)
        text = openmetrics.written(await self.census.families(), openmetrics=new)
        headers = {**HEADERS, "Content-Type": openmetrics.TYPES[new], "Vary": "Accept"}
        return Response(text.encode(), headers=headers)

    def _knows_key(self, request: Request) -> bool:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        key = self.readers.key
        if not key or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(shown.strip().encode(errors="replace"), key.encode())

    def _local(self, request: Request) -> bool:
        if self.readers.access is not Access.LOOPBACK or request.client is None:
            return False
        if any(name in request.headers for name in PASSED_ON):
            return False  # the client is behind a proxy on this machine
        with suppress(ValueError):
            return ipaddress.ip_address(request.client.host).is_loopback
        return False


def _turned_away(refusal: Refused) -> Response:
    if isinstance(refusal, Unauthenticated):
        return _refused(401, "Show a key for metrics.", {"WWW-Authenticate": "Bearer"})
    return _refused(403, "This credential is not for metrics.")


def _refused(status: int, words: str, more: Mapping[str, str] | None = None) -> Response:
    headers = {**HEADERS, **(more or {}), "Content-Type": "text/plain; charset=utf-8"}
    return Response(f"{words}\n".encode(), status, headers)
