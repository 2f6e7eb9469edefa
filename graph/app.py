"""The ASGI app: GraphQL, uploads and downloads, GraphiQL, metrics and health."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from graph.http import health, rest_routes
from graph.http.cors import CorsMiddleware
from graph.http.discovery import acme_challenge, autoconfig, mta_sts
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from graph.http.graphql_request import RequestRejected, encode_json
from graph.http.metrics import MetricsCollector, MetricsEndpoint, MetricsReaders, ProcessMetrics
from graph.http.pages import graphiql
from graph.http.pages.documentation import documentation_routes
from graph.http.request_log import RequestLog
from graph.http.response_headers import with_security_headers
from graph.http.upload_body import UploadLimits
from graph.oauth.routes import AUTHORIZATION_PATH, oauth_routes
from graph.schema import schema
from graph.scim.routes import scim_routes
from models.runtime import row_cache
from models.runtime.environment import Environment
from models.store.outages import RETRY_AFTER, StorageUnavailable
from resolvers.admin import trusted_documents
from resolvers.auth import authentication, credential_status
from resolvers.viewer import Viewer

DEFAULT_METRICS_READERS = MetricsReaders()


class GraphqlApp(Starlette):
    """The Starlette app, which adds security headers to every response.

    Requests to the paths in `direct_endpoints` skip routing and middleware.
    """

    def __init__(self, endpoint: GraphqlEndpoint, **starlette_options: Any) -> None:
        super().__init__(**starlette_options)
        self.endpoint = endpoint
        self.direct_endpoints: Mapping[str, ASGIApp] = {}
        self.request_log: RequestLog | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket. Clients behind a proxy are refused here if banned."""
        client = scope.get("client")
        if client and self.endpoint.environment.refuses_ip(client[0]):
            await _send_banned_client_response(scope, receive, send)
            return
        if scope["type"] == "http":
            send = with_security_headers(scope, send)
            straight = self.direct_endpoints.get(scope["path"])
            if straight and scope["method"] != "OPTIONS":  # CORS answers preflight requests
                await straight(scope, receive, send)
                return
            if self.request_log is not None:
                await self.request_log.serve_and_record_request(
                    super().__call__, scope, receive, send
                )
                return
        await super().__call__(scope, receive, send)

    def close_connections(self) -> None:
        """Close WebSockets and event streams because the server stops. Requests continue."""
        self.endpoint.connection_watch.close_all_for_shutdown()

    async def end_subscriptions(self) -> None:
        """Cancel all subscriptions and wait for them, so that the database can be closed."""
        await self.endpoint.subscription_groups.cancel_tasks()


