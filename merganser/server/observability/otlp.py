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
from graph.execution.telemetry import OperationSpan, TraceSampler
from graph.http.metrics import MetricsCollector, installed_version
from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import PREFIX, Settings
from models.observability.metrics import MetricFamily, MetricKind, MetricPoint
from models.observability.process_stats import process_start_time
from models.observability.traces import Span
from models.runtime.environment import Environment

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

SERVICE_NAME = "merganser"
METRIC_INTERVAL = 60_000  # milliseconds
CLOSE_TIMEOUT = 3.0  # seconds for the last export
MISSING_PACKAGE = "it needs OpenTelemetry: pip install 'merganser[telemetry]'"


def is_export_enabled(settings: Settings, signal: str) -> bool:
    """True if a signal, `traces` or `metrics`, has an endpoint and is not switched off."""
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") or "otlp"
    has_endpoint = settings.otlp is not None or any(os.environ.get(name) for name in variables)
    return has_endpoint and not is_disabled and "otlp" in exporters.split(",")


def enabled_signals(settings: Settings) -> list[str]:
    """Return which of `traces` and `metrics` are exported.

    If the packages are missing, raises CommandError if the setting MERGANSER_OTLP asks for them.
    If only OTEL_ variables do, which apply to all programs of a machine, logs a warning.
    """
    enabled = [signal for signal in ("traces", "metrics") if is_export_enabled(settings, signal)]
    if not enabled:
        return []
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError as problem:
        if settings.otlp:
            raise CommandError(
                f"{PREFIX}OTLP is set, but {MISSING_PACKAGE}", exit_code=EXIT_USAGE
            ) from problem
        log.warning("nothing is sent to the collector: %s", MISSING_PACKAGE)
        return []
    return enabled


@asynccontextmanager
async def export_telemetry(
    settings: Settings, environment: Environment, process_name: str | None = None
) -> AsyncGenerator[None]:
    """Export the enabled signals while the block runs, with a last export at its end.

    Each of several processes exports its own; `process_name` is the name of this one.
    """
    enabled = enabled_signals(settings)
    if not enabled:
        yield
        return
    resource = service_resource(process_name)
    trace_exporter = TraceExporter(settings, resource) if "traces" in enabled else None
    metrics_exporter = (
        MetricsExporter(settings, resource, MetricsCollector(environment))
        if "metrics" in enabled
        else None
    )
    if trace_exporter is not None:
        telemetry.set_trace_sampler(TraceSampler(settings.trace_share, trace_exporter))
    task = asyncio.create_task(metrics_exporter.run()) if metrics_exporter else None
    try:
        yield
    finally:
        telemetry.set_trace_sampler(None)
        if task is not None and metrics_exporter is not None:
            task.cancel()
            await asyncio.wait({task})
            await metrics_exporter.close()
        if trace_exporter is not None:
            await trace_exporter.close()


def service_resource(process_name: str | None = None) -> "Resource":
    """The resource attributes of this process: version, instance, service and process name."""
    from opentelemetry.sdk.resources import Resource

    attributes: dict[str, Any] = {
        "service.version": installed_version(SERVICE_NAME),
        "service.instance.id": str(uuid.uuid4()),
    }
    if process_name:
        attributes["merganser.worker"] = process_name
    attributes_variable = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in attributes_variable:
        attributes["service.name"] = SERVICE_NAME
    return Resource.create(attributes)


def _endpoint_url(settings: Settings, signal: str) -> str | None:
    """The URL for a signal; None if the SDK reads it from its own variables."""
    return f"{settings.otlp.rstrip('/')}/v1/{signal}" if settings.otlp else None


class TraceExporter:
    """Converts traces to spans of the SDK, which a thread sends."""

    def __init__(self, settings: Settings, resource: "Resource") -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=_endpoint_url(settings, "traces"))
        # the sampler of graph/execution/telemetry.py has decided before
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=sampling.ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE_NAME)

    def add_trace(self, span: OperationSpan) -> None:
        """Queue the spans of an operation for export."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        context = Context()
        if span.parent_id:
            parent = trace.SpanContext(
                int(span.trace_id, 16),
                int(span.parent_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
        operation_span = self._start_span(span, context, trace.SpanKind.SERVER)
        inside = trace.set_span_in_context(operation_span, context)
        for part in span.children:
            self._start_span(part, inside, trace.SpanKind.INTERNAL).end(
                part.ended_at or span.ended_at
            )
        operation_span.end(span.ended_at)

    def _start_span(self, span: Span, context: Any, kind: Any) -> Any:
        from opentelemetry.trace import StatusCode

        sdk_span = self._tracer.start_span(
            span.name, context, kind, cast("Any", span.attributes), start_time=span.began_at
        )
        if span.failed:
            sdk_span.set_status(StatusCode.ERROR)
        return sdk_span

    async def close(self) -> None:
        """Send the queued spans."""
        await _shut_down_exporter(self._provider.shutdown, self._exporter)


class MetricsExporter:
    """Exports all metrics at an interval."""

    def __init__(
        self, settings: Settings, resource: "Resource", collector: MetricsCollector
    ) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._exporter: MetricExporter = OTLPMetricExporter(
            endpoint=_endpoint_url(settings, "metrics")
        )
        self._resource = resource
        self._collector = collector
        self._interval = (
            _milliseconds_from_variable("OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL) / 1000
        )

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._send()
            except Exception:  # the next export may succeed
                log.exception("metrics could not be sent")

    async def _send(self) -> None:
        data = _sdk_metrics_data(await self._collector.collect_families(), self._resource)
        await asyncio.to_thread(self._exporter.export, data)

    async def close(self) -> None:
        """Export once more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send()
        await _shut_down_exporter(self._exporter.shutdown, self._exporter)


async def _shut_down_exporter(shutdown: Any, exporter: "SpanExporter | MetricExporter") -> None:
    """Run an SDK shutdown in a thread, and abort it after CLOSE_TIMEOUT."""
    closing_task = asyncio.create_task(asyncio.to_thread(shutdown))
    await asyncio.wait({closing_task}, timeout=CLOSE_TIMEOUT)
    if not closing_task.done():
        exporter.shutdown()  # ends its waits between attempts
        await closing_task


def _milliseconds_from_variable(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return max(100, int(text)) if text.isascii() and text.isdigit() else default


def _sdk_metrics_data(families: Iterable[MetricFamily], resource: "Resource") -> Any:
    """Convert metric families to the SDK's data."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    collected_at = time_ns()
    metrics = [_sdk_metric(family, collected_at) for family in families]
    scope = ScopeMetrics(InstrumentationScope(SERVICE_NAME), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _sdk_metric(family: MetricFamily, collected_at: int) -> "Metric":
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        Metric,
        NumberDataPoint,
        Sum,
    )

    started_at, cumulative = int(process_start_time() * 1e9), AggregationTemporality.CUMULATIVE

    def attributes(point: MetricPoint) -> dict[str, str]:
        return dict(zip(family.labels, point.labels, strict=True))

    unit = "s" if family.name.endswith("_seconds") else "By" * family.name.endswith("_bytes")
    if family.kind is MetricKind.HISTOGRAM:
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
    if family.kind is MetricKind.COUNTER:
        return Metric(family.name, family.help, unit, Sum(points, cumulative, is_monotonic=True))
    return Metric(family.name, family.help, unit, Gauge(points))
