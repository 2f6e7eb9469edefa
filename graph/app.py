"""The ASGI app: GraphQL, bytes, the page for people, and a sign of life."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute

from graph import graphiql, health, rest
from graph.endpoint import Endpoint, Settings
from graph.metrics import Census, Metrics, Readers
from graph.schema import schema
from models.world import World
from resolvers import auth, documents
from resolvers.context import Viewer

ACCEPTED = (
    "Authorization", "Content-Type", "X-API-Key", "Idempotency-Key", "Range", "If-Range",
    "If-None-Match", "Content-Disposition", "Last-Event-ID",
)  # fmt: skip
EXPOSED = (
    "Retry-After", "X-Request-Id", "ETag", "Content-Disposition", "Content-Range",
    "Accept-Ranges", "Content-Length",
)  # fmt: skip
ADMINS = Readers()


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
    origins: Sequence[str] = (),
    only_trusted: bool = False,
    readers: Readers = ADMINS,
    checks: Mapping[str, health.Check] | None = None,
    compiled: bool = True,
) -> Starlette:
    """Make the app over `world`. Whoever makes the world closes it.

    `spool` is a folder for what is being received, `bootstrap` the key of whoever owns the
    machine, `origins` are foreign pages that may call us. With `only_trusted` no documents are
    run but those that were added before; without `compiled` graphql-core runs them alone.
    `readers` may see the metrics, and `checks` say, beside the store, whether we are ready.
    """
    schema.use(compiled=compiled)

    async def sign_in(headers: Mapping[str, str], params: dict[str, Any] | None = None) -> Viewer:
        return await auth.sign_in(world, headers, params, bootstrap=bootstrap)

    async def ended(viewer: Viewer) -> bool:
        return await auth.ended(world, viewer)

    async def store() -> bool:
        await world.database.ping()
        return True

    settings = Settings(
        origins=tuple(origins),
        page=page,
        ended=ended,
        trusted=partial(documents.text_of, world),
        only_trusted=only_trusted,
    )
    endpoint = Endpoint(schema, world, sign_in, settings)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=list(ACCEPTED),
        expose_headers=list(EXPOSED),
    )
    return Starlette(
        routes=[
            Route("/", home),
            Route("/metrics", Metrics(Census(world), sign_in, readers).answer),
            *health.routes({health.STORE: store, **(checks or {})}),
            Route("/graphql", endpoint),  # a Mount would send /graphql on to /graphql/
            WebSocketRoute("/graphql", endpoint),
            *graphiql.routes(),
            *rest.routes(world, sign_in, spool),
        ],
        middleware=[cors] if origins else [],
    )
