"""`python -m bench.scenarios.in_process_request API_KEY MAILBOX_ID`: time a request in process.

The real endpoint runs in this process over the database of the settings, without sockets, by
ASGI messages. The last line printed is JSON with median microseconds.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from bench.load.documents import PAGE_QUERY
from graph.http.admission_control import AdmissionControl
from graph.http.graphql_endpoint import (
    AuthenticateConnection,
    EndpointSettings,
    GraphqlEndpoint,
)
from graph.http.rate_budgets import PointRates, RateBudgets
from graph.schema import schema
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import read_settings
from models.runtime.environment import Environment
from resolvers.auth import authentication
from resolvers.viewer import GuardRule, Viewer

WARM_UP_REQUESTS, MEASURED_REQUESTS = 200, 2000


@dataclass
class RequestTimes:
    """The times of one request, as `perf_counter` values."""

    decoded: float = 0.0  # before the check of the credential
    signed_in: float = 0.0
    resolver_started: float = 0.0
    responded: float = 0.0


@dataclass(frozen=True)
class TimedViewer(Viewer):
    """A viewer that records when the first resolver checks its rights."""

    times: RequestTimes = field(default_factory=RequestTimes, compare=False)

    def require(
        self, rule: GuardRule, *, path: Sequence[str] = (), index: int | None = None
    ) -> None:
        """Check the guard as the base class does. Raises Forbidden."""
        if not self.times.resolver_started:
            self.times.resolver_started = time.perf_counter()
        super().require(rule, path=path, index=index)


async def measure_in_process(
    environment: Environment, api_key: str, mailbox_id: str
) -> dict[str, float]:
    """Return the medians in µs."""
    watch = RequestTimes()

    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        watch.decoded = time.perf_counter()
        viewer = await authentication.authenticate_request(environment, headers, params, ip=ip)
        timed_viewer = TimedViewer(
            **{name: getattr(viewer, name) for name in viewer.__slots__}, times=watch
        )
        watch.signed_in = time.perf_counter()
        return timed_viewer

    endpoint = endpoint_without_rate_limits(environment, sign_in)
    body = orjson.dumps({"query": PAGE_QUERY, "variables": {"box": mailbox_id}})
    credentials, before, request_times = list[float](), list[float](), list[float]()
    for number in range(WARM_UP_REQUESTS + MEASURED_REQUESTS):
        watch.resolver_started = 0.0
        started_at = time.perf_counter()
        await send_request(endpoint, body, api_key)
        watch.responded = time.perf_counter()
        if number >= WARM_UP_REQUESTS:
            credentials.append(watch.signed_in - watch.decoded)
            before.append(watch.resolver_started - watch.signed_in)
            request_times.append(watch.responded - started_at)
    return {
        "credential": statistics.median(credentials) * 1e6,
        "first resolver": statistics.median(before) * 1e6,
        "whole": statistics.median(request_times) * 1e6,
    }


def endpoint_without_rate_limits(
    environment: Environment, authenticate: AuthenticateConnection | None = None
) -> GraphqlEndpoint:
    """Return the real endpoint without rate limits, by default with the real authentication."""

    async def authenticate_request(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        return await authentication.authenticate_request(environment, headers, params, ip=ip)

    settings = EndpointSettings(guards=AdmissionControl(RateBudgets(PointRates(0, 0, 0))))
    return GraphqlEndpoint(schema, environment, authenticate or authenticate_request, settings)


async def send_request(endpoint: GraphqlEndpoint, body: bytes, api_key: str) -> bytes:
    """Send one request as the HTTP server does, and return the body of its response.

    Raises RuntimeError if its status is not 200.
    """
    response_parts = list[bytes]()
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("status", 200) != 200:  # noqa: PLR2004
            raise RuntimeError(f"unexpected response: {message}")
        response_parts.append(message.get("body", b""))

    headers = {
        "host": "127.0.0.1",
        "authorization": f"Bearer {api_key}",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/graphql",
        "raw_path": b"/graphql",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await endpoint(scope, receive, send)
    return b"".join(response_parts)


async def print_measurements(api_key: str, mailbox_id: str) -> None:
    """Print the measurements as JSON."""
    async with open_environment(read_settings()) as environment:
        print(orjson.dumps(await measure_in_process(environment, api_key, mailbox_id)).decode())  # noqa: T201 - the output


if __name__ == "__main__":
    uvloop.run(print_measurements(sys.argv[1], sys.argv[2]))
