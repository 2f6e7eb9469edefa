"""Export of traces and metrics to a collector, by OTLP over HTTP.

The packages of OpenTelemetry are optional. The exporters, which need them, are in
merganser/server/observability/otlp_exporters.py.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from graph.execution import telemetry
from graph.execution.telemetry import TraceSampler
from graph.http.metrics import MetricsCollector
from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import PREFIX, Settings
from models.runtime.environment import Environment

log = logging.getLogger(__name__)

REQUIRED_PACKAGES = ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk.trace")
MISSING_PACKAGE = "OpenTelemetry is missing: pip install 'merganser[telemetry]'"


def is_export_enabled(settings: Settings, signal: str) -> bool:
    """True if a signal, `traces` or `metrics`, has an endpoint and is not switched off."""
    variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") or "otlp"
    has_endpoint = settings.otlp_endpoint is not None or any(
        os.environ.get(name) for name in variables
    )
    return has_endpoint and not is_disabled and "otlp" in exporters.split(",")


def exportable_signals_or_fail_command(settings: Settings) -> list[str]:
    """Return which of `traces` and `metrics` are exported.

    If the packages are missing, raises CommandError if MERGANSER_OTLP_ENDPOINT is set. If only
    OTEL_ variables are, which apply to all programs of a machine, logs a warning.
    """
    enabled = [signal for signal in ("traces", "metrics") if is_export_enabled(settings, signal)]
    if not enabled:
        return []
    if _has_required_packages():
        return enabled
    if settings.otlp_endpoint:
        raise CommandError(
            f"{PREFIX}OTLP_ENDPOINT is set, but {MISSING_PACKAGE}", exit_code=EXIT_USAGE
        )
    log.warning("Nothing is sent to the collector: %s", MISSING_PACKAGE)
    return []


def _has_required_packages() -> bool:
    try:
        return all(find_spec(name) for name in REQUIRED_PACKAGES)
    except ModuleNotFoundError:  # a parent package is missing
        return False


@asynccontextmanager
async def export_telemetry(
    settings: Settings, environment: Environment, process_name: str | None = None
) -> AsyncGenerator[None]:
    """Export the enabled signals while the block runs, with a last export at its end.

    Each of several processes exports its own; `process_name` is the name of this one.
    """
    enabled = exportable_signals_or_fail_command(settings)
    if not enabled:
        yield
        return
    # the packages of OpenTelemetry are optional
    from merganser.server.observability import otlp_exporters  # noqa: PLC0415

    resource = otlp_exporters.service_resource(process_name)
    trace_exporter = (
        otlp_exporters.TraceExporter(settings, resource) if "traces" in enabled else None
    )
    metrics_exporter = (
        otlp_exporters.MetricsExporter(settings, resource, MetricsCollector(environment))
        if "metrics" in enabled
        else None
    )
    if trace_exporter is not None:
        telemetry.set_trace_sampler(TraceSampler(settings.trace_sample_ratio, trace_exporter))
    task = (
        asyncio.create_task(metrics_exporter.export_metrics_until_cancelled())
        if metrics_exporter
        else None
    )
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
