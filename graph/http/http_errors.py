"""Error responses and request IDs of all HTTP routes."""

import ipaddress
import logging
import re
from collections.abc import Mapping
from functools import lru_cache

from starlette.requests import HTTPConnection

from graph.execution.damaged_data import damage_facts, log_damage
from graph.execution.operation_execution import facts, outage_facts
from graph.http.graphql_request import Rejected
from mail.storage.blobs.errors import Corrupt
from models.errors import LimitReached, Refused
from models.runtime.environment import World
from models.store.outages import DiskFull, unavailable

log = logging.getLogger(__name__)

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def request_id(headers: Mapping[str, str], world: World) -> str:
    """Return the request ID of the header X-Request-Id if it is valid, else a new one."""
    asked = headers.get("x-request-id", "")
    return asked if PLAIN.fullmatch(asked) else world.random(12).hex()


def client_address(request: HTTPConnection) -> str | None:
    """Return the client's normalized IP address; None if the connection has no IP address."""
    return _address(request.client.host if request.client else None)


@lru_cache(maxsize=4096)
def _address(host: str | None) -> str | None:
    try:
        return str(ipaddress.ip_address(host or ""))
    except ValueError:
        return None


def turned_away(refusal: Refused, statuses: Mapping[str, int]) -> Rejected:
    """Return the rejection for a typed error, with the status of its code or 400."""
    extensions = facts(refusal)
    code = str(extensions["code"])
    made = Rejected(statuses.get(code, 400), code, refusal.message)
    made.extensions |= extensions
    if isinstance(refusal, LimitReached):
        made.extensions |= {"limit": refusal.limit, "used": refusal.used}
    if code == "UNAUTHENTICATED":
        made.headers["WWW-Authenticate"] = "Bearer"
    if code == "RATE_LIMITED":
        made.headers["Retry-After"] = str(extensions["retryAfterSeconds"])
    return made


def broken(name: str) -> Rejected:
    """Return the rejection with status 500 for a bug. The log has the same request ID."""
    made = Rejected(500, "INTERNAL_SERVER_ERROR", "Something broke on our side.")
    made.extensions["requestId"] = name
    return made


def log_failure(problem: Exception, name: str, path: str) -> None:
    """Log the exception that ended a request, for damaged bytes without its traceback."""
    if isinstance(problem, Corrupt):
        log_damage([problem], name, path)
    else:
        log.error("a request broke", exc_info=problem, extra={"request_id": name})


def answer_to(problem: Exception, name: str) -> Rejected:
    """Return the rejection of a request that ended with an exception.

    Damaged bytes of a message or file have the code DAMAGED and the request ID of the log. The
    status is 507 if a disk is full, 503 for another temporary failure, else 500.
    """
    if isinstance(problem, Corrupt):
        message, extensions = damage_facts(name)
        made = Rejected(500, extensions["code"], message)
        made.extensions |= extensions
        return made
    failure = unavailable(problem)
    if failure is None:
        return broken(name)
    extensions = outage_facts(failure)
    headers = {"Retry-After": str(extensions["retryAfterSeconds"])}
    status = 507 if isinstance(failure, DiskFull) else 503
    made = Rejected(status, "UNAVAILABLE", failure.message, headers)
    made.extensions |= extensions
    return made


def crowded() -> Rejected:
    """Return the rejection with status 429 for too many open WebSockets and streams."""
    made = Rejected(429, "RATE_LIMITED", "Too many of your streams are open.", {"Retry-After": "5"})
    made.extensions["retryAfterSeconds"] = 5
    return made
