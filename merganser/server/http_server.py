"""The HTTP server with its limits, and the check that a credential exists if it is public."""

import contextlib
import ipaddress
import math
import socket
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import uvicorn
from sqlalchemy import exists, or_, select
from sqlmodel import col
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from graph.app import GraphqlApp
from graph.http.admission_control import AdmissionControl
from graph.http.graphql_endpoint import EndpointSettings as Endpoint
from graph.http.rate_budgets import PointRates, RateBudgets
from graph.http.session_peer import ConnectedAddressRecorder
from graph.http.upload_body import UploadLimits
from merganser.errors import CommandError
from merganser.server import http_connections
from merganser.server.http_connections import ConnectionTracker
from merganser.server.process_memory import freeze_loaded_objects
from merganser.server.processes.process_shares import limit_of_process
from merganser.server.sockets import exposed_listener_names
from merganser.settings.settings import PREFIX, Settings
from models.auth.credentials import ApiKey
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from models.users.tables import User

SHUTDOWN_TIMEOUT = 20  # seconds for requests to end
TICKS_PER_SWEEP = 10  # of uvicorn, 0.1 seconds each


class HttpServer(uvicorn.Server):
    """Uvicorn's server without its signal handlers, since workers must end after it."""

    def __init__(
        self, app: GraphqlApp, config: uvicorn.Config, on_started: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._app = app
        self._on_started = on_started

    async def on_tick(self, counter: int) -> bool:
        """Close connections that are too slow, once per second."""
        if counter % TICKS_PER_SWEEP == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(
                    connection,
                    http_connections.HttpConnection | http_connections.WebSocketConnection,
                ):
                    connection.close_if_too_slow(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Set no signal handlers: `merganser/server/lifecycle.py` handles signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept requests, and call `on_started`."""
        await super().startup(sockets)
        freeze_loaded_objects()
        if self._on_started is not None:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End subscriptions, which uvicorn would wait for, then wait for other requests."""
        self._app.close_connections()
        await super().shutdown(sockets)


def create_http_server(
    app: GraphqlApp, settings: Settings, on_started: Callable[[], None] | None = None
) -> HttpServer:
    """Create the HTTP server of this app. It calls `on_started` when it accepts requests."""
    http, websocket = http_connections.bind_protocol_classes(create_connection_tracker(settings))
    is_refused = app.endpoint.environment.refuses_ip
    return HttpServer(
        app,
        uvicorn.Config(
            _with_client_addresses(app, settings.trusted_proxies),
            proxy_headers=False,  # the middleware above does it
            log_config=None,
            access_log=False,  # operations are logged by name, not by path
            server_header=False,
            # uvicorn only calls it, so a function serves as well as a class
            http=cast("Any", http_connections.gated_protocol_factory(http, is_refused)),
            ws=websocket,  # sansio: a third of the memory of a socket, with deflate off
            ws_per_message_deflate=False,
            ws_max_size=1 << 20,
            timeout_keep_alive=math.ceil(settings.http_keep_alive.total_seconds()),
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        ),
        on_started,
    )


def _with_client_addresses(app: Any, trusted_proxies: Sequence[str]) -> Any:
    """Return the app behind middleware that reads the client's address from trusted proxies."""
    # `Any`, since Uvicorn and Starlette have different types for an ASGI app
    middleware: Any = ProxyHeadersMiddleware(app, list(trusted_proxies))
    return ConnectedAddressRecorder(middleware)


def create_connection_tracker(settings: Settings) -> ConnectionTracker:
    """Create the limits and timeouts of HTTP connections from the settings."""
    return ConnectionTracker(
        ConcurrencyLimiter(settings.http_connections, settings.http_connections_per_client),
        tuple(ipaddress.ip_network(proxy) for proxy in settings.trusted_proxies),
        head_timeout=settings.http_header_timeout.total_seconds(),
        keep_alive_timeout=settings.http_keep_alive.total_seconds(),
        write_timeout=settings.http_write_timeout.total_seconds(),
    )


def graphql_endpoint_settings(settings: Settings) -> Endpoint:
    """The options of the GraphQL endpoint: timeouts, origins and limits of callers."""
    guards = AdmissionControl(
        RateBudgets(
            PointRates(
                settings.cost_budget_anonymous,
                settings.cost_budget_user,
                settings.cost_budget_admin,
            )
        ),
        ConcurrencyLimiter(
            settings.concurrent_operations, settings.concurrent_operations_per_client
        ),
        ConcurrencyLimiter(settings.http_connections, settings.subscriptions_per_user),
        settings.introspection,
        max_response_bytes=settings.response_max_size,
    )
    return Endpoint(
        receive_timeout=settings.http_body_timeout.total_seconds(),
        init_timeout=settings.websocket_init_timeout.total_seconds(),
        allowed_origins=settings.cors_origins,
        guards=guards,
        only_trusted=settings.allowed_documents == "trusted",
    )


def upload_limits_of_process(settings: Settings, process_count: int) -> UploadLimits:
    """The upload limits of one of several processes. The largest upload always fits."""
    default_limits = UploadLimits()
    budget = max(
        limit_of_process(default_limits.memory_budget, process_count), settings.upload_max_size
    )
    return replace(default_limits, memory_budget=budget, disk_reserve=settings.disk_reserve)


async def require_credential_if_reachable(environment: Environment, settings: Settings) -> None:
    """Raise CommandError if other machines can reach the server and no credential exists."""
    names = exposed_listener_names(settings)
    if not names or settings.bootstrap_key:
        return
    now = environment.now()
    is_valid_key = or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now)
    has_credential = or_(
        exists(select(col(ApiKey.id)).where(is_valid_key)),
        exists(select(col(User.id)).where(col(User.password).is_not(None), col(User.active))),
    )
    (row,) = await environment.database.read(select(has_credential.label("known")))
    if not row.known:
        raise CommandError(
            f"{PREFIX}{names[0]}_LISTEN is reachable from other machines, and no "
            "credential exists: create one with `merganser api-key create --name root "
            "--role ROOT`."
        )
