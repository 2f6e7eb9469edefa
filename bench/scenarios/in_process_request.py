"""`python -m bench.scenarios.in_process_request API_KEY MAILBOX_ID`: time a request in process.

The real endpoint runs in this process over the database of the settings, without sockets, by
ASGI messages. The last line printed is JSON with median microseconds.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from bench.load.documents import PAGE
from graph.http.admission_control import Guards
from graph.http.graphql_endpoint import Endpoint, Settings
from graph.http.rate_budgets import Budgets, Rates
from graph.schema import schema
from merganser.server.environment_factory import opened
from merganser.settings.settings import read
from models.runtime.environment import World
from resolvers.auth import authentication
from resolvers.context import Needs, Viewer

WARM, COUNT = 200, 2000


@dataclass
class Watch:
    """The times of one request, as `perf_counter` values."""

    decoded: float = 0.0  # before the check of the credential
    signed: float = 0.0
    resolving: float = 0.0
    answered: float = 0.0


@dataclass(frozen=True)
class Watched(Viewer):
    """A viewer that records when the first resolver checks its rights."""

    watch: Watch = field(default_factory=Watch, compare=False)

    def require(self, needs: Needs) -> None:
        """Check the guard as the base class does. Raises Forbidden."""
        if not self.watch.resolving:
            self.watch.resolving = time.perf_counter()
        super().require(needs)


async def measured(world: World, secret: str, box: str) -> dict[str, float]:
    """Return the medians in µs."""
    watch = Watch()

    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        watch.decoded = time.perf_counter()
        viewer = await authentication.sign_in(world, headers, params, ip=ip)
        made = Watched(**{name: getattr(viewer, name) for name in viewer.__slots__}, watch=watch)
        watch.signed = time.perf_counter()
        return made

    unpaid = Settings(guards=Guards(Budgets(Rates(0, 0, 0))))  # without rate limits
    endpoint = Endpoint(schema, world, sign_in, unpaid)
    body = orjson.dumps({"query": PAGE, "variables": {"box": box}})
    credentials, before, whole = list[float](), list[float](), list[float]()
    for number in range(WARM + COUNT):
        watch.resolving = 0.0
        began = time.perf_counter()
        await asked(endpoint, body, secret)
        watch.answered = time.perf_counter()
        if number >= WARM:
            credentials.append(watch.signed - watch.decoded)
            before.append(watch.resolving - watch.signed)
            whole.append(watch.answered - began)
    return {
        "credential": statistics.median(credentials) * 1e6,
        "first resolver": statistics.median(before) * 1e6,
        "whole": statistics.median(whole) * 1e6,
    }


async def asked(endpoint: Endpoint, body: bytes, secret: str) -> None:
    """Send one request as the HTTP server does. Raises RuntimeError if it fails."""
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("status", 200) != 200:  # noqa: PLR2004
            raise RuntimeError(f"not a good answer: {message}")

    headers = {
        "host": "127.0.0.1",
        "authorization": f"Bearer {secret}",
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


async def main(secret: str, box: str) -> None:
    """Print the measurements as JSON."""
    async with opened(read()) as world:
        print(orjson.dumps(await measured(world, secret, box)).decode())  # noqa: T201 - the output


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
