"""Reading of SCIM requests: body, query parameters and preconditions, within limits."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scim2_models import (
    InvalidFilterException,
    InvalidSyntaxException,
    InvalidValueException,
    Resource,
    ResponseParameters,
)
from starlette.requests import Request

from graph.http.graphql_request import (
    RequestRejected,
    decode_json_within_depth_limit,
    is_compressed,
    read_body,
)
from resolvers.scim.account_update import accept_any_version
from resolvers.scim.filters import MAX_FILTER_BYTES
from resolvers.scim.search_parameters import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    MAX_START_INDEX,
    ScimSearch,
)

MAX_BODY_BYTES = 1 << 20
MAX_QUERY_BYTES = 32 << 10
MAX_PARAMETER_BYTES = 8 << 10
BODY_SECONDS = 30.0
MEDIA_TYPES = ("application/scim+json", "application/json")
ANY_VERSION = "*"
SORT_ORDERS = ("ascending", "descending")
PARAMETERS = (
    "filter", "sortBy", "sortOrder", "startIndex", "count", "attributes", "excludedAttributes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScimQuery:
    """The parameters of a query: which resources, and which of their attributes."""

    search: ScimSearch
    attributes: str | None = None
    excluded_attributes: str | None = None


async def read_json_object(request: Request) -> dict[str, Any]:
    """Read the body of a request, an object of JSON.

    Raises RequestRejected for a body that is too large, too slow, compressed or of another type,
    and InvalidSyntaxException for one that is no object.
    """
    media_type = request.headers.get("content-type", MEDIA_TYPES[0]).partition(";")[0]
    if media_type.strip().lower() not in MEDIA_TYPES or is_compressed(request.headers):
        text = f"The body must be {MEDIA_TYPES[0]} without compression."
        raise RequestRejected(415, "BAD_USER_INPUT", text, {"Connection": "close"})
    body = await read_body(
        request.headers, request.receive, limit=MAX_BODY_BYTES, timeout=BODY_SECONDS
    )
    try:
        value = decode_json_within_depth_limit(body)
    except json.JSONDecodeError as problem:
        raise InvalidSyntaxException(detail=f"The body is not JSON: {problem.msg}.") from None
    if not isinstance(value, dict):
        raise InvalidSyntaxException(detail="The body must be an object.")
    return value


def member_of_object(value: Mapping[str, Any], name: str) -> Any:
    """Return a member of a JSON object, by its name in any case (RFC 7643, section 2.1)."""
    folded_name = name.lower()
    return next((item for key, item in value.items() if key.lower() == folded_name), None)


def parse_query_from_url(request: Request) -> ScimQuery:
    """Return the query of a GET request. Raises SCIMException for a wrong parameter."""
    if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
        raise RequestRejected(
            414, "BAD_USER_INPUT", f"A query string has at most {MAX_QUERY_BYTES} bytes."
        )
    return parse_query_from_members(request.query_params)


def query_from_body(body: Mapping[str, Any]) -> ScimQuery:
    """Return the query of a SearchRequest. Raises SCIMException for a wrong parameter."""
    return parse_query_from_members({name: member_of_object(body, name) for name in PARAMETERS})


def parse_query_from_members(members: Mapping[str, Any]) -> ScimQuery:
    """Return the query with these parameters, of a URL or of a SearchRequest.

    Raises SCIMException for a wrong parameter.
    """
    sort_order = (_parse_text_parameter(members, "sortOrder") or SORT_ORDERS[0]).lower()
    if sort_order not in SORT_ORDERS:
        raise InvalidValueException(detail="sortOrder must be ascending or descending.")
    count = _parse_integer_parameter(members, "count", DEFAULT_PAGE_SIZE)
    filter_text = _parse_text_parameter(members, "filter")
    if filter_text is not None and not filter_text.strip():
        raise InvalidFilterException(detail="The filter is empty.")
    search = ScimSearch(
        filter_text,
        _parse_text_parameter(members, "sortBy"),
        sort_order == SORT_ORDERS[1],
        min(max(1, _parse_integer_parameter(members, "startIndex", 1)), MAX_START_INDEX),
        min(max(0, count), MAX_PAGE_SIZE),
    )
    return ScimQuery(search, _names(members, "attributes"), _names(members, "excludedAttributes"))


def _parse_text_parameter(members: Mapping[str, Any], name: str) -> str | None:
    """Return a text parameter. Raises InvalidValueException if it is too long or no text."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidValueException(detail=f"{name} must be a text.")
    if len(value.encode(errors="surrogatepass")) > MAX_FILTER_BYTES:
        if name == "filter":
            raise InvalidFilterException(detail=f"A filter has at most {MAX_FILTER_BYTES} bytes.")
        raise InvalidValueException(detail=f"{name} has at most {MAX_PARAMETER_BYTES} bytes.")
    return value


def _parse_integer_parameter(members: Mapping[str, Any], name: str, default: int) -> int:
    value = members.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str) and len(value) <= len(str(MAX_START_INDEX)):
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdigit():
            return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidValueException(detail=f"{name} must be an integer.")


def _names(members: Mapping[str, Any], name: str) -> str | None:
    """Return a list of attribute names as one text, separated by commas."""
    value = members.get(name)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    return _parse_text_parameter({name: value}, name)


def response_parameters(model: type[Resource[Any]], query: ScimQuery) -> ResponseParameters[Any]:
    """Return which attributes of a resource type a response has.

    Raises ValidationError for malformed names, or if both lists are given.
    """
    names = {"attributes": query.attributes, "excludedAttributes": query.excluded_attributes}
    parameters: Any = ResponseParameters.__class_getitem__(model)
    given = {name: text for name, text in names.items() if text}
    result: ResponseParameters[Any] = parameters.model_validate(given)
    return result


def if_match_version_check(request: Request) -> Callable[[str], bool]:
    """Return the check of the header If-Match: True for a version that the request is meant for."""
    header = request.headers.get("if-match")
    if header is None or header.strip() == ANY_VERSION:
        return accept_any_version
    versions = versions_of_header(header)
    return lambda version: version in versions


def versions_of_header(header: str) -> frozenset[str]:
    """Return the entity tags of a header, without W/ and quotes: they are compared weakly."""
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in header.split(","))
    return frozenset(tags)


def is_version_known(request: Request, version: str) -> bool:
    """True if the client has this version already (If-None-Match)."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == ANY_VERSION or version in versions_of_header(header)
