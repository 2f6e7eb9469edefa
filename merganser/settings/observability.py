"""Settings of logs on stderr, metrics and traces."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class ObservabilitySettings(BaseSettings):
    """Settings of observability. Each is the variable `MERGANSER_` with the name in capitals."""

    metrics_access: Literal["key", "loopback", "off"] = Field(
        default="key",
        description="Who can read `/metrics`. key: clients with `MERGANSER_METRICS_KEY` or a "
        "credential of an ADMIN. loopback: also every client on this machine, so no proxy may "
        "forward the path. off: nobody.",
        json_schema_extra={"hint": "write key, loopback or off"},
    )
    metrics_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="A bearer key only for `/metrics`, at least 16 characters.",
        json_schema_extra={"hint": "it needs 16 characters at least"},
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@/]+(/[^\s@]*)?$",
        description="URL of the collector for traces and metrics (OTLP over HTTP), as in "
        "http://127.0.0.1:4318. Needs the extra `telemetry`. The standard `OTEL_…` variables work "
        "too.",
        json_schema_extra={
            "hint": "write http://host:port, and keys into OTEL_EXPORTER_OTLP_HEADERS"
        },
    )
    trace_sample_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Fraction of operations that are traced, 0 to 1.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="Format of the log on stderr: json or text; auto, text on a terminal and "
        "else json.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Lowest level of log lines that are written.",
    )
    log_slow_operation_threshold: Duration = Field(
        default=DEFAULT_OPTIONS.log_slow_operation_threshold,
        description="A query or mutation that takes at least this time is logged as slow, with the "
        "level WARNING. 0 s: none.",
    )
