"""GET /metrics: the metrics of all processes of a server."""

import asyncio
import hmac
import ipaddress
import logging
import platform
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import NamedTuple, Protocol

from starlette.requests import Request
from starlette.responses import Response

from graph.execution.completed_rows import ROW_COUNTS
from graph.execution.resolver_plans import FALLBACK_REASONS, PLAN_COUNTERS
from graph.http import openmetrics
from graph.http.http_errors import client_ip_address
from models.errors import RequestError, Unauthenticated
from models.observability import metrics, process_stats
from models.observability.metrics import (
    MetricFamily,
    MetricKind,
    MetricPoint,
    ProcessAggregation,
    gauge_family,
)
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.admin.metrics import MAX_COUNTED_ROWS, BacklogFigures, read_backlog_figures
from resolvers.viewer import GuardRule, Viewer

log = logging.getLogger(__name__)

# headers, address
AuthenticateRequest = Callable[[Mapping[str, str], str | None], Awaitable[Viewer]]

DATABASE_METRICS_LIFETIME = 5.0  # seconds
DATABASE_TIMEOUT = 2.0  # seconds
NO_STORE = {"Cache-Control": "no-store"}
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
METRICS_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)


class MetricsAccess(StrEnum):
    """The setting that says who can read the metrics."""

    OFF = "off"  # no caller
    KEY = "key"  # with the configured key, or a credential of an ADMIN
    LOOPBACK = "loopback"  # as KEY, and every client on this machine


@dataclass(frozen=True, slots=True)
class MetricsReaders:
    """The readers of the metrics, and the key that only reads metrics."""

    access: MetricsAccess = MetricsAccess.KEY
    key: str | None = field(default=None, repr=False)


class DiskUsage(NamedTuple):
    """The bytes of a disk."""

    free: int
    total: int


class ProcessMetrics(Protocol):
    """The shared metrics of the processes of one server."""

    def write_metrics(self) -> None:
        """Publish the metrics of this process to the other processes."""

    def merged_families(self) -> list[MetricFamily]:
        """Return the metrics that all processes have published. It is thread-safe."""


def own_metric_families() -> list[MetricFamily]:
    """Return the metrics of this process."""
    return [
        *metrics.collect_families(),
        _plan_counter_family(),
        _fallback_reason_family(),
        _completed_row_family(),
        *process_stats.collect_families(),
    ]


class MetricsCollector:
    """The collection of all metrics. The database is read every few seconds at most.

    Without `process_metrics` it has the metrics of this process only.
    """

    def __init__(
        self, environment: Environment, process_metrics: ProcessMetrics | None = None
    ) -> None:
        self.environment = environment
        self._process_metrics = process_metrics
        self._lock = asyncio.Lock()
        self._read_at = -DATABASE_METRICS_LIFETIME
        self._database_metrics: BacklogFigures | None = None

    async def collect_families(self) -> list[MetricFamily]:
        """Return all metrics."""
        if self._process_metrics is None:
            families = own_metric_families()
        else:
            self._process_metrics.write_metrics()
            # tens of milliseconds
            families = await asyncio.to_thread(self._process_metrics.merged_families)
        return [
            *families,
            version_info_family(self.environment.database.dialect),
            *disk_families(await self._read_disk_usage()),
            *await self._database_families(),
        ]

    async def _read_disk_usage(self) -> DiskUsage | None:
        """Read the usage of the disk of the data folder. None outside a server."""
        folder = self.environment.server_control.folders.get("spool")
        if folder is None:
            return None
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, folder)
        except OSError as problem:
            log.warning("Could not read the free disk space", extra={"problem": str(problem)})
            return None
        return DiskUsage(usage.free, usage.total)

    async def _database_families(self) -> list[MetricFamily]:
        async with self._lock:
            if monotonic() - self._read_at >= DATABASE_METRICS_LIFETIME:
                self._database_metrics = await self._read_database_metrics()
                self._read_at = monotonic()
        return database_families(self._database_metrics)

    async def _read_database_metrics(self) -> BacklogFigures | None:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                return await read_backlog_figures(self.environment)
        except Exception as problem:  # noqa: BLE001 - the other metrics are still served
            log.warning(
                "Could not count rows for the metrics", extra={"problem": type(problem).__name__}
            )
            return None


