"""A mail server of one inbox, whose schema has the names of Merganser's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from strawberry.asgi import GraphQL
from strawberry.exceptions import ConnectionRejectionError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL

from graph import graphiql

TOKENS = {"swordfish": "ada", "herring": "bob"}
PASSWORD = "secret"  # noqa: S105


class SpecialUse(Enum):
    INBOX = "INBOX"


class Role(Enum):
    PUBLIC = "PUBLIC"
    USER = "USER"


@strawberry.type
class MailAddress:
    name: str
    address: str


@strawberry.type
class Message:
    subject: str
    from_: MailAddress = strawberry.field(name="from")
    intro: str = "The lamp is lit."


HELLO = Message(subject="Hello", from_=MailAddress(name="Carol", address="carol@example.org"))


@strawberry.input(one_of=True)
class MailboxRef:
    special_use: SpecialUse | None = strawberry.UNSET


@strawberry.type
class Messages:
    nodes: list[Message]


@strawberry.type
class Mailbox:
    path: str

    @strawberry.field
    def messages(self, first: int = 20) -> Messages:
        return Messages(nodes=[HELLO][:first])


@strawberry.type
class User:
    username: str

    @strawberry.field
    def mailbox(self, by: MailboxRef) -> Mailbox:
        return Mailbox(path=SpecialUse(by.special_use).value)


@strawberry.type
class Viewer:
    role: Role
    user: User | None


def viewer_of(context: Any) -> Viewer:
    """Whose token came with the request, or with `connection_init`."""
    given = context.get("connection_params") or context["request"].headers
    bearer = given.get("Authorization") or given.get("authorization") or ""
    name = TOKENS.get(bearer.removeprefix("Bearer "))
    if name is None:
        return Viewer(role=Role.PUBLIC, user=None)
    return Viewer(role=Role.USER, user=User(username=name))


@strawberry.type
class Query:
    @strawberry.field
    def viewer(self, info: strawberry.Info) -> Viewer:
        return viewer_of(info.context)


@strawberry.input
class AuthenticateInput:
    username: str
    password: str
    totp: str | None = None
    token: bool = False


@strawberry.type
class MutationError:
    message: str


@strawberry.type
class AuthenticatePayload:
    token: str | None
    errors: list[MutationError]
    require2fa: list[str] = strawberry.field(name="require2fa", default_factory=list)


@strawberry.type
class TokenRevokePayload:
    revoked: int


@strawberry.type
class Mutation:
    @strawberry.mutation
    def authenticate(self, input: AuthenticateInput) -> AuthenticatePayload:
        """Let everybody in by one password; bob has a second factor."""
        if input.password != PASSWORD:
            wrong = MutationError(message="Wrong password.")
            return AuthenticatePayload(token=None, errors=[wrong])
        if input.username == "bob" and input.totp != "123456":
            return AuthenticatePayload(token=None, errors=[], require2fa=["TOTP"])
        token = next(token for token, name in TOKENS.items() if name == input.username)
        return AuthenticatePayload(token=token, errors=[])

    @strawberry.mutation
    def token_revoke(self) -> TokenRevokePayload:
        return TokenRevokePayload(revoked=1)


@strawberry.interface
class Change:
    kind: str


@strawberry.type
class MessageChange(Change):
    message: Message


@strawberry.type
class MailboxChange(Change):
    path: str
    unseen: int
    total: int


@strawberry.type
class ChangeBatch:
    cursor: str
    events: list[Change]


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def changes(self, info: strawberry.Info) -> AsyncIterator[ChangeBatch]:
        """Tell of one message, then wait."""
        user = viewer_of(info.context).user
        assert user
        change = MessageChange(kind="MESSAGE_ADDED", message=HELLO)
        yield ChangeBatch(cursor=f"for {user.username}", events=[change])
        await asyncio.Event().wait()


class Endpoint(GraphQL[Any, None]):
    async def on_ws_connect(self, context: Any) -> Any:
        if viewer_of(context).user is None:
            raise ConnectionRejectionError
        return await super().on_ws_connect(context)


def create_app() -> Starlette:
    schema = strawberry.Schema(Query, Mutation, Subscription, types=[MessageChange, MailboxChange])
    endpoint: Endpoint = Endpoint(
        schema, subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,), graphql_ide=None
    )

    async def show(_request: Request) -> Response:
        return graphiql.page()

    return Starlette(
        routes=[
            Route("/graphql", show, methods=["GET"]),
            Route("/graphql", endpoint, methods=["POST"]),
            WebSocketRoute("/graphql", endpoint),
            *graphiql.routes(),
        ]
    )


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Serve the app on a free port of this host; the base URL."""
    config = uvicorn.Config(create_app(), port=0, log_level="warning", ws="websockets-sansio")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running
