"""Meters of the object stores: operations with their duration, and bytes."""

from models.observability import metrics

OBJECT_SECONDS = metrics.histogram(
    "merganser_object_seconds",
    "Duration of operations on object stores: read, write, delete, stat, list.",
    "operation",
)
OBJECT_BYTES = metrics.counter(
    "merganser_object_bytes",
    "Bytes that were read from object stores and written to them.",
    "operation",
)
