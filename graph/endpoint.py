"""/graphql itself: GET, POST and WebSocket."""

import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from graphql import OperationType
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.exceptions import ConnectionRejectionError
from strawberry.http import process_result
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType as Kind

from graph import bodies
from graph.bodies import EVENTS, JSON, Question, Rejected
from graph.feeds import early
from graph.groups import Groups, pulled
from graph.persisted import Find, Persisted, Unmet
from graph.policy import Operation, Schema, facts
from graph.sockets import Adapter, Handler
from graph.streams import HEADERS, Ended, EventStream, Watch, one_result
from graph.telemetry import RESPONSES, SOCKETS
from models.errors import AuthenticationFailed, Refused, Unauthenticated
from models.world import World
from resolvers.context import Viewer

log = logging.getLogger(__name__)

SignIn = Callable[[Mapping[str, str], dict[str, Any] | None], Awaitable[Viewer]]
Page = Callable[[Request], Awaitable[Response]]

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
ALLOWED = {"GET": {Kind.QUERY}, "POST": {Kind.QUERY, Kind.MUTATION}}
STATUSES = {  # of what was refused before it ran; 400 is all the rest
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "TOO_LARGE": 413,
    "RATE_LIMITED": 429,
    "INTERNAL_SERVER_ERROR": 500,
}
DOCUMENTS = ("query", "documentId", "extensions")  # parameters that say what to run
SESSION_MAX = 128  # characters of a caller's own word for its session
ALWAYS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the endpoint behaves. Times are in seconds."""

    body_max: int = 1 << 20  # bytes
    receive_timeout: float = 10
    init_timeout: float = 5  # from the open socket to `connection_init`
    heartbeat: float = 15
    sweep: float = 30  # between two looks at the credentials of those who stay
    operations_max: int = 100  # at once on one socket
    origins: tuple[str, ...] = ()  # foreign pages that may open sockets
    page: Page | None = None  # what a browser sees
    ended: Ended | None = None  # says whether a credential was revoked
    trusted: Find | None = None  # the text of a trusted document by its hash
    only_trusted: bool = False  # no other documents are run


class Endpoint(GraphQL[Operation, None]):
    """One object for `Route` and `WebSocketRoute`.

    `sign_in` makes a viewer of headers, by their names in lower case, and of the payload of
    `connection_init`. It raises Unauthenticated where a credential is wrong, and answers
    `Viewer()` where there is none.
    """

    graphql_transport_ws_handler_class = Handler
    websocket_adapter_class = Adapter  # ty: ignore[invalid-assignment]

    def __init__(
        self, schema: Schema, world: World, sign_in: SignIn, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings()
        super().__init__(
            schema,
            graphql_ide=None,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
            connection_init_wait_timeout=timedelta(seconds=self.settings.init_timeout),
            max_subscriptions_per_connection=self.settings.operations_max,
            allowed_origins=self.settings.origins,
        )
        self.documents = schema.documents
        self.persisted = Persisted(
            schema.documents,
            self.settings.trusted,
            world.now,
            only_trusted=self.settings.only_trusted,
        )
        self.world = world
        self.sign_in = sign_in
        self.watch = Watch(world.now, self.settings.ended, self.settings.sweep)
        self.groups = Groups(schema, self.watch.expired, self.watch.dismiss)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            SOCKETS.add()
            try:
                await super().__call__(scope, receive, send)
            finally:
                SOCKETS.add(by=-1)
            return
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        context = await self.get_context(request, None)
        kind = bodies.media(request.headers.get("accept"))
        try:
            response = await self._answer(request, context, kind)
        except Rejected as refusal:
            response = _refused(refusal, kind)
        except Exception:  # the edge of a listener: a bug is answered in JSON, and logged once
            log.exception("a request broke", extra={"request_id": context.request_id})
            broken = Rejected(500, "INTERNAL_SERVER_ERROR", "Something broke on our side.")
            broken.extensions["requestId"] = context.request_id
            response = _refused(broken, kind)
        for name, value in ALWAYS.items():
            response.headers.setdefault(name, value)
        response.headers["X-Request-Id"] = context.request_id
        RESPONSES.add("graphql", str(response.status_code))
        return response

    async def _answer(self, request: Request, context: Operation, kind: str) -> Response:
        if request.method not in ALLOWED:
            message = "Only GET and POST are answered here."
            headers = {"Allow": "GET, POST", "Connection": "close"}  # its body stays unread
            raise Rejected(405, "BAD_USER_INPUT", message, headers)
        if self.settings.page and _wants_page(request):
            return await self.settings.page(request)
        asked = await self._question(request)
        await self._admit(context, None)
        asked = await self.persisted.resolve(asked, context.viewer)
        if request.method == "GET":
            self._refuse_mutation(asked)
        if kind == EVENTS:
            return await self._stream(asked, context)
        return self._present(await self._execute(asked, context, request.method), kind)

    async def _question(self, request: Request) -> Question:
        if request.method == "GET":
            return bodies.of_parameters(request.query_params)
        limit, timeout = self.settings.body_max, self.settings.receive_timeout
        return bodies.of_body(await bodies.read(request, limit=limit, timeout=timeout))

    def _refuse_mutation(self, asked: Question) -> None:
        if self.documents.find(asked.query, asked.operation_name).kind is OperationType.MUTATION:
            message = "Mutations are not allowed by GET."
            raise Rejected(405, "BAD_USER_INPUT", message, {"Allow": "POST"})

    async def _execute(self, asked: Question, context: Operation, method: str) -> ExecutionResult:
        try:
            return await self.schema.execute(
                asked.query,
                variable_values=asked.variables,
                context_value=context,
                operation_name=asked.operation_name,
                allowed_operation_types=ALLOWED[method],
                operation_extensions=asked.extensions,
            )
        except InvalidOperationTypeError:
            message = f"A subscription needs a WebSocket, or Accept: {EVENTS}."
            raise bodies.bad(message) from None

    async def _stream(self, asked: Question, context: Operation) -> Response:
        stream = EventStream(context, heartbeat=self.settings.heartbeat)
        events = stream.text(pulled(self.groups, asked, context), self.watch)
        return StreamingResponse(events, headers=HEADERS)

    def _present(self, result: ExecutionResult, kind: str) -> Response:
        payload: dict[str, Any] = dict(process_result(result))
        status = 200
        if early(result) and result.errors:
            del payload["data"]
            code = str((result.errors[0].extensions or {}).get("code"))
            status = STATUSES.get(code, 400)
            if kind == JSON and code != "INTERNAL_SERVER_ERROR":
                status = 200  # older clients read the errors of such answers only
        return _json(payload, kind, status)

    async def get_context(self, request: Request | WebSocket, response: object) -> Operation:
        """A context for somebody who has not signed in yet."""
        asked = request.headers.get("x-request-id", "")
        name = asked if PLAIN.fullmatch(asked) else self.world.random(12).hex()
        address = request.client.host if request.client else None
        return Operation(
            self.world,
            Viewer(),
            client_ip=address,
            request_id=name,
            headers=dict(request.headers),
        )

    async def _admit(self, context: Operation, params: dict[str, Any] | None) -> None:
        try:
            credentials = _credentials(context.headers, params)
            viewer = await self.sign_in(credentials, params)
        except Refused as refusal:
            raise _turned_away(refusal) from None
        context.viewer = viewer
        if viewer.speaks_for_others:
            _believe(context)

    async def on_ws_connect(self, context: Operation) -> Any:
        """A browser cannot send a header with a socket: it signs in by `connection_init`."""
        try:
            await self._admit(context, context.connection_params)
        except Rejected:
            raise ConnectionRejectionError from None
        return await super().on_ws_connect(context)

    def decode_json(self, data: str | bytes) -> object:
        """JSON of a socket's frame, no longer than a body may be."""
        if len(data) > self.settings.body_max:
            raise json.JSONDecodeError("too long", "", 0)
        return bodies.decode(data)

    def encode_json(self, data: object) -> str:
        """Text, not bytes: a socket would send those as binary frames."""
        return bodies.encode(data).decode()


