"""Exporters of traces and metrics, by OTLP over HTTP. They need the packages of OpenTelemetry."""

import asyncio
import logging
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from time import time_ns
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import StatusCode

from graph.execution.telemetry import OperationSpan
from graph.http.metrics import MetricsCollector, installed_version
from merganser.settings.settings import Settings
from models.observability.metrics import MetricFamily, MetricKind, MetricPoint
from models.observability.process_stats import process_start_time
from models.observability.traces import Span

log = logging.getLogger(__name__)

SERVICE_NAME = "merganser"
METRIC_INTERVAL = 60_000  # milliseconds
CLOSE_TIMEOUT = 3.0  # seconds for the last export


def service_resource(process_name: str | None = None) -> Resource:
    """The resource attributes of this process: version, instance, service and process name."""
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
    return f"{settings.otlp_endpoint.rstrip('/')}/v1/{signal}" if settings.otlp_endpoint else None


class TraceExporter:
    """Converts traces to spans of the SDK, which a thread sends."""

    def __init__(self, settings: Settings, resource: Resource) -> None:
        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=_endpoint_url(settings, "traces"))
        # the sampler of graph/execution/telemetry.py has decided before
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=sampling.ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE_NAME)

    def add_trace(self, span: OperationSpan) -> None:
        """Queue the spans of an operation for export."""
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

    def __init__(self, settings: Settings, resource: Resource, collector: MetricsCollector) -> None:
        self._exporter: MetricExporter = OTLPMetricExporter(
            endpoint=_endpoint_url(settings, "metrics")
        )
        self._resource = resource
        self._collector = collector
        self._interval = (
            _milliseconds_from_variable("OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL) / 1000
        )

    async def export_metrics_until_cancelled(self) -> None:
        """Export until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._send()
            except Exception:  # the next export may succeed
                log.exception("Could not send metrics")

    async def _send(self) -> None:
        data = _sdk_metrics_data(await self._collector.collect_families(), self._resource)
        await asyncio.to_thread(self._exporter.export, data)

    async def close(self) -> None:
        """Export once more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send()
        await _shut_down_exporter(self._exporter.shutdown, self._exporter)


async def _shut_down_exporter(shutdown: Any, exporter: SpanExporter | MetricExporter) -> None:
    """Run an SDK shutdown in a thread, and abort it after CLOSE_TIMEOUT."""
    closing_task = asyncio.create_task(asyncio.to_thread(shutdown))
    await asyncio.wait({closing_task}, timeout=CLOSE_TIMEOUT)
    if not closing_task.done():
        exporter.shutdown()  # ends its waits between attempts
        await closing_task


def _milliseconds_from_variable(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return max(100, int(text)) if text.isascii() and text.isdigit() else default


def _sdk_metrics_data(families: Iterable[MetricFamily], resource: Resource) -> Any:
    """Convert metric families to the SDK's data."""
    collected_at = time_ns()
    metrics = [_sdk_metric(family, collected_at) for family in families]
    scope = ScopeMetrics(InstrumentationScope(SERVICE_NAME), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _sdk_metric(family: MetricFamily, collected_at: int) -> Metric:

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
