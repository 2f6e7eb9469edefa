"""Measure the operations of object stores."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from models.metrics.object_store_meters import OBJECT_BYTES, OBJECT_SECONDS

Store = TypeVar("Store", bound=type[Any])
READ, WRITE = "read", "write"
_OPERATIONS_BY_METHOD = {
    "put": WRITE,
    "put_file": WRITE,
    "get": READ,
    "get_range": READ,
    "size": "stat",
    "find": "stat",
    "delete": "delete",
    "list_page": "list",
    "list_folders": "list",
}


def measured_object_store(store_class: Store) -> Store:
    """Measure the operations of a class of object stores: their duration and bytes.

    An operation that fails counts too, without bytes. `list` is measured by its pages if it has
    any.
    """
    for name, operation in _OPERATIONS_BY_METHOD.items():
        setattr(store_class, name, _measured_method(getattr(store_class, name), operation))
    setattr(store_class, "stream", _measured_stream(store_class.stream))  # noqa: B010 - as above
    return store_class


def _measured_method(
    method: Callable[..., Awaitable[Any]], operation: str
) -> Callable[..., Awaitable[Any]]:
    """Return the method with metrics of its seconds, and of the bytes of READ and WRITE."""

    @wraps(method)
    async def measured(self: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        started_at = perf_counter()
        try:
            result = await method(self, name, *arguments, **options)
        finally:
            OBJECT_SECONDS.observe(perf_counter() - started_at, operation)
        if operation == READ:
            OBJECT_BYTES.add(READ, amount=len(result))
        elif operation == WRITE:
            OBJECT_BYTES.add(WRITE, amount=_content_size(arguments[0]))
        return result

    return measured


def _content_size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _measured_stream(
    method: Callable[..., AsyncGenerator[bytes]],
) -> Callable[..., AsyncGenerator[bytes]]:
    @wraps(method)
    async def measured(self: Any, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        started_at = perf_counter()
        parts = method(self, name, start, end)
        try:
            async for part in parts:
                OBJECT_BYTES.add(READ, amount=len(part))
                yield part
        finally:
            await parts.aclose()
            OBJECT_SECONDS.observe(perf_counter() - started_at, READ)

    return measured
