"""Error responses and request IDs of HTTP routes."""

import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from graph.execution.damaged_data import damage_error_body, log_damage
from graph.execution.public_errors import error_extensions, outage_extensions
from graph.execution.telemetry import HTTP_RESPONSES
from graph.http.graphql_request import RequestRejected
from mail.storage.blobs.errors import CorruptBlob
from models.errors import LimitReached, RequestError, Unauthenticated
from models.runtime.environment import Environment
from models.store.outages import DiskFull, storage_failure

log = logging.getLogger(__name__)

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
REQUEST_ID = "merganser.request_id"  # key of the ASGI scope


def request_id_from_headers(headers: Mapping[str, str], environment: Environment) -> str:
    """Return the request ID of the header X-Request-Id if it is valid, else a new one."""
    header = headers.get("x-request-id", "")
    return header if REQUEST_ID_PATTERN.fullmatch(header) else environment.random_bytes(12).hex()


def request_id_from_scope(scope: Scope, environment: Environment) -> str:
    """Return the request ID of a request, the same at each call."""
    if REQUEST_ID not in scope:
        scope[REQUEST_ID] = request_id_from_headers(Headers(scope=scope), environment)
    return str(scope[REQUEST_ID])


async def run_handler_and_convert_errors(
    request: Request,
    environment: Environment,
    handler: Callable[[Request], Awaitable[Response]],
    *,
    endpoint: str,
    error_response: Callable[[Exception], Response | None],
    rejection_response: Callable[[RequestRejected], Response],
) -> Response:
    """Return the response of a handler, or an error response, with the header X-Request-Id.

    `error_response` returns the response for an exception that the routes expect. It returns None
    for any other exception, which is logged and becomes a rejection. `endpoint` is the label of the
    routes in the metrics.
    """
    request_id = request_id_from_scope(request.scope, environment)
    try:
        response = await handler(request)
    except RequestRejected as rejection:
        response = rejection_response(rejection)
    except ClientDisconnect:
        response = Response(status_code=400)  # nobody reads it
    except Exception as problem:  # noqa: BLE001 - the edge of a listener: logged once
        expected = error_response(problem)
        if expected is None:
            log_request_failure(problem, request_id, request.url.path)
            expected = rejection_response(rejection_of_exception(problem, request_id))
        response = expected
    response.headers["X-Request-Id"] = request_id
    HTTP_RESPONSES.add(endpoint, str(response.status_code))
    return response


def client_ip_address(request: HTTPConnection) -> str | None:
    """Return the client's normalized IP address; None if the connection has no IP address."""
    return normalized_ip_address_or_none(request.client.host if request.client else None)


@lru_cache(maxsize=4096)
def normalized_ip_address_or_none(host: str | None) -> str | None:
    """Return an IP address in its usual form; None if the text is none."""
    try:
        return str(ipaddress.ip_address(host or ""))
    except ValueError:
        return None


def rejection_of_error(error: RequestError, status_by_code: Mapping[str, int]) -> RequestRejected:
    """Return the rejection for a typed error, with the status of its code or 400."""
    extensions = error_extensions(error)
    code = str(extensions["code"])
    rejection = RequestRejected(status_by_code.get(code, 400), code, error.message)
    rejection.extensions |= extensions
    if isinstance(error, LimitReached):
        rejection.extensions |= {"limit": error.limit, "used": error.used}
    if isinstance(error, Unauthenticated):
        rejection.headers["WWW-Authenticate"] = "Bearer"
    if code == "RATE_LIMITED":
        rejection.headers["Retry-After"] = str(extensions["retryAfterSeconds"])
    return rejection


def internal_error(request_id: str) -> RequestRejected:
    """Return the rejection with status 500 for a bug. The log has the same request ID."""
    rejection = RequestRejected(500, "INTERNAL_SERVER_ERROR", "Internal error.")
    rejection.extensions["requestId"] = request_id
    return rejection


def log_request_failure(exception: Exception, request_id: str, path: str) -> None:
    """Log the exception that ended a request, for damaged bytes without its traceback."""
    if isinstance(exception, CorruptBlob):
        log_damage([exception], request_id, path)
    else:
        log.error(
            "Request failed with an internal error",
            exc_info=exception,
            extra={"request_id": request_id},
        )


def rejection_of_exception(exception: Exception, request_id: str) -> RequestRejected:
    """Return the rejection of a request that ended with an exception.

    Damaged bytes of a message or file have the code DAMAGED and the request ID of the log. The
    status is 507 if a disk is full, 503 for another temporary failure, else 500.
    """
    if isinstance(exception, CorruptBlob):
        message, extensions = damage_error_body(request_id)
        rejection = RequestRejected(500, extensions["code"], message)
        rejection.extensions |= extensions
        return rejection
    failure = storage_failure(exception)
    if failure is None:
        return internal_error(request_id)
    extensions = outage_extensions(failure)
    headers = {"Retry-After": str(extensions["retryAfterSeconds"])}
    status = 507 if isinstance(failure, DiskFull) else 503
    rejection = RequestRejected(status, "UNAVAILABLE", failure.message, headers)
    rejection.extensions |= extensions
    return rejection


def too_many_streams_rejection() -> RequestRejected:
    """Return the rejection with status 429 for too many open WebSockets and streams."""
    rejection = RequestRejected(
        429, "RATE_LIMITED", "Too many event streams of the client are open.", {"Retry-After": "5"}
    )
    rejection.extensions["retryAfterSeconds"] = 5
    return rejection
