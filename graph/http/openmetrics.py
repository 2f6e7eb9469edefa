"""Text formats of metrics: OpenMetrics 1.0 and the older format 0.0.4 of Prometheus."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from models.observability.metrics import Labels, MetricFamily, MetricKind, MetricPoint

OPENMETRICS_MEDIA_TYPE = "application/openmetrics-text"
CONTENT_TYPE_BY_OPENMETRICS = {
    True: f"{OPENMETRICS_MEDIA_TYPE}; version=1.0.0; charset=utf-8",
    False: "text/plain; version=0.0.4; charset=utf-8",
}
SUPPORTED_VERSIONS = ("", "1.0.0", "0.0.1")  # of OpenMetrics, compatible with the written text


def prefers_openmetrics(accept: str) -> bool:
    """True if an Accept header prefers OpenMetrics to the older format."""
    best_weights = {True: 0.0, False: 0.0}
    for part in accept.split(","):
        kind, *parameters = (token.strip().lower() for token in part.split(";"))
        values = dict(token.partition("=")[::2] for token in parameters)
        is_openmetrics = (
            kind == OPENMETRICS_MEDIA_TYPE and values.get("version", "") in SUPPORTED_VERSIONS
        )
        if is_openmetrics or kind in ("text/plain", "text/*", "*/*"):
            best_weights[is_openmetrics] = max(
                best_weights[is_openmetrics], _parse_weight(values.get("q", "1"))
            )
    return best_weights[True] > 0 and best_weights[True] >= best_weights[False]


def _parse_weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def metrics_text(families: Iterable[MetricFamily], *, is_openmetrics: bool) -> str:
    """Return the text of metrics in OpenMetrics or in the older format."""
    lines: list[str] = []
    for family in families:
        lines += _family_lines(family, is_openmetrics=is_openmetrics)
    if is_openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family_lines(family: MetricFamily, *, is_openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, str(family.kind)
    sample = name + {MetricKind.COUNTER: "_total", MetricKind.INFO: "_info"}.get(family.kind, "")
    if not is_openmetrics:
        name, kind = sample, "gauge" if family.kind is MetricKind.INFO else kind
    yield f"# HELP {name} {_escape_help_text(family.help)}"
    yield f"# TYPE {name} {kind}"
    for point in family.points:
        pairs = _label_text(family.labels, point.labels)
        if family.kind is MetricKind.HISTOGRAM:
            yield from _histogram_lines(family, point, pairs)
        else:
            yield f"{sample}{_in_braces(pairs)} {_format_number(point.value)}"


def _histogram_lines(family: MetricFamily, point: MetricPoint, label_text: str) -> Iterator[str]:
    name, label_prefix = family.name, f"{label_text}," if label_text else ""
    counts = list(accumulate(point.counts))
    for bound, count in zip(family.bounds, counts, strict=False):
        yield f'{name}_bucket{{{label_prefix}le="{bound}"}} {count}'
    yield f'{name}_bucket{{{label_prefix}le="+Inf"}} {counts[-1]}'
    yield f"{name}_count{_in_braces(label_text)} {counts[-1]}"
    yield f"{name}_sum{_in_braces(label_text)} {_format_number(point.value)}"


def _label_text(names: Labels, values: Labels) -> str:
    return ",".join(
        f'{name}="{_escape_label_value(value)}"' for name, value in zip(names, values, strict=True)
    )


def _in_braces(label_text: str) -> str:
    return f"{{{label_text}}}" if label_text else ""


def _escape_label_value(text: str) -> str:
    return _escape_help_text(text).replace('"', '\\"')


def _escape_help_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _format_number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
