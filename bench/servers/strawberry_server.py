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

from graph.execution.operation_execution import OperationContext
from graph.schema import ADDITIONAL_TYPES, Mutation, Query, Subscription
from graph.types.scalars import SCALARS
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import read_settings
from models.runtime.environment import Environment
from resolvers.auth import authentication


def build_plain_schema() -> strawberry.Schema:
    """Build the schema of Merganser with Strawberry's own schema class."""
    return strawberry.Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=ADDITIONAL_TYPES,
        config=StrawberryConfig(scalar_map=SCALARS),
    )


class PlainStrawberryView(GraphQL[OperationContext, None]):
    """Strawberry's view, with authentication of the viewer."""

    def __init__(self, schema: strawberry.Schema, environment: Environment) -> None:
        super().__init__(schema, graphql_ide=None)
        self.environment = environment

    async def get_context(
        self, request: Request | WebSocket, response: Response | WebSocket
    ) -> OperationContext:
        """Return the context for Merganser's resolvers."""
        headers = dict(request.headers)
        viewer = await authentication.authenticate_request(self.environment, headers)
        return OperationContext(self.environment, viewer, headers=headers)


async def serve_plain_strawberry(port: int) -> None:
    """Serve the database of the settings on loopback until SIGTERM."""
    async with open_environment(read_settings()) as environment:
        view: Any = PlainStrawberryView(build_plain_schema(), environment)
        app = Starlette(routes=[Route("/graphql", view), Route("/health", _health)])
        config = uvicorn.Config(
            app, port=port, log_config=None, access_log=False, http="httptools", loop="uvloop"
        )
        await uvicorn.Server(config).serve()


async def _health(_request: Request) -> Response:
    return Response()


if __name__ == "__main__":
    uvloop.run(serve_plain_strawberry(int(sys.argv[1])))
