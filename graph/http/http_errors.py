"""Error responses and request IDs of all HTTP routes."""

import ipaddress
import logging
import re
from collections.abc import Mapping
from functools import lru_cache

from starlette.requests import HTTPConnection

from graph.execution.damaged_data import damage_error_body, log_damage
from graph.execution.operation_execution import error_extensions, outage_extensions
from graph.http.graphql_request import RequestRejected
from mail.storage.blobs.errors import CorruptBlob
from models.errors import LimitReached, RequestError
from models.runtime.environment import Environment
from models.store.outages import DiskFull, storage_failure

log = logging.getLogger(__name__)

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def request_id_from_headers(headers: Mapping[str, str], environment: Environment) -> str:
    """Return the request ID of the header X-Request-Id if it is valid, else a new one."""
    header = headers.get("x-request-id", "")
    return header if REQUEST_ID_PATTERN.fullmatch(header) else environment.random_bytes(12).hex()


def client_ip_address(request: HTTPConnection) -> str | None:
    """Return the client's normalized IP address; None if the connection has no IP address."""
    return _normalized_ip_address(request.client.host if request.client else None)


@lru_cache(maxsize=4096)
def _normalized_ip_address(host: str | None) -> str | None:
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
    if code == "UNAUTHENTICATED":
        rejection.headers["WWW-Authenticate"] = "Bearer"
    if code == "RATE_LIMITED":
        rejection.headers["Retry-After"] = str(extensions["retryAfterSeconds"])
    return rejection


def internal_error(request_id: str) -> RequestRejected:
    """Return the rejection with status 500 for a bug. The log has the same request ID."""
    rejection = RequestRejected(500, "INTERNAL_SERVER_ERROR", "Something broke on our side.")
    rejection.extensions["requestId"] = request_id
    return rejection


def log_request_failure(exception: Exception, request_id: str, path: str) -> None:
    """Log the exception that ended a request, for damaged bytes without its traceback."""
    if isinstance(exception, CorruptBlob):
        log_damage([exception], request_id, path)
    else:
        log.error("a request broke", exc_info=exception, extra={"request_id": request_id})


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
        429, "RATE_LIMITED", "Too many of your streams are open.", {"Retry-After": "5"}
    )
    rejection.extensions["retryAfterSeconds"] = 5
    return rejection
