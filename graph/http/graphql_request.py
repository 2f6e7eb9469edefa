"""Parsing of GraphQL requests with limits on size, time and nesting; JSON; content negotiation."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON = "application/json"
RESPONSE = "application/graphql-response+json"
EVENTS = "text/event-stream"

NESTING = 64  # of JSON brackets, also in variables
OPENING = b"[{"
USUAL_MAX = 200
NAME_MAX = 256
LATE = 408
DRAINED = 16 << 20  # of a refused body
DRAINING = 1.0


class Rejected(Exception):
    """A request that is answered with an error before anything is run."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.extensions: dict[str, object] = {"code": code}

    @property
    def payload(self) -> dict[str, Any]:
        """The response body in the form of a GraphQL result."""
        return {"errors": [{"message": self.message, "extensions": self.extensions}]}

    @property
    def answer(self) -> type[Response]:
        """The response class: a client that may still be sending gets a DrainingResponse."""
        hangs_up = "Connection" in self.headers and self.status != LATE
        return Farewell if hangs_up else Response


class Farewell(Response):
    """A response that reads and drops the rest of the body before the connection is closed.

    If the connection is closed while the client sends, the client may not see the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, drain the body, then end the response."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    left, more = DRAINED, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAINING):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)


@dataclass(frozen=True, slots=True)
class Question:
    """A GraphQL request: document, variables and operation name.

    If `document_text` is empty, `document_id` or `extensions` name the document by its hash.
    """

    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    extensions: dict[str, Any] | None = None
    document_id: str | None = None


def bad(message: str) -> Rejected:
    """Return the rejection with status 400 for bad input."""
    return Rejected(400, "BAD_USER_INPUT", message)


def encode(data: object) -> bytes:
    """Encode data as JSON in UTF-8. Half a surrogate pair, as in old mail, is escaped."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return json.dumps(data, separators=(",", ":")).encode()


def decode(raw: bytes | str) -> Any:
    """Decode JSON text.

    Raises json.JSONDecodeError if it is malformed or nested more than 64 levels deep.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    value = orjson.loads(data)
    if sum(data.count(bracket) for bracket in OPENING) > NESTING and _depth(value) > NESTING:
        raise json.JSONDecodeError("nested too deeply", "", 0)
    return value


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= NESTING:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth


async def read(
    headers: Mapping[str, str],
    receive: Receive,
    *,
    limit: int,
    timeout: float,  # noqa: ASYNC109 - it is answered, not raised
) -> bytes:
    """Read the JSON body of a request.

    Raises RequestRejected if it has more than `limit` bytes, needs more than `timeout` seconds or
    isn't uncompressed JSON.
    """
    _check_kind(headers)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise bad("Content-Length is not a number.")
    if len(length) > len(str(limit)) or int(length) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout):
            return await _receive(receive, limit)
    except TimeoutError:
        message = f"The body did not come within {timeout:g} seconds."
        raise Rejected(LATE, "DEADLINE_EXCEEDED", message, {"Connection": "close"}) from None


async def _receive(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise bad("The body ended early.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return bytes(body)


def _too_large(limit: int) -> Rejected:
    message = f"A body has at most {limit} bytes."
    return Rejected(413, "TOO_LARGE", message, {"Connection": "close"})


def _check_kind(headers: Mapping[str, str]) -> None:
    """Reject all but JSON: a foreign page can make a browser send forms and plain text."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    if kind.strip().lower() != JSON:
        raise _unsupported(f"The body must be {JSON}.", {"Accept-Post": JSON})
    for name, _, value in (part.partition("=") for part in parameters.lower().split(";")):
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise _unsupported("The body must be in UTF-8.", {})
    if compressed(headers):
        raise _unsupported("The body must not be compressed.", {"Accept-Encoding": "identity"})


def compressed(headers: Mapping[str, str]) -> bool:
    """True if the headers announce a compressed body."""
    return headers.get("content-encoding", "identity").strip().lower() not in ("identity", "")


def _unsupported(message: str, headers: Mapping[str, str]) -> Rejected:
    return Rejected(415, "BAD_USER_INPUT", message, {**headers, "Connection": "close"})


def of_body(raw: bytes) -> Question:
    """Parse the body of a POST. Raises RequestRejected if it is malformed."""
    try:
        found = decode(raw)
    except json.JSONDecodeError:
        raise bad("The body is not JSON in UTF-8, or nested too deeply.") from None
    if isinstance(found, list):
        raise bad("Batches are not supported: one operation in each request.")
    if not isinstance(found, dict):
        raise bad("The body must be a JSON object.")
    return question(found)


def of_parameters(parameters: Mapping[str, str]) -> Question:
    """Parse the parameters of a GET. Raises RequestRejected if they are malformed."""
    found: dict[str, Any] = dict(parameters)
    for name in ("variables", "extensions"):
        try:
            found[name] = decode(found[name]) if found.get(name) else None
        except json.JSONDecodeError:
            raise bad(f"The parameter {name} is not JSON, or nested too deeply.") from None
    return question(found)


def question(found: Mapping[str, Any]) -> Question:
    """Check the members of a request. Raises RequestRejected for a wrong type or no document."""
    for name, kind, words in (
        ("query", str, "a string"),
        ("documentId", str, "a string"),
        ("variables", dict, "an object"),
        ("operationName", str, "a string"),
        ("extensions", dict, "an object"),
    ):
        if not isinstance(found.get(name), kind | None):
            raise bad(f"{name} must be {words}, where it is given.")
    if not found.get("query") and not names_document(found):
        raise bad("query is missing.")
    operation = found.get("operationName") or None
    if operation and len(operation) > NAME_MAX:
        raise bad(f"operationName has at most {NAME_MAX} characters.")
    return Question(
        found.get("query") or "",
        found.get("variables"),
        operation,
        found.get("extensions"),
        found.get("documentId") or None,
    )


def names_document(found: Mapping[str, Any]) -> bool:
    """True if a request names its document by ID or hash, even a wrong one."""
    extensions = found.get("extensions") or {}
    return bool(found.get("documentId")) or extensions.get("persistedQuery") is not None


def media(accept: str | None) -> str:
    """Return the media type of the response to an Accept header.

    JSON if it is acceptable, since urql lists text/event-stream with every query, and if no media
    type is acceptable.
    """
    return _usual(accept) if accept and len(accept) <= USUAL_MAX else _media(accept)


def _media(accept: str | None) -> str:
    ranges = dict(_ranges(accept or "*/*"))
    response, plain, events = (_quality(ranges, kind) for kind in (RESPONSE, JSON, EVENTS))
    if RESPONSE in ranges and response and response >= plain:
        return RESPONSE
    if not plain and events:
        return EVENTS
    return JSON if plain or not response else RESPONSE


_usual = lru_cache(256)(_media)  # clients send the same header each time


def named(accept: str, kind: str) -> bool:
    """True if an Accept header lists a media type by name."""
    return dict(_ranges(accept)).get(kind, 0) > 0


def _ranges(accept: str) -> Iterable[tuple[str, float]]:
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = _number(value)
        yield kind, quality


def _number(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _quality(ranges: Mapping[str, float], kind: str) -> float:
    family = kind.partition("/")[0] + "/*"
    return next((ranges[name] for name in (kind, family, "*/*") if name in ranges), 0.0)
