"""Text formats of metrics: OpenMetrics 1.0 and the older format 0.0.4 of Prometheus."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from models.observability.metrics import Family, Kind, Labels, Point

OPENMETRICS = "application/openmetrics-text"
TYPES = {
    True: f"{OPENMETRICS}; version=1.0.0; charset=utf-8",
    False: "text/plain; version=0.0.4; charset=utf-8",
}
VERSIONS = ("", "1.0.0", "0.0.1")  # of OpenMetrics, compatible with the written text


def preferred(accept: str) -> bool:
    """True if an Accept header prefers OpenMetrics to the older format."""
    best = {True: 0.0, False: 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        given = dict(word.partition("=")[::2] for word in parameters)
        new = kind == OPENMETRICS and given.get("version", "") in VERSIONS
        if new or kind in ("text/plain", "text/*", "*/*"):
            best[new] = max(best[new], _weight(given.get("q", "1")))
    return best[True] > 0 and best[True] >= best[False]


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def written(families: Iterable[Family], *, openmetrics: bool) -> str:
    """Return the text of metrics in OpenMetrics or in the older format."""
    lines: list[str] = []
    for family in families:
        lines += _family(family, openmetrics=openmetrics)
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family(family: Family, *, openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, str(family.kind)
    sample = name + {Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(family.kind, "")
    if not openmetrics:
        name, kind = sample, "gauge" if family.kind is Kind.INFO else kind
    yield f"# HELP {name} {_escaped(family.help)}"
    yield f"# TYPE {name} {kind}"
    for point in family.points:
        pairs = _pairs(family.labels, point.labels)
        if family.kind is Kind.HISTOGRAM:
            yield from _histogram(family, point, pairs)
        else:
            yield f"{sample}{_braced(pairs)} {_number(point.value)}"


def _histogram(family: Family, point: Point, pairs: str) -> Iterator[str]:
    name, begun = family.name, f"{pairs}," if pairs else ""
    counts = list(accumulate(point.counts))
    for bound, count in zip(family.bounds, counts, strict=False):
        yield f'{name}_bucket{{{begun}le="{bound}"}} {count}'
    yield f'{name}_bucket{{{begun}le="+Inf"}} {counts[-1]}'
    yield f"{name}_count{_braced(pairs)} {counts[-1]}"
    yield f"{name}_sum{_braced(pairs)} {_number(point.value)}"


def _pairs(names: Labels, values: Labels) -> str:
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in zip(names, values, strict=True))


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
