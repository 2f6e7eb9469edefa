"""The ASGI app: GraphQL, uploads and downloads, GraphiQL, metrics and health."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from graph.http import acme_challenge, graphiql, health, mta_sts, rest_routes
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from graph.http.metrics import MetricsCollector, MetricsEndpoint, MetricsReaders, ProcessMetrics
from graph.http.response_headers import with_security_headers
from graph.http.upload_body import UploadLimits
from graph.schema import schema
from models.runtime.environment import Environment
from models.store.outages import RETRY_AFTER, StorageUnavailable
from resolvers.admin import trusted_documents
from resolvers.auth import authentication, credential_status
from resolvers.context import Viewer

CORS_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "X-API-Key", "Idempotency-Key", "Range", "If-Range",
    "If-None-Match", "Content-Disposition", "Last-Event-ID", "Tus-Resumable", "Upload-Length",
    "Upload-Offset", "Upload-Metadata", "X-HTTP-Method-Override", "X-Request-Id",
)  # fmt: skip
CORS_RESPONSE_HEADERS = (
    "Retry-After", "X-Request-Id", "ETag", "Content-Disposition", "Content-Range",
    "Accept-Ranges", "Content-Length", "Location", "Repr-Digest", "Tus-Resumable", "Tus-Version",
    "Tus-Extension", "Tus-Max-Size", "Upload-Length", "Upload-Offset", "Upload-Metadata",
    "Upload-Expires",
)  # fmt: skip
DEFAULT_METRICS_READERS = MetricsReaders()


class GraphqlApp(Starlette):
    """The Starlette app, which adds security headers to every response.

    Requests to the paths in `direct_endpoints` skip routing and middleware.
    """

    def __init__(self, endpoint: GraphqlEndpoint, **starlette_options: Any) -> None:
        super().__init__(**starlette_options)
        self.endpoint = endpoint
        self.direct_endpoints: Mapping[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            send = with_security_headers(scope, send)
            if straight := self.direct_endpoints.get(scope["path"]):
                await straight(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def close_connections(self) -> None:
        """Close WebSockets and event streams because the server stops. Requests continue."""
        self.endpoint.connection_watch.close_all_for_shutdown()

    async def end_subscriptions(self) -> None:
        """Cancel all subscriptions and wait for them, so that the database can be closed."""
        await self.endpoint.subscription_groups.cancel_tasks()


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
        return await authentication.has_credential_ended_or_narrowed(self.environment, viewer)


async def serve_graphiql(_request: Request) -> Response:
    """Serve the GraphiQL page."""
    return graphiql.page_response()


async def redirect_to_graphiql(_request: Request) -> Response:
    """Redirect to the GraphiQL page."""
    return RedirectResponse("graphql")


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
    process_metrics: ProcessMetrics | None = None,
    upload_limits: UploadLimits | None = None,
) -> GraphqlApp:
    """Create the app over an environment, which the caller closes.

    `spool_folder` stores files that are being received. `bootstrap_key` is a key with role ROOT.
    The callbacks of `settings` are set here. `checks` are health checks besides the database.
    Without `is_compiled` operations run by plain execution. `process_metrics` joins the metrics
    of all processes.
    """
    schema.choose_executor(is_compiled=is_compiled)
    authenticator = RequestAuthenticator(environment, bootstrap_key)
    settings = replace(
        settings or EndpointSettings(),
        page=serve_graphiql,
        has_credential_ended=authenticator.has_viewer_ended,
        load_kick_times=partial(credential_status.load_kick_times, environment),
        find_trusted_text=partial(trusted_documents.find_document_text, environment),
    )
    endpoint = GraphqlEndpoint(
        schema, environment, authenticator.authenticate_graphql_request, settings
    )
    metrics_endpoint = MetricsEndpoint(
        MetricsCollector(environment, process_metrics),
        authenticator.authenticate_non_graphql_request,
        metrics_readers,
    )
    all_checks = {health.DATABASE: _database_write_check(environment), **(checks or {})}
    app = GraphqlApp(
        endpoint,
        routes=[
            Route("/", redirect_to_graphiql),
            Route("/metrics", metrics_endpoint.serve_metrics),
            *health.health_routes(all_checks, process_counts),
            Route("/graphql", endpoint),  # a Mount would send /graphql on to /graphql/
            WebSocketRoute("/graphql", endpoint),
            *graphiql.file_routes(),
            *acme_challenge.challenge_routes(environment),
            *mta_sts.policy_routes(environment),
            *rest_routes.rest_routes(
                environment,
                authenticator.authenticate_non_graphql_request,
                spool_folder,
                upload_limits,
                endpoint,
            ),
        ],
        middleware=_cors_middleware(settings.allowed_origins),
        exception_handlers={StorageUnavailable: _unavailable_response},
    )
    if not settings.allowed_origins:
        app.direct_endpoints = {"/graphql": endpoint}
    app.router.redirect_slashes = False  # it would redirect to any host in the request
    return app


def _database_write_check(environment: Environment) -> health.HealthCheck:
    """Return the health check that writes to the database."""

    async def is_database_writable() -> bool:
        await environment.database.check_writable()
        return True

    return health.check_with_cached_result(health.WRITE_CHECK_INTERVAL, is_database_writable)


def _unavailable_response(_request: Request, problem: Exception) -> Response:
    """Return a 503 response for routes that don't answer in JSON."""
    seconds = RETRY_AFTER
    if isinstance(problem, StorageUnavailable):
        seconds = problem.retry_after
    headers = {"Retry-After": str(round(seconds.total_seconds())), "Cache-Control": "no-store"}
    return PlainTextResponse("Try again later.\n", 503, headers)


def _cors_middleware(origins: Sequence[str]) -> list[Middleware]:
    """Return the CORS middleware for these origins; an empty list without origins."""
    if not origins:
        return []
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "HEAD", "PATCH", "DELETE"],
        allow_headers=list(CORS_REQUEST_HEADERS),
        expose_headers=list(CORS_RESPONSE_HEADERS),
    )
    return [cors]
