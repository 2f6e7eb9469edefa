"""A small schema, a server for it on a loopback port, and the viewers that can sign in."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NewType

import httpx
import orjson
import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from strawberry.schema.config import StrawberryConfig
from websockets.asyncio.client import ClientConnection, connect

from graph.execution.documents.cost_limits import Cost, OperationLimits
from graph.execution.operation_execution import ExecutableSchema
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from mail.storage.blobs.object_stores import FolderStore
from models.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    RequestError,
    Unauthenticated,
)
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.time_limits import HANG_SECONDS

Info = strawberry.Info[Context, None]
Even = NewType("Even", int)
IdList = Annotated[list[strawberry.ID], strawberry.argument(description="Which.")]

SHORT_TOKEN_EXPIRY = datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
VIEWERS = {
    "Bearer user": Viewer(7, Role.USER, token_id=1),
    "Bearer other": Viewer(8, Role.USER, token_id=2),
    "Bearer admin": Viewer(9, Role.ADMIN, token_id=3),
    "Bearer reader": Viewer(7, Role.USER, read_only=True, token_id=4),
    "Bearer brief": Viewer(7, Role.USER, token_id=5, expires_at=SHORT_TOKEN_EXPIRY),
    "Bearer key": Viewer(0, Role.ADMIN, api_key_id=6),
}
ERRORS_BY_KIND: dict[str, RequestError] = {
    "unauthenticated": Unauthenticated(),
    "forbidden": Forbidden("never"),
    "missing": NotFound("x"),
    "id": InvalidInput("no id", constraint=ValidationConstraint.ID),
    "cursor": InvalidInput("no cursor", constraint=ValidationConstraint.CURSOR),
    "page": InvalidInput("no page", constraint=ValidationConstraint.PAGE),
    "pattern": InvalidInput("no pattern", constraint=ValidationConstraint.PATTERN),
    "conflict": Conflict("there already"),
    "limited": RateLimited("slowly", retry_after=timedelta(seconds=7)),
}


def cost_field(**cost: Any) -> Callable[[Callable[..., Any]], Any]:
    declare: Callable[[Callable[..., Any]], Any] = strawberry.field(directives=[Cost(**cost)])
    return declare


def parse_even(value: Any) -> Even:
    if not isinstance(value, int) or value % 2:
        raise ValueError("odd")
    return Even(value)


async def load_times(ctx: Context, keys: list[str]) -> list[str]:
    """A loader whose result changes: the time."""
    return [f"{ctx.environment.now():%H:%M}" for _ in keys]


@strawberry.type
class Item:
    name: str = "a"

    @strawberry.field
    def within(self) -> "Item":
        return Item()

    @strawberry.field
    async def seen(self, info: Info) -> str:
        return await info.context.load(load_times, self.name)

    @strawberry.field
    def others(self, first: int = 20) -> "ItemConnection":
        return make_item_connection(first)

    @cost_field(weight=500)
    def dear(self) -> str:
        return "!"


@strawberry.type
class PageInfo:
    has_next_page: bool = False


@strawberry.type
class ItemEdge:
    cursor: str
    node: Item


@strawberry.type
class ItemConnection:
    edges: list[ItemEdge]
    nodes: list[Item]
    page_info: PageInfo
    total_count: int


def make_item_connection(count: int) -> ItemConnection:
    """A connection with this many items."""
    items = [Item()] * count
    edges = [ItemEdge(cursor="", node=item) for item in items]
    return ItemConnection(edges=edges, nodes=items, page_info=PageInfo(), total_count=count)


@strawberry.type
class Query:
    @strawberry.field
    def hello(self) -> str:
        return "world"

    @strawberry.field
    def echo(self, text: str | None = None, number: int = 1) -> str:
        return (text or "-") * number

    @strawberry.field
    def even(self, value: Even) -> Even:
        return value

    @strawberry.field
    def huge(self) -> int:
        return 1 << 40

    @strawberry.field
    def odd(self) -> str | None:
        return "half a pair: \ud83d"

    @strawberry.field
    def item(self) -> Item:
        return Item()

    @strawberry.field
    def items(self, first: int | None = None, last: int | None = None) -> ItemConnection:
        return make_item_connection(last or first or 20)

    @cost_field(weight=2, per_item=True)
    def chosen(self, ids: IdList) -> list[Item]:
        return [Item(name=name) for name in ids]

    @strawberry.field
    def refused(self, kind: str) -> str | None:
        raise ERRORS_BY_KIND[kind]

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError("the password is hunter2")

    @strawberry.field
    def whoami(self, info: Info) -> str:
        viewer = info.context.viewer
        return f"{viewer.role} {viewer.user_id} {info.context.client_ip}"

    @strawberry.field
    async def slow(self) -> str:
        await asyncio.Event().wait()
        return "too late"


@strawberry.type
class Mutation:
    @strawberry.mutation
    def change(self, text: str) -> str:
        return text


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, to: int = 3) -> AsyncGenerator[int, None]:
        for number in range(to):
            yield number

    @strawberry.subscription
    async def items(self, info: Info) -> AsyncGenerator[Item, None]:
        """Yield three items; the clock advances by an hour after each."""
        clock: Any = info.context.environment.clock.read
        for _ in range(3):
            yield Item()
            clock.tick(hours=1)

    @strawberry.subscription
    async def forever(self) -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.Event().wait()

    @strawberry.subscription
    async def broken(self) -> AsyncGenerator[int, None]:
        yield 1
        raise RuntimeError("the password is hunter2")

    @strawberry.subscription
    async def flood(self, info: Info) -> AsyncGenerator[str, None]:
        """Yield without end; the clock counts the results."""
        while info.context.environment.now():
            yield "x" * 100_000

    @strawberry.subscription
    async def quiet(self) -> AsyncGenerator[int, None]:
        await asyncio.Event().wait()
        yield 1


def make_schema(**limits: Any) -> ExecutableSchema:
    return ExecutableSchema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        limits=OperationLimits(**limits),
        config=StrawberryConfig(
            sort_schema=True,
            scalar_map={
                Even: strawberry.scalar(name="Even", serialize=parse_even, parse_value=parse_even)
            },
        ),
    )


@dataclass
class CountingClock:
    """A clock that changes only by `tick`, and counts its reads."""

    time: datetime = field(default_factory=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    read_count: int = 0

    def __call__(self) -> datetime:
        self.read_count += 1
        return self.time

    def tick(self, **by: float) -> None:
        self.time += timedelta(**by)


async def authenticate_by_header(
    headers: Mapping[str, str], _params: Mapping[str, Any] | None, _ip: str | None
) -> Viewer:
    """Sign in by the header Authorization or X-API-Key."""
    if headers.get("authorization") == "Bearer broken":
        raise RuntimeError("the password is hunter2")
    if (authorization := headers.get("authorization")) is None:
        return VIEWERS["Bearer key"] if headers.get("x-api-key") == "key" else Viewer()
    if authorization not in VIEWERS:
        raise Unauthenticated
    return VIEWERS[authorization]


async def serve_graphiql(_request: Request) -> Response:
    return HTMLResponse("<title>GraphiQL</title>")


@asynccontextmanager
async def make_environment(folder: Path) -> AsyncGenerator[Environment]:
    """Yield an environment whose database is never opened."""
    database = Database(f"sqlite+aiosqlite:///{folder}/mail.db")
    try:
        yield Environment(database, FolderStore(folder), b"secret", now=CountingClock())
    finally:
        await database.close()


def make_app(endpoint: GraphqlEndpoint) -> Starlette:
    return Starlette(routes=[Route("/graphql", endpoint), WebSocketRoute("/graphql", endpoint)])


@dataclass
class SmallSchemaServer:
    """A GraphQL endpoint on a loopback port."""

    endpoint: GraphqlEndpoint
    port: int
    clock: CountingClock

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    def connect(self, **options: Any) -> connect:
        protocols = options.pop("subprotocols", ["graphql-transport-ws"])
        return connect(f"ws{self.url[4:]}", subprotocols=protocols, **options)

    @asynccontextmanager
    async def open_unread_websocket(self, query: str) -> AsyncGenerator[None]:
        """Subscribe over a WebSocket connection that is never read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1000)
        head = {
            "Host": "x",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "MDAwMDAwMDAwMDAwMDAwMA==",
            "Sec-WebSocket-Protocol": "graphql-transport-ws",
        }
        lines = ["GET /graphql HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await reader.readline()
        for kind, payload in (
            ("connection_init", {"token": "user"}),
            ("subscribe", {"query": query}),
        ):
            frame = orjson.dumps({"type": kind, "id": "1", "payload": payload})
            writer.write(b"\x81" + bytes([0x80 | len(frame)]) + bytes(4) + frame)
        try:
            yield
        finally:
            writer.transport.abort()

    async def wait_until_clock_unread(self) -> int:
        """Wait until the clock is no longer read, and return the number of its reads."""
        reads_before = 0
        async with asyncio.timeout(HANG_SECONDS):
            while not reads_before or reads_before != self.clock.read_count:
                reads_before = self.clock.read_count
                await asyncio.sleep(0.2)
        return reads_before

    async def exchange_bytes(self, request: bytes, *, seconds: float = HANG_SECONDS) -> bytes:
        """Send bytes, and return the response up to the end of the connection or of the time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        response = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while chunk := await reader.read(4096):
                    response += chunk
        except TimeoutError:
            response += b"<still open>"
        writer.close()
        await writer.wait_closed()
        return bytes(response)


@asynccontextmanager
async def run_small_schema_server(
    environment: Environment, settings: EndpointSettings, **limits: Any
) -> AsyncGenerator[SmallSchemaServer]:
    """Run a server with the small schema and these cost limits."""
    endpoint = GraphqlEndpoint(make_schema(**limits), environment, authenticate_by_header, settings)
    config = uvicorn.Config(
        make_app(endpoint),
        ws="websockets-sansio",
        ws_max_size=1 << 21,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)
        clock: Any = environment.clock.read
        yield SmallSchemaServer(endpoint, listener.getsockname()[1], clock)
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def open_http_client(endpoint: GraphqlEndpoint) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield an HTTP client of an endpoint, without a socket."""
    transport = httpx.ASGITransport(app=make_app(endpoint))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def send_frame(ws: ClientConnection, kind: str, **more: Any) -> None:
    """Send a frame."""
    await ws.send(orjson.dumps({"type": kind, **more}).decode())


async def read_frame(ws: ClientConnection) -> Any:
    """Read a frame."""
    async with asyncio.timeout(HANG_SECONDS):
        frame = await ws.recv()
    assert isinstance(frame, str)
    return orjson.loads(frame)


async def init_connection(ws: ClientConnection, payload: object = None) -> None:
    """Send connection_init and wait for the acknowledgement."""
    await send_frame(ws, "connection_init", **({} if payload is None else {"payload": payload}))
    assert (await read_frame(ws))["type"] == "connection_ack"


async def wait_for_close_code(ws: ClientConnection) -> int:
    """Wait until the server closes the connection, and return the close code."""
    async with asyncio.timeout(HANG_SECONDS):
        await ws.wait_closed()
    return ws.close_code or 0
