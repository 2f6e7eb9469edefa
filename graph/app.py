"""The ASGI app: GraphQL, uploads and downloads, GraphiQL, metrics and health."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from graph.http.graphql_endpoint import Endpoint, Settings
from graph.http.metrics import Census, Fleet, Metrics, Readers
from graph.http.response_headers import dressed
from graph.http.upload_body import Limits
from graph.schema import schema
from models.runtime.environment import World
from models.store.outages import RETRY_AFTER, StoreUnavailable
from resolvers.admin import trusted_documents
from resolvers.auth import authentication, credential_status
from resolvers.context import Viewer

ACCEPTED = (
    "Authorization", "Content-Type", "X-API-Key", "Idempotency-Key", "Range", "If-Range",
    "If-None-Match", "Content-Disposition", "Last-Event-ID", "Tus-Resumable", "Upload-Length",
    "Upload-Offset", "Upload-Metadata", "X-HTTP-Method-Override", "X-Request-Id",
)  # fmt: skip
EXPOSED = (
    "Retry-After", "X-Request-Id", "ETag", "Content-Disposition", "Content-Range",
    "Accept-Ranges", "Content-Length", "Location", "Repr-Digest", "Tus-Resumable", "Tus-Version",
    "Tus-Extension", "Tus-Max-Size", "Upload-Length", "Upload-Offset", "Upload-Metadata",
    "Upload-Expires",
)  # fmt: skip
ADMINS = Readers()


class App(Starlette):
    """The Starlette app, which adds security headers to every response.

    Requests to the paths in `direct_endpoints` skip routing and middleware.
    """

    def __init__(self, endpoint: Endpoint, **more: Any) -> None:
        super().__init__(**more)
        self.endpoint = endpoint
        self.direct: Mapping[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            send = dressed(scope, send)
            if straight := self.direct.get(scope["path"]):
                await straight(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def break_off(self) -> None:
        """Close WebSockets and event streams because the server stops. Requests continue."""
        self.endpoint.watch.break_off()

    async def end(self) -> None:
        """Cancel all subscriptions and wait for them, so that the database can be closed."""
        await self.endpoint.groups.end()


async def page(_request: Request) -> Response:
    """Serve the GraphiQL page."""
    return graphiql.page()


async def home(_request: Request) -> Response:
    """Redirect to the GraphiQL page."""
    return RedirectResponse("graphql")


def create_app(
    world: World,
    *,
    spool: Path,
    bootstrap: str | None = None,
    settings: Settings | None = None,
    readers: Readers = ADMINS,
    checks: Mapping[str, health.Check] | None = None,
    processes: health.Counts | None = None,
    compiled: bool = True,
    fleet: Fleet | None = None,
    uploads: Limits | None = None,
) -> App:
    """Create the app over an environment, which the caller closes.

    `spool_folder` stores files that are being received. `bootstrap_key` is a key with role ROOT.
    The callbacks of `settings` are set here. `checks` are health checks besides the database.
    Without `is_compiled` operations run by plain execution. `process_metrics` joins the metrics
    of all processes.
    """
    schema.use(compiled=compiled)

    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        viewer = await authentication.sign_in(world, headers, params, ip=ip, bootstrap=bootstrap)
        return authentication.for_documents(viewer)

    async def by_path(headers: Mapping[str, str], ip: str | None) -> Viewer:
        return authentication.for_paths(
            await authentication.sign_in(world, headers, ip=ip, bootstrap=bootstrap)
        )

    async def ended(viewer: Viewer) -> bool:
        return await authentication.ended(world, viewer)

    async def store() -> bool:
        await world.database.probe()
        return True

    written = health.at_most_every(health.WRITTEN, store)
    settings = replace(
        settings or Settings(),
        page=page,
        ended=ended,
        kicked=partial(credential_status.kicked, world),
        trusted=partial(trusted_documents.text_of, world),
    )
    endpoint = Endpoint(schema, world, sign_in, settings)
    app = App(
        endpoint,
        routes=[
            Route("/", home),
            Route("/metrics", Metrics(Census(world, fleet), by_path, readers).answer),
            *health.routes({health.STORE: written, **(checks or {})}, processes),
            Route("/graphql", endpoint),  # a Mount would send /graphql on to /graphql/
            WebSocketRoute("/graphql", endpoint),
            *graphiql.routes(),
            *acme_challenge.routes(world),
            *mta_sts.routes(world),
            *rest_routes.routes(world, by_path, spool, uploads, endpoint),
        ],
        middleware=_cors(settings.origins),
        exception_handlers={StoreUnavailable: _unavailable},
    )
    if not settings.origins:
        app.direct = {"/graphql": endpoint}
    app.router.redirect_slashes = False  # it would redirect to any host in the request
    return app


def _unavailable(_request: Request, problem: Exception) -> Response:
    """Return a 503 response for routes that don't answer in JSON."""
    seconds = RETRY_AFTER
    if isinstance(problem, StoreUnavailable):
        seconds = problem.retry_after
    headers = {"Retry-After": str(round(seconds.total_seconds())), "Cache-Control": "no-store"}
    return PlainTextResponse("Try again later.\n", 503, headers)


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Return the CORS middleware for these origins; an empty list without origins."""
    if not origins:
        return []
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "HEAD", "PATCH", "DELETE"],
        allow_headers=list(ACCEPTED),
        expose_headers=list(EXPOSED),
    )
    return [cors]
