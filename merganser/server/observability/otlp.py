"""Traces and metrics sent to a collector, by OTLP over HTTP, where there is one.

The packages of OpenTelemetry are an extra: nothing here needs them until a place is named.
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
EVERY = 60_000  # milliseconds between two exports of metrics
PATIENCE = 3.0  # seconds that a collector has at our end
LACKING = "it needs OpenTelemetry: pip install 'merganser[telemetry]'"


def wanted(settings: Settings, signal: str) -> bool:
    """Whether `traces` or `metrics` have a place to go to, and are not switched off."""
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    chosen = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") or "otlp"
    there = settings.otlp is not None or any(os.environ.get(name) for name in named)
    return there and not off and "otlp" in chosen.split(",")


def signals(settings: Settings) -> list[str]:
    """Which of `traces` and `metrics` are to be sent.

    Where the packages for it are not there: Trouble if our setting asks for them, but a line
    in the log if only variables do that are meant for every program of a machine.
    """
    asked = [signal for signal in ("traces", "metrics") if wanted(settings, signal)]
    if not asked:
        return []
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ModuleNotFoundError as problem:
        if settings.otlp:
            raise Trouble(f"{PREFIX}OTLP is set, but {LACKING}", code=MISUSED) from problem
        log.warning("nothing is sent to the collector: %s", LACKING)
        return []
    return asked


@asynccontextmanager
async def exporting(
    settings: Settings, world: World, worker: str | None = None
) -> AsyncGenerator[None]:
    """Send what was asked for, while the block runs; what is left at its end is sent too.

    Of several processes each sends what is its own, and `worker` is the name of this one.
    """
    asked = signals(settings)
    if not asked:
        yield
        return
    resource = described(worker)
    sender = TraceSender(settings, resource) if "traces" in asked else None
    pushing = MetricSender(settings, resource, Census(world)) if "metrics" in asked else None
    if sender is not None:
        telemetry.trace_to(Sampler(settings.trace_share, sender))
    task = asyncio.create_task(pushing.run()) if pushing else None
    try:
        yield
    finally:
        telemetry.trace_to(None)
        if task is not None and pushing is not None:
            task.cancel()
            await asyncio.wait({task})
            await pushing.close()
        if sender is not None:
            await sender.close()


def described(worker: str | None = None) -> "Resource":
    """What we say of ourselves beside all that we send."""
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
    """The address for a signal; None where the environment names it in the usual way."""
    return f"{settings.otlp.rstrip('/')}/v1/{signal}" if settings.otlp else None


class TraceSender:
    """The sink of traces: makes spans of them, and leaves these to a thread that sends."""

    def __init__(self, settings: Settings, resource: "Resource") -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=_place(settings, "traces"))
        # ours has decided before: what comes here is sent
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=sampling.ALWAYS_ON, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(NAME)

    def take(self, root: Root) -> None:
        """Hand over an operation with its parts."""
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
        whole = self._begin(root, context, trace.SpanKind.SERVER)
        inside = trace.set_span_in_context(whole, context)
        for part in root.parts:
            self._begin(part, inside, trace.SpanKind.INTERNAL).end(part.ended or root.ended)
        whole.end(root.ended)

    def _begin(self, span: Span, context: Any, kind: Any) -> Any:
        from opentelemetry.trace import StatusCode

        made = self._tracer.start_span(
            span.name, context, kind, cast("Any", span.facts), start_time=span.began
        )
        if span.failed:
            made.set_status(StatusCode.ERROR)
        return made

    async def close(self) -> None:
        """Send what is left."""
        await _ended(self._provider.shutdown, self._exporter)


class MetricSender:
    """Sends all numbers every minute."""

    def __init__(self, settings: Settings, resource: "Resource", census: Census) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._exporter: MetricExporter = OTLPMetricExporter(endpoint=_place(settings, "metrics"))
        self._resource = resource
        self._census = census
        self._every = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", EVERY) / 1000

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._send()
            except Exception:  # the next time may go well
                log.exception("metrics could not be sent")

    async def _send(self) -> None:
        data = _data(await self._census.families(), self._resource)
        await asyncio.to_thread(self._exporter.export, data)

    async def close(self) -> None:
        """Send once more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._send()
        await _ended(self._exporter.shutdown, self._exporter)


async def _ended(shut: Any, exporter: "SpanExporter | MetricExporter") -> None:
    """Close in a thread; a collector that does not answer is waited for no longer than that."""
    closing = asyncio.create_task(asyncio.to_thread(shut))
    await asyncio.wait({closing}, timeout=PATIENCE)
    if not closing.done():
        exporter.shutdown()  # ends its pauses between attempts
        await closing


def _milliseconds(name: str, usual: int) -> int:
    text = os.environ.get(name, "")
    return max(100, int(text)) if text.isascii() and text.isdigit() else usual


def _data(families: Iterable[Family], resource: "Resource") -> Any:
    """The numbers as the SDK has them."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    at = time_ns()
    metrics = [_metric(family, at) for family in families]
    scope = ScopeMetrics(InstrumentationScope(NAME), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, at: int) -> "Metric":
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        Metric,
        NumberDataPoint,
        Sum,
    )

    began, cumulative = int(started() * 1e9), AggregationTemporality.CUMULATIVE

    def named(point: Point) -> dict[str, str]:
        return dict(zip(family.labels, point.labels, strict=True))

    unit = "s" if family.name.endswith("_seconds") else "By" * family.name.endswith("_bytes")
    if family.kind is Kind.HISTOGRAM:
        unknown = cast("float", None)  # least and most: OTLP lets them be left out
        spread = [
            HistogramDataPoint(
                named(point), began, at, sum(point.counts), point.value, point.counts,
                family.bounds, unknown, unknown,
            )
            for point in family.points
        ]  # fmt: skip
        return Metric(family.name, family.help, unit, Histogram(spread, cumulative))
    points = [NumberDataPoint(named(point), began, at, point.value) for point in family.points]
    if family.kind is Kind.COUNTER:
        return Metric(family.name, family.help, unit, Sum(points, cumulative, is_monotonic=True))
    return Metric(family.name, family.help, unit, Gauge(points))
