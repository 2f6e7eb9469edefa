"""JSON encoding of large responses in steps that let other threads run."""

import asyncio
from collections.abc import Iterator
from typing import Any

from graph.execution.response_size import ESCAPED, AnswerBudget, AnswerTooLarge
from graph.http.graphql_request import encode

LARGE = 256 * 1024  # bytes; larger responses are encoded in a thread
TEXT = 128 * 1024  # characters
ITEMS = 16  # of a list


async def encode_answer(payload: dict[str, Any], budget: AnswerBudget | None) -> bytes:
    """Return the JSON of a response, or of an error if the response exceeds its limit.

    `budget` has counted the response, but not the escapes of its characters.
    """
    if budget is None or not needs_steps(budget):
        return encode(payload)
    body = await asyncio.to_thread(encode_in_steps, payload)
    if len(body) <= budget.limit:
        return body
    refusal = AnswerTooLarge(budget.limit)
    error = {"message": str(refusal), "extensions": refusal.extensions}
    return encode({"data": None, "errors": [error]})


def needs_steps(budget: AnswerBudget) -> bool:
    """True if a response can exceed its limit or takes long to encode."""
    return budget.used > LARGE or budget.used * ESCAPED > budget.limit


def encode_in_steps(data: Any) -> bytes:
    """Encode data as JSON in UTF-8, with the result of `encode_json`. Run it in a thread.

    orjson holds the interpreter lock: one call for a large response would stop the event loop.
    """
    return b"".join(_steps(data))


def _steps(value: Any) -> Iterator[bytes]:
    if type(value) is str and len(value) > TEXT:
        yield b'"'
        for at in range(0, len(value), TEXT):
            yield encode(value[at : at + TEXT])[1:-1]
        yield b'"'
    elif type(value) is dict and value:
        before = b"{"
        for name, inner in value.items():
            yield before + encode(name) + b":"
            yield from _steps(inner)
            before = b","
        yield b"}"
    elif type(value) is list and value:
        yield from _list(value)
    else:
        yield encode(value)


def _list(items: list[Any]) -> Iterator[bytes]:
    before = b"["
    for start in range(0, len(items), ITEMS):
        some = items[start : start + ITEMS]
        if any(_is_large(item) for item in some):
            for item in some:
                yield before
                yield from _steps(item)
                before = b","
        else:
            yield before + encode(some)[1:-1]
            before = b","
    yield b"]"


def _is_large(value: Any) -> bool:
    """True if the value contains a long text or many values."""
    waiting, many = [value], 0
    while waiting:
        inner = waiting.pop()
        if type(inner) is str:
            if len(inner) > TEXT // ITEMS:
                return True
        elif type(inner) is dict:
            waiting += inner.values()
            many += len(inner)
        elif type(inner) is list:
            waiting += inner
            many += len(inner)
        if many > TEXT // (ITEMS * ITEMS):
            return True
    return False
