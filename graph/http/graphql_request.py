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
GRAPHQL_RESPONSE_JSON = "application/graphql-response+json"
EVENT_STREAM = "text/event-stream"

MAX_NESTING = 64  # of JSON brackets, also in variables
OPENING_BRACKETS = b"[{"
MAX_CACHED_ACCEPT_LENGTH = 200
MAX_OPERATION_NAME_LENGTH = 256
REQUEST_TIMEOUT = 408
MAX_DRAINED_BYTES = 16 << 20  # of a refused body
MAX_DRAIN_SECONDS = 1.0


class RequestRejected(Exception):
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
    def graphql_payload(self) -> dict[str, Any]:
        """The response body in the form of a GraphQL result."""
        return {"errors": [{"message": self.message, "extensions": self.extensions}]}

    @property
    def response_class(self) -> type[Response]:
        """The response class: a client that may still be sending gets a DrainingResponse."""
        hangs_up = "Connection" in self.headers and self.status != REQUEST_TIMEOUT
        return DrainingResponse if hangs_up else Response


class DrainingResponse(Response):
    """A response that reads and drops the rest of the body before the connection is closed.

    If the connection is closed while the client sends, the client may not see the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, drain the body, then end the response."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _drain_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain_body(receive: Receive) -> None:
    bytes_left, has_more = MAX_DRAINED_BYTES, True
    with suppress(TimeoutError):
        async with asyncio.timeout(MAX_DRAIN_SECONDS):
            while has_more and bytes_left > 0:
                message = await receive()
                bytes_left -= len(message.get("body", b""))
                has_more = message.get("more_body", False)


@dataclass(frozen=True, slots=True)
class GraphqlRequest:
    """A GraphQL request: document, variables and operation name.

    If `document_text` is empty, `document_id` or `extensions` name the document by its hash.
    """

    document_text: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    extensions: dict[str, Any] | None = None
    document_id: str | None = None


def bad_request(message: str) -> RequestRejected:
    """Return the rejection with status 400 for bad input."""
    return RequestRejected(400, "BAD_USER_INPUT", message)


def encode_json(data: object) -> bytes:
    """Encode data as JSON in UTF-8. Half a surrogate pair, as in old mail, is escaped."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return json.dumps(data, separators=(",", ":"), default=_decode_encoded_part).encode()


def _decode_encoded_part(part: object) -> object:
    """Decode a part that is JSON already. Raises TypeError for another object."""
    if not isinstance(part, orjson.Fragment):
        raise TypeError(type(part).__name__)
    return json.loads(orjson.dumps(part))


