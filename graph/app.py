"""The ASGI app: GraphQL, bytes, the page for people, and a sign of life."""

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
    """Dresses every answer, also those of its own.

    What is in `direct`, by its path, answers for itself: nothing else is asked about it.
    """

    def __init__(self, endpoint: Endpoint, **more: Any) -> None:
        super().__init__(**more)
        self.endpoint = endpoint
        self.direct: Mapping[str, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or socket."""
        if scope["type"] == "http":
            send = dressed(scope, send)
            if straight := self.direct.get(scope["path"]):
                await straight(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    def break_off(self) -> None:
        """Let go who would stay, as the server stops; requests that are under way go on."""
        self.endpoint.watch.break_off()

    async def end(self) -> None:
        """End subscriptions whose peers are gone, and wait for them: the store may close."""
        await self.endpoint.groups.end()


async def page(_request: Request) -> Response:
    """What a browser sees at /graphql."""
    return graphiql.page()


async def home(_request: Request) -> Response:
    """Show people the way to the page."""
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
    """Make the app over `world`. Whoever makes the world closes it.

    `spool` is a folder for what is being received, `bootstrap` the key of whoever owns the
    machine. `settings` say what is allowed; the rest of them is filled in here. `readers` may
    see the metrics, and `checks` say, beside the store, whether we are ready. Without `compiled`
    graphql-core runs operations alone. `processes` counts the processes of the server. `fleet`
    are the processes that metrics tell of together; `uploads` says how much may be on its way in.
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
    app.router.redirect_slashes = False  # it would send people to whatever host the request named
    return app


def _unavailable(_request: Request, problem: Exception) -> Response:
    """Answer 503 on routes that don't answer in JSON."""
    seconds = RETRY_AFTER
    if isinstance(problem, StoreUnavailable):
        seconds = problem.retry_after
    headers = {"Retry-After": str(round(seconds.total_seconds())), "Cache-Control": "no-store"}
    return PlainTextResponse("Try again later.\n", 503, headers)


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """What answers pages of other origins; nothing where there are none."""
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
