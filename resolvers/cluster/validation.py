"""Validation of nodes: names, tags, weights and times."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from models.cluster.nodes import MAX_WEIGHT
from models.errors import ErrorCollector, InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.routing.validation import validate_host, validate_port

MAX_TAG_LENGTH = 64  # characters
MAX_DRAIN_TIME = timedelta(days=1)
MAX_PIN_TIME = timedelta(days=3650)
MIN_PIN_TIME = timedelta(minutes=1)


def normalized_host(host: str, *path: str) -> str:
    """Return a host name or IP address as it is stored. Raises InvalidInput."""
    return validate_host(host, path=path).lower()


def is_named_node(node: str, names: Collection[str]) -> bool:
    """True if one of the names is that of the node, `host:port`, or of its host."""
    host = node.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return any(name.lower() in (node, host) for name in names)


def normalized_node_values(values: Mapping[str, Any], *prefix: str) -> dict[str, Any]:
    """Return the given values of a node in normal form.

    Raises InvalidInput, or MultipleErrors.
    """
    problems, normalized = ErrorCollector(), dict(values)
    with problems.collecting():
        if "host" in values:
            normalized["host"] = normalized_host(values["host"], *prefix, "host")
    with problems.collecting():
        if "port" in values:
            validate_port(values["port"], path=[*prefix, "port"])
    with problems.collecting():
        if values.get("tag") is not None:
            normalized["tag"] = validate_tag(values["tag"], *prefix, "tag")
    with problems.collecting():
        if "weight" in values and not 1 <= values["weight"] <= MAX_WEIGHT:
            raise InvalidInput(
                f"Must be from 1 to {MAX_WEIGHT:,}.",
                constraint=ValidationConstraint.RANGE,
                path=[*prefix, "weight"],
            )
    with problems.collecting():
        if "drain_time" in values and not timedelta() <= values["drain_time"] <= MAX_DRAIN_TIME:
            raise InvalidInput(
                "Must be from PT0S to P1D.",
                constraint=ValidationConstraint.RANGE,
                path=[*prefix, "drainTime"],
            )
    problems.raise_collected()
    return normalized


def validate_tag(tag: str, *path: str) -> str | None:
    """Return a tag without surrounding spaces; None if it is empty. Raises InvalidInput."""
    tag = tag.strip()
    if len(tag) > MAX_TAG_LENGTH or not tag.isprintable():
        raise InvalidInput(
            f"Must have at most {MAX_TAG_LENGTH} printable characters.",
            constraint=ValidationConstraint.LENGTH,
            path=path,
        )
    return tag or None


def validate_pin_time(duration: timedelta | None) -> timedelta | None:
    """Return the duration of a pin. Raises InvalidInput if it is out of range."""
    if duration is not None and not MIN_PIN_TIME <= duration <= MAX_PIN_TIME:
        raise InvalidInput(
            "Must be from PT1M to P3650D.",
            constraint=ValidationConstraint.RANGE,
            path=["duration"],
        )
    return duration