def decode_json_within_depth_limit(raw: bytes | str) -> Any:
    """Decode JSON text.

    Raises json.JSONDecodeError if it is malformed or nested more than 64 levels deep.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    value = orjson.loads(data)
    if (
        sum(data.count(bracket) for bracket in OPENING_BRACKETS) > MAX_NESTING
        and _nesting_depth(value) > MAX_NESTING
    ):
        raise json.JSONDecodeError("nested too deeply", "", 0)
    return value


def _nesting_depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_NESTING:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth


async def read_json_body(
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
    _require_uncompressed_json(headers)
    return await read_body(headers, receive, limit=limit, timeout=timeout)


async def read_body(
    headers: Mapping[str, str],
    receive: Receive,
    *,
    limit: int,
    timeout: float,  # noqa: ASYNC109 - it is answered, not raised
) -> bytes:
    """Read the body of a request.

    Raises RequestRejected if it has more than `limit` bytes or needs more than `timeout` seconds.
    """
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise bad_request("Content-Length is not a number.")
    if len(length) > len(str(limit)) or int(length) > limit:
        raise _body_too_large(limit)
    try:
        async with asyncio.timeout(timeout):
            return await _receive_body(receive, limit)
    except TimeoutError:
        message = f"The body did not come within {timeout:g} seconds."
        raise RequestRejected(
            REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", message, {"Connection": "close"}
        ) from None


async def _receive_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise bad_request("The body ended early.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _body_too_large(limit)
        has_more = message.get("more_body", False)
    return bytes(body)


def _body_too_large(limit: int) -> RequestRejected:
    message = f"A body has at most {limit} bytes."
    return RequestRejected(413, "TOO_LARGE", message, {"Connection": "close"})


def _require_uncompressed_json(headers: Mapping[str, str]) -> None:
    """Reject all but JSON: a foreign page can make a browser send forms and plain text."""
    kind, _, parameters = headers.get("content-type", "").partition(";")
    if kind.strip().lower() != JSON:
        raise _unsupported_media_type(f"The body must be {JSON}.", {"Accept-Post": JSON})
    for name, _, value in (part.partition("=") for part in parameters.lower().split(";")):
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise _unsupported_media_type("The body must be in UTF-8.", {})
    if is_compressed(headers):
        raise _unsupported_media_type(
            "The body must not be compressed.", {"Accept-Encoding": "identity"}
        )


def is_compressed(headers: Mapping[str, str]) -> bool:
    """True if the headers announce a compressed body."""
    return headers.get("content-encoding", "identity").strip().lower() not in ("identity", "")


def _unsupported_media_type(message: str, headers: Mapping[str, str]) -> RequestRejected:
    return RequestRejected(415, "BAD_USER_INPUT", message, {**headers, "Connection": "close"})


def parse_request_body(raw: bytes) -> GraphqlRequest:
    """Parse the body of a POST. Raises RequestRejected if it is malformed."""
    try:
        request_json = decode_json_within_depth_limit(raw)
    except json.JSONDecodeError:
        raise bad_request("The body is not JSON in UTF-8, or nested too deeply.") from None
    if isinstance(request_json, list):
        raise bad_request("Batches are not supported: one operation in each request.")
    if not isinstance(request_json, dict):
        raise bad_request("The body must be a JSON object.")
    return parse_request_members(request_json)


def parse_request_parameters(parameters: Mapping[str, str]) -> GraphqlRequest:
    """Parse the parameters of a GET. Raises RequestRejected if they are malformed."""
    request_fields: dict[str, Any] = dict(parameters)
    for name in ("variables", "extensions"):
        try:
            request_fields[name] = (
                decode_json_within_depth_limit(request_fields[name])
                if request_fields.get(name)
                else None
            )
        except json.JSONDecodeError:
            raise bad_request(f"The parameter {name} is not JSON, or nested too deeply.") from None
    return parse_request_members(request_fields)


def parse_request_members(members: Mapping[str, Any]) -> GraphqlRequest:
    """Check the members of a request. Raises RequestRejected for a wrong type or no document."""
    for name, member_type, type_text in (
        ("query", str, "a string"),
        ("documentId", str, "a string"),
        ("variables", dict, "an object"),
        ("operationName", str, "a string"),
        ("extensions", dict, "an object"),
    ):
        if not isinstance(members.get(name), member_type | None):
            raise bad_request(f"{name} must be {type_text}, where it is given.")
    if not members.get("query") and not is_document_named(members):
        raise bad_request("`query` is missing.")
    operation = members.get("operationName") or None
    if operation and len(operation) > MAX_OPERATION_NAME_LENGTH:
        raise bad_request(f"`operationName` has at most {MAX_OPERATION_NAME_LENGTH} characters.")
    return GraphqlRequest(
        members.get("query") or "",
        members.get("variables"),
        operation,
        members.get("extensions"),
        members.get("documentId") or None,
    )


def is_document_named(members: Mapping[str, Any]) -> bool:
    """True if a request names its document by ID or hash, even a wrong one."""
    extensions = members.get("extensions") or {}
    return bool(members.get("documentId")) or extensions.get("persistedQuery") is not None


def response_media_type(accept: str | None) -> str:
    """Return the media type of the response to an Accept header.

    JSON if it is acceptable, since urql lists text/event-stream with every query, and if no media
    type is acceptable.
    """
    return (
        _cached_response_media_type(accept)
        if accept and len(accept) <= MAX_CACHED_ACCEPT_LENGTH
        else _response_media_type(accept)
    )


def _response_media_type(accept: str | None) -> str:
    ranges = dict(_media_ranges_with_quality(accept or "*/*"))
    response, plain, events = (
        _quality_of_media_type(ranges, kind) for kind in (GRAPHQL_RESPONSE_JSON, JSON, EVENT_STREAM)
    )
    if GRAPHQL_RESPONSE_JSON in ranges and response and response >= plain:
        return GRAPHQL_RESPONSE_JSON
    if not plain and events:
        return EVENT_STREAM
    return JSON if plain or not response else GRAPHQL_RESPONSE_JSON


# clients send the same header each time
_cached_response_media_type = lru_cache(256)(_response_media_type)


def is_media_type_named(accept: str, media_type: str) -> bool:
    """True if an Accept header lists a media type by name."""
    return dict(_media_ranges_with_quality(accept)).get(media_type, 0) > 0


def _media_ranges_with_quality(accept: str) -> Iterable[tuple[str, float]]:
    for part in accept.split(","):
        kind, *parameters = (token.strip().lower() for token in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = _parse_quality(value)
        yield kind, quality


def _parse_quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _quality_of_media_type(quality_by_range: Mapping[str, float], media_type: str) -> float:
    family = media_type.partition("/")[0] + "/*"
    return next(
        (
            quality_by_range[name]
            for name in (media_type, family, "*/*")
            if name in quality_by_range
        ),
        0.0,
    )