def _plan_counter_family() -> MetricFamily:
    """Return the counters of compiled plans by outcome and name, the most frequent only."""
    counts = {
        (outcome, counter_name): count
        for outcome, tally in PLAN_COUNTERS._asdict().items()
        for counter_name, count in tally.most_common(metrics.MAX_COMBINATIONS // len(PLAN_COUNTERS))
    }
    points = [MetricPoint(labels, count) for labels, count in counts.items()]
    help_text = (
        "Functions generated for selection sets: used; compiled; refused, it has a resolver; "
        "fallback, a value needed graphql-core; given_up, not compiled after several fallbacks."
    )
    return MetricFamily(
        "merganser_compiled_functions", MetricKind.COUNTER, help_text, ("outcome", "where"), points
    )


def _fallback_reason_family() -> MetricFamily:
    """Return the counters of the reasons for fallbacks to graphql-core."""
    points = [
        MetricPoint(labels, count)
        for labels, count in FALLBACK_REASONS.most_common(metrics.MAX_COMBINATIONS)
    ]
    help_text = (
        "Reasons why a function was not generated (refused) or needed graphql-core (fallback)."
    )
    return MetricFamily(
        "merganser_compiled_function_fallbacks",
        MetricKind.COUNTER,
        help_text,
        ("outcome", "reason"),
        points,
    )


def _completed_row_family() -> MetricFamily:
    """Return the counters of completed rows of lists."""
    points = [MetricPoint((outcome,), count) for outcome, count in ROW_COUNTS.items()]
    help_text = "Rows of lists in responses: computed; cached, encoded by an earlier response."
    return MetricFamily(
        "merganser_completed_rows", MetricKind.COUNTER, help_text, ("outcome",), points
    )


def version_info_family(dialect: str) -> MetricFamily:
    """Return the versions of the server. `dialect` is the kind of the database."""
    facts = {
        "version": installed_version("merganser"),
        "python": platform.python_version(),
        "store": dialect,
    }
    return metrics.info_family("merganser_build", "Versions of the server.", facts)


def installed_version(package: str) -> str:
    """Return the version of an installed package; "unknown" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"


def disk_families(usage: DiskUsage | None) -> list[MetricFamily]:
    """Return the metrics of the disk of the data folder. None: they have no value."""
    descriptions = {
        "merganser_disk_free_bytes": "Free bytes on the disk of the data folder.",
        "merganser_disk_size_bytes": "Size of the disk of the data folder.",
    }
    values: tuple[int | None, int | None] = usage or (None, None)
    return [
        MetricFamily(
            name,
            MetricKind.GAUGE,
            help_text,
            (),
            [] if value is None else [MetricPoint((), value)],
            aggregation=ProcessAggregation.SAME,
        )
        for (name, help_text), value in zip(descriptions.items(), values, strict=True)
    ]


def database_families(database_metrics: BacklogFigures | None) -> list[MetricFamily]:
    """Return the metrics of the database. None: it does not respond."""
    is_up = int(database_metrics is not None)
    families = [
        gauge_family(
            "merganser_database_up",
            "1 if the database responds.",
            is_up,
            ProcessAggregation.SAME,
        )
    ]
    return families + (_backlog_families(database_metrics) if database_metrics else [])


def _backlog_families(database_metrics: BacklogFigures) -> list[MetricFamily]:
    up_to = f", counted up to {MAX_COUNTED_ROWS:,}"
    return [
        _family_by_state(
            "merganser_queue_deliveries",
            f"Recipients in the queue{up_to}.",
            database_metrics.deliveries,
        ),
        _family_by_state(
            "merganser_queue_submissions",
            f"Submissions of those recipients{up_to}.",
            database_metrics.submissions,
        ),
        gauge_family(
            "merganser_queue_overdue_seconds",
            "Age of the oldest due attempt that no process has leased.",
            database_metrics.overdue_seconds,
            ProcessAggregation.SAME,
        ),
        gauge_family(
            "merganser_unindexed_messages",
            f"Messages that the text index does not have yet{up_to}.",
            database_metrics.unindexed_messages,
            ProcessAggregation.SAME,
        ),
        *_certificate_families(database_metrics),
    ]


def _certificate_families(database_metrics: BacklogFigures) -> list[MetricFamily]:
    """Return the metrics of certificates; without certificates the expiry has no point."""
    help_text = "Certificates whose last ACME request failed."
    failing = gauge_family(
        "merganser_certificates_failing",
        help_text,
        database_metrics.failing_certificates,
        ProcessAggregation.SAME,
    )
    name = "merganser_certificate_expires_seconds"
    help_text = "Time until the first stored certificate expires; negative if it has expired."
    points = (
        []
        if database_metrics.certificate_expires_in is None
        else [MetricPoint((), database_metrics.certificate_expires_in)]
    )
    return [
        failing,
        MetricFamily(
            name, MetricKind.GAUGE, help_text, (), points, aggregation=ProcessAggregation.SAME
        ),
    ]


def _family_by_state(name: str, help: str, count_by_state: Mapping[str, int]) -> MetricFamily:
    points = [MetricPoint((state,), count) for state, count in sorted(count_by_state.items())]
    return MetricFamily(
        name, MetricKind.GAUGE, help, ("state",), points, aggregation=ProcessAggregation.SAME
    )


class MetricsEndpoint:
    """The endpoint /metrics."""

    def __init__(
        self,
        collector: MetricsCollector,
        authenticate_request: AuthenticateRequest,
        readers: MetricsReaders,
    ) -> None:
        self.collector = collector
        self.authenticate_request = authenticate_request
        self.readers = readers

    async def serve_metrics(self, request: Request) -> Response:
        """Serve the metrics. The status is 401 or 403 without the right, 404 if turned off."""
        if self.readers.access is MetricsAccess.OFF:
            return _text_response(404, "There are no metrics here.")
        if not self._is_allowed_loopback_request(request) and not self._has_metrics_key(request):
            try:
                (
                    await self.authenticate_request(request.headers, client_ip_address(request))
                ).require(METRICS_RULE)
            except RequestError as refusal:
                return _response_of_error(refusal)
        accept = request.headers.get("accept", "")
        new = openmetrics.prefers_openmetrics(accept)
        text = openmetrics.metrics_text(await self.collector.collect_families(), is_openmetrics=new)
        headers = {
            **NO_STORE,
            "Content-Type": openmetrics.CONTENT_TYPE_BY_OPENMETRICS[new],
            "Vary": "Accept",
        }
        return Response(text.encode(), headers=headers)

    def _has_metrics_key(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = self.readers.key
        if not key or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token.strip().encode(errors="replace"), key.encode())

    def _is_allowed_loopback_request(self, request: Request) -> bool:
        if self.readers.access is not MetricsAccess.LOOPBACK or request.client is None:
            return False
        if any(name in request.headers for name in PROXY_HEADERS):
            return False  # the client is behind a proxy on this machine
        with suppress(ValueError):
            return ipaddress.ip_address(request.client.host).is_loopback
        return False


def _response_of_error(error: RequestError) -> Response:
    if isinstance(error, Unauthenticated):
        return _text_response(401, "Show a key for metrics.", {"WWW-Authenticate": "Bearer"})
    return _text_response(403, "This credential is not for metrics.")


def _text_response(
    status: int, text: str, extra_headers: Mapping[str, str] | None = None
) -> Response:
    headers = {**NO_STORE, **(extra_headers or {}), "Content-Type": "text/plain; charset=utf-8"}
    return Response(f"{text}\n".encode(), status, headers)
