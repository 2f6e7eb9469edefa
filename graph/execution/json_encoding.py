"""JSON encoding of large responses in steps that let other threads run."""

import asyncio
from collections.abc import Iterator
from typing import Any

from graph.execution.response_size import (
    MAX_ESCAPED_BYTES_PER_CHARACTER,
    ResponseBudget,
    ResponseTooLarge,
)
from graph.http.graphql_request import encode_json

THREAD_ENCODING_BYTES = 256 * 1024  # bytes; larger responses are encoded in a thread
MAX_TEXT_PER_STEP = 128 * 1024  # characters
MAX_ITEMS_PER_STEP = 16  # of a list


async def encode_response_or_size_error(
    payload: dict[str, Any], budget: ResponseBudget | None
) -> bytes:
    """Return the JSON of a response, or of an error if the response exceeds its limit.

    `budget` has counted the response, but not the escapes of its characters.
    """
    try:
        return await encode_response(payload, budget)
    except ResponseTooLarge as refusal:
        error = {"message": str(refusal), "extensions": refusal.extensions}
        return encode_json({"data": None, "errors": [error]})


async def encode_response(payload: dict[str, Any], budget: ResponseBudget | None) -> bytes:
    """Return the JSON of a response. Raises ResponseTooLarge if it exceeds its limit."""
    if budget is None or not needs_stepwise_encoding(budget):
        return encode_json(payload)
    body = await asyncio.to_thread(encode_in_steps, payload)
    if len(body) > budget.limit:
        raise ResponseTooLarge(budget.limit)
    return body


def needs_stepwise_encoding(budget: ResponseBudget) -> bool:
    """True if a response can exceed its limit or takes long to encode."""
    return (
        budget.used_bytes > THREAD_ENCODING_BYTES
        or budget.used_bytes * MAX_ESCAPED_BYTES_PER_CHARACTER > budget.limit
    )


def encode_in_steps(data: Any) -> bytes:
    """Encode data as JSON in UTF-8, with the result of `encode_json`. Run it in a thread.

    orjson holds the interpreter lock: one call for a large response would stop the event loop.
    """
    return b"".join(_encode_value_in_steps(data))


def _encode_value_in_steps(value: Any) -> Iterator[bytes]:
    if type(value) is str and len(value) > MAX_TEXT_PER_STEP:
        yield b'"'
        for start in range(0, len(value), MAX_TEXT_PER_STEP):
            yield encode_json(value[start : start + MAX_TEXT_PER_STEP])[1:-1]
        yield b'"'
    elif type(value) is dict and value:
        separator = b"{"
        for name, inner in value.items():
            yield separator + encode_json(name) + b":"
            yield from _encode_value_in_steps(inner)
            separator = b","
        yield b"}"
    elif type(value) is list and value:
        yield from _encode_list_in_steps(value)
    else:
        yield encode_json(value)


def _encode_list_in_steps(items: list[Any]) -> Iterator[bytes]:
    separator = b"["
    for start in range(0, len(items), MAX_ITEMS_PER_STEP):
        chunk = items[start : start + MAX_ITEMS_PER_STEP]
        if any(_is_large(item) for item in chunk):
            for item in chunk:
                yield separator
                yield from _encode_value_in_steps(item)
                separator = b","
        else:
            yield separator + encode_json(chunk)[1:-1]
            separator = b","
    yield b"]"


def _is_large(value: Any) -> bool:
    """True if the value contains a long text or many values."""
    unvisited, member_count = [value], 0
    while unvisited:
        inner = unvisited.pop()
        if type(inner) is str:
            if len(inner) > MAX_TEXT_PER_STEP // MAX_ITEMS_PER_STEP:
                return True
        elif type(inner) is dict:
            unvisited += inner.values()
            member_count += len(inner)
        elif type(inner) is list:
            unvisited += inner
            member_count += len(inner)
        if member_count > MAX_TEXT_PER_STEP // (MAX_ITEMS_PER_STEP * MAX_ITEMS_PER_STEP):
            return True
    return False
