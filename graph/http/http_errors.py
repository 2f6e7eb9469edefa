"""What every road over HTTP says of requests that it does not serve, and what it calls them."""

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
    """The name of a request: the caller's own, if it is plain, else a new one."""
    asked = headers.get("x-request-id", "")
    return asked if PLAIN.fullmatch(asked) else world.random(12).hex()


def client_address(request: HTTPConnection) -> str | None:
    """Who asks, as trusted proxies say: one way of writing it; None where they say no address."""
    return _address(request.client.host if request.client else None)


@lru_cache(maxsize=4096)
def _address(host: str | None) -> str | None:
    try:
        return str(ipaddress.ip_address(host or ""))
    except ValueError:
        return None


def turned_away(refusal: Refused, statuses: Mapping[str, int]) -> Rejected:
    """The answer to one who may not, with the status of its code; 400 where it has none."""
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
    """The answer where a bug of ours kept us from one; the log has this request's name too."""
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
    """The answer to a request that an exception ended.

    Damaged bytes of a message or file are `DAMAGED`, with the request's name, which is in the log.
    The status is 507 if a disk is full, 503 if the failure passes for another reason, else 500.
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
    """The answer to one who has too many sockets and streams open."""
    made = Rejected(429, "RATE_LIMITED", "Too many of your streams are open.", {"Retry-After": "5"})
    made.extensions["retryAfterSeconds"] = 5
    return made
