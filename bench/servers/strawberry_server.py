"""Plain Strawberry: the same types and resolvers with Strawberry's schema, executor and view.

Documents are parsed and validated for each request, values are completed field by field, and
responses are encoded by the standard library. Credentials are checked as in Merganser.
"""

import sys
from typing import Any

import strawberry
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.schema.config import StrawberryConfig

from graph.execution.operation_execution import Operation
from graph.schema import TYPES, Mutation, Query, Subscription
from graph.types.scalars import SCALARS
from merganser.server.environment_factory import opened
from merganser.settings.settings import read
from models.runtime.environment import World
from resolvers.auth import authentication


def make_schema() -> strawberry.Schema:
    """Build the schema of Merganser with Strawberry's own schema class."""
    return strawberry.Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=TYPES,
        config=StrawberryConfig(scalar_map=SCALARS),
    )


class View(GraphQL[Operation, None]):
    """Strawberry's view, with authentication of the viewer."""

    def __init__(self, schema: strawberry.Schema, world: World) -> None:
        super().__init__(schema, graphql_ide=None)
        self.world = world

    async def get_context(
        self, request: Request | WebSocket, response: Response | WebSocket
    ) -> Operation:
        """Return the context for Merganser's resolvers."""
        headers = dict(request.headers)
        viewer = await authentication.sign_in(self.world, headers)
        return Operation(self.world, viewer, headers=headers)


async def serve(port: int) -> None:
    """Serve the database of the settings on loopback until SIGTERM."""
    async with opened(read()) as world:
        view: Any = View(make_schema(), world)
        app = Starlette(routes=[Route("/graphql", view), Route("/health", _health)])
        config = uvicorn.Config(
            app, port=port, log_config=None, access_log=False, http="httptools", loop="uvloop"
        )
        await uvicorn.Server(config).serve()


async def _health(_request: Request) -> Response:
    return Response()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
