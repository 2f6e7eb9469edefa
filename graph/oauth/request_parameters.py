"""Parameters of OAuth requests: from the query or the form, with limits."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request

from graph.http.graphql_request import RequestRejected, is_compressed, read_body

MAX_QUERY_BYTES = 6 << 10
MAX_FORM_BYTES = 16 << 10
MAX_PARAMETER_LENGTH = 2 << 10  # characters; of page states more
MAX_PARAMETERS = 50
FORM_SECONDS = 10.0
FORM_CONTENT_TYPE = "application/x-www-form-urlencoded"


class InvalidParameters(Exception):
    """The parameters are too large, malformed, or one of them is repeated."""

    def __init__(self, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.description = description
        self.status = status


def query_parameters(
    request: Request,
    *,
    max_bytes: int = MAX_QUERY_BYTES,
    max_length: int = MAX_PARAMETER_LENGTH,
) -> dict[str, str]:
    """Return the parameters of the query. Raises InvalidParameters.

    `max_length` is that of each value, in characters.
    """
    query: bytes = request.scope["query_string"]
    if len(query) > max_bytes:
        raise InvalidParameters(f"The query has at most {max_bytes} bytes", 414)
    return require_plain_values(_parse_form_parameters(query), max_length)


def request_url(path: str, parameters: Mapping[str, str]) -> str:
    """Return the URL of a request with these parameters.

    Raises InvalidParameters if they are too large for a query.
    """
    query = urlencode(parameters)
    if len(query) > MAX_QUERY_BYTES:
        raise InvalidParameters(f"The parameters have at most {MAX_QUERY_BYTES} bytes", 413)
    return f"{path}?{query}"


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of the form in the body. Raises InvalidParameters."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != FORM_CONTENT_TYPE or is_compressed(request.headers):
        raise InvalidParameters(f"The body must be {FORM_CONTENT_TYPE}", 415)
    try:
        body = await read_body(
            request.headers, request.receive, limit=MAX_FORM_BYTES, timeout=FORM_SECONDS
        )
    except RequestRejected as rejection:
        raise InvalidParameters(rejection.message.rstrip("."), rejection.status) from rejection
    return _parse_form_parameters(body)


def require_plain_values(
    parameters: dict[str, str], max_length: int = MAX_PARAMETER_LENGTH
) -> dict[str, str]:
    """Return parameters that are printable and not too long. Raises InvalidParameters."""
    for value in parameters.values():
        if len(value) > max_length or not value.isprintable():
            raise InvalidParameters(f"A parameter has at most {max_length} printable characters")
    return parameters


def _parse_form_parameters(encoded: bytes) -> dict[str, str]:
    """Parse parameters. One without a value counts as absent (RFC 6749, section 3.1)."""
    try:
        pairs = parse_qsl(
            encoded.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=MAX_PARAMETERS,
            errors="strict",
        )
    except ValueError as problem:
        raise InvalidParameters("The parameters are malformed or too many") from problem
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise InvalidParameters("A parameter must not be repeated")
    return {name: value for name, value in parameters.items() if value}