async def _send_banned_client_response(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with status 403; for a WebSocket, to its handshake."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    rejection = RequestRejected(403, "FORBIDDEN", "Your network is banned.")
    body = encode_json(rejection.graphql_payload)
    headers = {"Cache-Control": "no-store", "Connection": "close"}
    send = with_security_headers(scope, send)
    await Response(body, 403, headers, "application/json")(scope, receive, send)


@dataclass(frozen=True, slots=True)
class RequestAuthenticator:
    """Authentication of requests in one environment. `bootstrap_key` is a key with role ROOT."""

    environment: Environment
    bootstrap_key: str | None = field(default=None, repr=False)

    async def authenticate_graphql_request(
        self, headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        """Return the viewer of a GraphQL request or of `connection_init`."""
        viewer = await authentication.authenticate_request(
            self.environment, headers, params, ip=ip, bootstrap=self.bootstrap_key
        )
        return authentication.refuse_own_password(viewer)

    async def authenticate_non_graphql_request(
        self, headers: Mapping[str, str], ip: str | None
    ) -> Viewer:
        """Return the viewer of a request to another path."""
        viewer = await authentication.authenticate_request(
            self.environment, headers, ip=ip, bootstrap=self.bootstrap_key
        )
        return authentication.refuse_operation_limited_key(viewer)

    async def has_viewer_ended(self, viewer: Viewer) -> bool:
        """True if the viewer's credential has ended or lost rights."""
        return await authentication.record_use_and_return_has_ended_or_changed(
            self.environment, viewer
        )


async def serve_graphiql(_request: Request) -> Response:
    """Serve the GraphiQL page."""
    return graphiql.page_response()


async def redirect_to_graphiql(_request: Request) -> Response:
    """Redirect to the GraphiQL page."""
    return RedirectResponse("graphql")


def _graphql_routes(endpoint: GraphqlEndpoint) -> list[BaseRoute]:
    """Return the routes of GraphQL over HTTP and WebSocket, and of the GraphiQL page."""
    return [
        Route("/", redirect_to_graphiql),
        Route("/graphql", endpoint),  # a Mount would send /graphql on to /graphql/
        WebSocketRoute("/graphql", endpoint),
        *graphiql.file_routes(),
    ]


def create_app(
    environment: Environment,
    *,
    spool_folder: Path,
    bootstrap_key: str | None = None,
    settings: EndpointSettings | None = None,
    metrics_readers: MetricsReaders = DEFAULT_METRICS_READERS,
    checks: Mapping[str, health.HealthCheck] | None = None,
    process_counts: health.ProcessCounts | None = None,
    is_compiled: bool = True,
    row_cache_size: int = row_cache.DEFAULT_MAX_BYTES,
    process_metrics: ProcessMetrics | None = None,
    upload_limits: UploadLimits | None = None,
    documentation_folder: Path | None = None,
) -> GraphqlApp:
    """Create the app over an environment, which the caller closes.

    `spool_folder` stores files that are being received. `bootstrap_key` is a key with role ROOT.
    The callbacks of `settings` are set here. `checks` are health checks besides the database.
    Without `is_compiled` operations run by plain execution. `row_cache_size` is the memory for
    completed rows of lists, in bytes. `process_metrics` joins the metrics of all processes.
    `documentation_folder` has the Markdown files of the pages below `/docs`.
    """
    schema.set_executor_and_clear_documents(is_compiled=is_compiled)
    row_cache.ROW_CACHE.set_limit_and_clear(row_cache_size)
    authenticator = RequestAuthenticator(environment, bootstrap_key)
    settings = replace(
        settings or EndpointSettings(),
        page=serve_graphiql,
        has_credential_ended=authenticator.has_viewer_ended,
        load_kick_times=partial(credential_status.load_session_end_times, environment),
        find_trusted_text=partial(trusted_documents.find_document_text, environment),
    )
    authenticate = authenticator.authenticate_graphql_request
    endpoint = GraphqlEndpoint(schema, environment, authenticate, settings)
    collector = MetricsCollector(environment, process_metrics)
    authenticate_other = authenticator.authenticate_non_graphql_request
    metrics_endpoint = MetricsEndpoint(collector, authenticate_other, metrics_readers)
    all_checks = {health.DATABASE: _database_write_check(environment), **(checks or {})}
    cors = Middleware(CorsMiddleware, settings.allowed_origins, excluded_paths=[AUTHORIZATION_PATH])
    app = GraphqlApp(
        endpoint,
        routes=[
            *_graphql_routes(endpoint),
            Route("/metrics", metrics_endpoint.serve_metrics),
            *health.health_routes(
                all_checks, process_counts, lambda: environment.components.stopped_names
            ),
            *documentation_routes(documentation_folder, endpoint.guards),
            *acme_challenge.challenge_routes(environment),
            *mta_sts.policy_routes(environment),
            *autoconfig.configuration_routes(environment, endpoint.guards),
            *oauth_routes(environment, endpoint.guards),
            *rest_routes.rest_routes(
                environment, authenticate_other, spool_folder, upload_limits, endpoint
            ),
            *scim_routes(environment, authenticate_other, endpoint.guards),
        ],
        middleware=[cors],
        exception_handlers={StorageUnavailable: _unavailable_response},
    )
    app.request_log = RequestLog(environment, app.routes)
    if not settings.allowed_origins:  # no response has a CORS header
        app.direct_endpoints = {"/graphql": endpoint}
    app.router.redirect_slashes = False  # it would redirect to any host in the request
    return app


def _database_write_check(environment: Environment) -> health.HealthCheck:
    """Return the health check that writes to the database."""

    async def is_database_writable() -> bool:
        await environment.database.check_writable()
        return True

    return health.health_check_with_cached_result(health.WRITE_CHECK_INTERVAL, is_database_writable)


def _unavailable_response(_request: Request, problem: Exception) -> Response:
    """Return a 503 response for routes that don't answer in JSON."""
    seconds = RETRY_AFTER
    if isinstance(problem, StorageUnavailable):
        seconds = problem.retry_after
    headers = {"Retry-After": str(round(seconds.total_seconds())), "Cache-Control": "no-store"}
    return PlainTextResponse("Try again later.\n", 503, headers)
