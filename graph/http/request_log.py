"""Log entries of HTTP requests to pages, downloads, links and REST routes."""

from collections.abc import Iterable
from time import perf_counter
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graph.http.http_errors import client_ip_address
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.runtime.environment import Environment

FIRST_SERVER_ERROR = 500
# GraphQL has its own entries, and probes would fill the log.
_UNLOGGED_PREFIXES = ("/graphql", "/health", "/metrics")


class RequestLog:
    """Writes an entry for each request, with the pattern of its route.

    The path itself is not logged: it can contain the secret of a link.
    """

    def __init__(self, environment: Environment, routes: Iterable[BaseRoute]) -> None:
        self._environment = environment
        self._patterns_by_endpoint = {
            id(route.endpoint): route.path for route in routes if isinstance(route, Route)
        }

    async def serve_and_record_request(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a request by the app, and write its entry after the response."""
        level = LogLevel.INFO
        if not self._environment.logs.is_recorded(LogComponent.WEB, LogLevel.ERROR) or scope[
            "path"
        ].startswith(_UNLOGGED_PREFIXES):
            await app(scope, receive, send)
            return
        status, started_at = FIRST_SERVER_ERROR, perf_counter()

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_and_note_status)
        finally:
            level = LogLevel.ERROR if status >= FIRST_SERVER_ERROR else level
            self._record_request(scope, status, perf_counter() - started_at, level)

    def _record_request(self, scope: Scope, status: int, seconds: float, level: LogLevel) -> None:
        pattern = self._patterns_by_endpoint.get(id(scope.get("endpoint")), "no route")
        fields: dict[str, Any] = {
            "method": scope["method"],
            "route": pattern,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "ip": client_ip_address(Request(scope)),
        }
        self._environment.logs.enqueue_or_drop_entry(
            NewLogEntry(
                self._environment.now(),
                LogComponent.WEB,
                level,
                __name__,
                f"{scope['method']} {pattern}: {status}",
                fields,
            )
        )