def _wants_page(request: Request) -> bool:
    return (
        request.method == "GET"
        and not any(name in request.query_params for name in DOCUMENTS)
        and bodies.named(request.headers.get("accept", ""), "text/html")
    )


def _credentials(headers: Mapping[str, str], params: dict[str, Any] | None) -> Mapping[str, str]:
    """The headers, and what `connection_init` says in their place."""
    said: dict[str, str] = {}
    for name, value in (params or {}).items():
        if name.lower() not in ("authorization", "x-api-key", "token") or value is None:
            continue
        if not isinstance(value, str):
            raise Unauthenticated
        if name == "token":
            said["authorization"] = f"Bearer {value}"
        else:
            said[name.lower()] = value
    return {**headers, **said}


def _believe(context: Operation) -> None:
    """A key speaks for the people behind it: the log names their address and session."""
    with suppress(ValueError):
        context.client_ip = str(ipaddress.ip_address(context.headers.get("x-client-ip", "")))
    session = context.headers.get("x-client-session", "")
    if session.isprintable() and 0 < len(session) <= SESSION_MAX:
        context.session_id = session


def _turned_away(refusal: Refused) -> Rejected:
    """A credential that is wrong ends the whole request: nothing of it is public by accident."""
    extensions = facts(refusal)
    if isinstance(refusal, AuthenticationFailed):
        extensions = {"code": "UNAUTHENTICATED"}
    code = str(extensions["code"])
    made = Rejected(STATUSES.get(code, 400), code, refusal.message)
    made.extensions |= extensions
    if code == "UNAUTHENTICATED":
        made.headers["WWW-Authenticate"] = "Bearer"
    if code == "RATE_LIMITED":
        made.headers["Retry-After"] = str(extensions["retryAfterSeconds"])
    return made


def _refused(refusal: Rejected, kind: str) -> Response:
    error = {"message": refusal.message, "extensions": refusal.extensions}
    payload, status = {"errors": [error]}, refusal.status
    if isinstance(refusal, Unmet):  # told as what is wrong with a document is told
        if kind == EVENTS:
            return Response(one_result(payload), headers=HEADERS)
        status = 200 if kind == JSON else status
    headers = _typed(JSON if kind == EVENTS else kind) | refusal.headers
    return refusal.answer(bodies.encode(payload), status, headers)


def _json(payload: object, kind: str, status: int) -> Response:
    return Response(bodies.encode(payload), status, _typed(kind))


def _typed(kind: str) -> dict[str, str]:
    return {"Content-Type": f"{kind}; charset=utf-8"}
