"""Export of traces and metrics to a collector, by OTLP over HTTP.

The packages of OpenTelemetry are optional: they are imported only if an endpoint is set.
"""
# ruff: noqa: PLC0415 - see above

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from time import time_ns
from typing import TYPE_CHECKING, Any, cast

from graph.execution import telemetry
from graph.execution.telemetry import Root, Sampler
from graph.http.metrics import Census, version_of
from merganser.errors import MISUSED, Trouble
from merganser.settings.settings import PREFIX, Settings
from models.observability.metrics import Family, Kind, Point
from models.observability.process_stats import started
from models.observability.traces import Span
from models.runtime.environment import World

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

NAME = "merganser"
EVERY = 60_000  # milliseconds
PATIENCE = 3.0  # seconds for the last export
LACKING = "it needs OpenTelemetry: pip install 'merganser[telemetry]'"


def wanted(settings: Settings, signal: str) -> bool:
    """True if a signal, `traces` or `metrics`, has an endpoint and is not switched off."""
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") or "otlp"
    has_endpoint = settings.otlp is not None or any(os.environ.get(name) for name in variables)
    return has_endpoint and not is_disabled and "otlp" in exporters.split(",")


def signals(settings: Settings) -> list[str]:
    """Return which of `traces` and `metrics` are exported.

    If the packages are missing, raises CommandError if the setting MERGANSER_OTLP asks for them.
    If only OTEL_ variables do, which apply to all programs of a machine, logs a warning.
    """
    enabled = [signal for signal in ("traces", "metrics") if wanted(settings, signal)]
    if not enabled:
        return []
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError as problem:
        if settings.otlp:
            raise Trouble(f"{PREFIX}OTLP is set, but {LACKING}", code=MISUSED) from problem
        log.warning("nothing is sent to the collector: %s", LACKING)
        return []
    return enabled


@asynccontextmanager
async def exporting(
    settings: Settings, environment: World, worker: str | None = None
) -> AsyncGenerator[None]:
    """Export the enabled signals while the block runs, with a last export at its end.

    Each of several processes exports its own; `process_name` is the name of this one.
    """
    enabled = signals(settings)
    if not enabled:
        yield
        return
    resource = described(worker)
    trace_exporter = TraceSender(settings, resource) if "traces" in enabled else None
    metrics_exporter = (
        MetricSender(settings, resource, Census(environment)) if "metrics" in enabled else None
    )
    if trace_exporter is not None:
        telemetry.trace_to(Sampler(settings.trace_share, trace_exporter))
    task = asyncio.create_task(metrics_exporter.run()) if metrics_exporter else None
    try:
        yield
    finally:
        telemetry.trace_to(None)
        if task is not None and metrics_exporter is not None:
            task.cancel()
            await asyncio.wait({task})
            await metrics_exporter.close()
        if trace_exporter is not None:
            await trace_exporter.close()


def described(worker: str | None = None) -> "Resource":
    """The resource attributes of this process: version, instance, service and process name."""
    from opentelemetry.sdk.resources import Resource

    ours: dict[str, Any] = {
        "service.version": version_of(NAME),
        "service.instance.id": str(uuid.uuid4()),
    }
    if worker:
        ours["merganser.worker"] = worker
    said = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in said:
        ours["service.name"] = NAME
    return Resource.create(ours)


def _place(settings: Settings, signal: str) -> str | None:
    """The URL for a signal; None if the SDK reads it from its own variables."""
    return f"{settings.otlp.rstrip('/')}/v1/{signal}" if settings.otlp else None


class TraceSender:
    """Converts traces to spans of the SDK, which a thread sends."""

    def __init__(self, settings: Settings, resource: "Resource") -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=_place(settings, "traces"))
        # the sampler of graph/execution/telemetry.py has decided before
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=sampling.ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(NAME)

    def take(self, root: Root) -> None:
        """Queue the spans of an operation for export."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context()
        if root.parent_id:
            parent = trace.SpanContext(
                int(root.trace_id, 16),
                int(root.parent_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
        operation_span = self._begin(root, context, trace.SpanKind.SERVER)
        inside = trace.set_span_in_context(operation_span, context)
        for part in root.parts:
            self._begin(part, inside, trace.SpanKind.INTERNAL).end(part.ended or root.ended)
        operation_span.end(root.ended)

    def _begin(self, span: Span, context: Any, kind: Any) -> Any:
        from opentelemetry.trace import StatusCode

        sdk_span = self._tracer.start_span(
            span.name, context, kind, cast("Any", span.facts), start_time=span.began
        )
        if span.failed:
            sdk_span.set_status(StatusCode.ERROR)
        return sdk_span

    async def close(self) -> None:
        """Send the queued spans."""
        await _ended(self._provider.shutdown, self._exporter)


class MetricSender:
    """Exports all metrics at an interval."""

    def __init__(self, settings: Settings, resource: "Resource", census: Census) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._exporter: MetricExporter = OTLPMetricExporter(endpoint=_place(settings, "metrics"))
        self._resource = resource
        self._census = census
        self._every = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", EVERY) / 1000

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._send()
            except Exception:  # the next export may succeed
                log.exception("metrics could not be sent")

    async def _send(self) -> None:
        data = _data(await self._census.families(), self._resource)
        await asyncio.to_thread(self._exporter.export, data)

    async def close(self) -> None:
        """Export once more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._send()
        await _ended(self._exporter.shutdown, self._exporter)


async def _ended(shut: Any, exporter: "SpanExporter | MetricExporter") -> None:
    """Run an SDK shutdown in a thread, and abort it after CLOSE_TIMEOUT."""
    closing_task = asyncio.create_task(asyncio.to_thread(shut))
    await asyncio.wait({closing_task}, timeout=PATIENCE)
    if not closing_task.done():
        exporter.shutdown()  # ends its waits between attempts
        await closing_task


def _milliseconds(name: str, usual: int) -> int:
    text = os.environ.get(name, "")
    return max(100, int(text)) if text.isascii() and text.isdigit() else usual


def _data(families: Iterable[Family], resource: "Resource") -> Any:
    """Convert metric families to the SDK's data."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    collected_at = time_ns()
    metrics = [_metric(family, collected_at) for family in families]
    scope = ScopeMetrics(InstrumentationScope(NAME), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, collected_at: int) -> "Metric":
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        Metric,
        NumberDataPoint,
        Sum,
    )

    started_at, cumulative = int(started() * 1e9), AggregationTemporality.CUMULATIVE

    def attributes(point: Point) -> dict[str, str]:
        return dict(zip(family.labels, point.labels, strict=True))

    unit = "s" if family.name.endswith("_seconds") else "By" * family.name.endswith("_bytes")
    if family.kind is Kind.HISTOGRAM:
        unknown = cast("float", None)  # OTLP doesn't require minimum and maximum
        data_points = [
            HistogramDataPoint(
                attributes(point), started_at, collected_at, sum(point.counts), point.value,
                point.counts, family.bounds, unknown, unknown,
            )
            for point in family.points
        ]  # fmt: skip
        return Metric(family.name, family.help, unit, Histogram(data_points, cumulative))
    points = [
        NumberDataPoint(attributes(point), started_at, collected_at, point.value)
        for point in family.points
    ]
    if family.kind is Kind.COUNTER:
        return Metric(family.name, family.help, unit, Sum(points, cumulative, is_monotonic=True))
    return Metric(family.name, family.help, unit, Gauge(points))
