"""The endpoint /graphql: GET, POST and WebSocket."""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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

from graph.execution.documents.documents_by_hash import Find, Persisted, Unmet
from graph.execution.json_encoding import encode_answer
from graph.execution.operation_execution import Operation, Schema
from graph.execution.response_size import AnswerBudget
from graph.execution.telemetry import RESPONSES, SOCKETS
from graph.http import graphql_request
from graph.http.admission_control import Guards, Presence
from graph.http.graphql_request import EVENTS, JSON, Question, Rejected
from graph.http.http_errors import (
    answer_to,
    client_address,
    crowded,
    log_failure,
    request_id,
    turned_away,
)
from graph.http.rate_budgets import payer
from graph.subscriptions.result_stream import early
from graph.subscriptions.shared_subscriptions import Groups, pulled
from graph.subscriptions.sse import HEADERS, Ended, EventStream, Kicked, Watch, one_result
from graph.subscriptions.websocket import Adapter, Crowded, Handler
from models.errors import Refused, Unauthenticated
from models.runtime.environment import World
from models.users.roles import Role
from resolvers.context import Viewer

SignIn = Callable[
    [Mapping[str, str], Mapping[str, Any] | None, str | None], Awaitable[Viewer]
]  # headers, parameters, address
Page = Callable[[Request], Awaitable[Response]]

ALLOWED = {"GET": {Kind.QUERY}, "POST": {Kind.QUERY, Kind.MUTATION}}
STATUSES = {  # of an operation refused before execution; all other codes are 400
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "TOO_LARGE": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
    "INTERNAL_SERVER_ERROR": 500,
}
DOCUMENTS = ("query", "documentId", "extensions")
WAIT = {429, 503}
ALWAYS_SAID = {"RATE_LIMITED", "UNAVAILABLE", "INTERNAL_SERVER_ERROR"}  # else JSON has 200
SESSION_MAX = 128
ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the GraphQL endpoint. Times are in seconds."""

    body_max: int = 1 << 20  # bytes
    receive_timeout: float = 10
    init_timeout: float = 5  # from the open socket to `connection_init`
    heartbeat: float = 15
    sweep: float = 30  # between two checks of open connections
    operations_max: int = 100  # at once on one socket
    origins: tuple[str, ...] = ()  # of foreign pages that can open WebSockets
    page: Page | None = None  # serves GraphiQL to browsers
    ended: Ended | None = None
    kicked: Kicked | None = None
    trusted: Find | None = None
    only_trusted: bool = False  # refuse all other documents
    guards: Guards = field(default_factory=Guards)


class Endpoint(GraphQL[Operation, None]):
    """The GraphQL endpoint for `Route` and `WebSocketRoute`.

    `authenticate_connection` gets headers with names in lower case, the payload of
    `connection_init` and the client's IP address. It raises Unauthenticated for a wrong credential
    and returns `Viewer()` without one.
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
        self.graph = schema
        self.guards = self.settings.guards
        self.persisted = Persisted(
            schema.find,
            self.settings.trusted,
            world.now,
            only_trusted=self.settings.only_trusted,
        )
        self.world = world
        self.sign_in = sign_in
        self.watch = Watch(
            world.now, self.settings.ended, self.settings.sweep, self.settings.kicked
        )
        world.wakeups.guard(self.watch.recall)
        self.groups = Groups(schema, self.watch)

    @property
    def heartbeat(self) -> float:
        """Seconds without an event until an event stream sends a comment."""
        return self.settings.heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] != "http":
                await self._socket(scope, receive, send)
                return
            response = await self._respond(Request(scope, receive))
            await response(scope, receive, send)
        finally:
            if seat := scope.get("seat"):
                seat.leave()

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket, which holds a slot of its network, and of its user after sign-in."""
        asked = WebSocket(scope, receive, send)
        context = await self.get_context(asked, None)
        scope["seat"] = self.guards.followers.enter(payer(context))
        if scope["seat"] is None:
            await asked.send_denial_response(_refused(crowded(), JSON))
            return
        SOCKETS.add()
        try:
            await super().__call__(scope, receive, send)
        finally:
            SOCKETS.add(by=-1)

    async def _respond(self, request: Request) -> Response:
        context = await self.get_context(request, None)
        kind = graphql_request.media(context.headers.get("accept"))
        try:
            response = await self._answer(request, context, kind)
        except Rejected as refusal:
            response = _refused(refusal, kind)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or context.presence is None or not context.presence.gone:
                raise
            task.uncancel()
            response = Response(status_code=400)  # nobody reads it
        except Exception as problem:  # noqa: BLE001 - the edge of a listener: logged once
            log_failure(problem, context.request_id, request.url.path)
            response = _refused(answer_to(problem, context.request_id), kind)
        there = {name for name, _ in response.raw_headers}
        response.raw_headers += [pair for pair in ALWAYS if pair[0] not in there]
        response.raw_headers.append((b"x-request-id", context.request_id.encode()))
        RESPONSES.add("graphql", str(response.status_code))
        return response

    async def _answer(self, request: Request, context: Operation, kind: str) -> Response:
        if request.method not in ALLOWED:
            message = "Only GET and POST are answered here."
            headers = {"Allow": "GET, POST", "Connection": "close"}  # its body stays unread
            raise Rejected(405, "BAD_USER_INPUT", message, headers)
        if self.settings.page and _wants_page(request):
            return await self.settings.page(request)
        asked = await self._question(request, context.headers)
        await self._admit(context, None)
        asked = await self.persisted.resolve(asked, context)
        if request.method == "GET":
            self._refuse_mutation(asked, context)
        if kind == EVENTS:
            return await self._stream(asked, context, request.scope)
        context.presence = Presence(request.receive)
        result = await self._execute(asked, context, request.method)
        return await self._present(result, kind, context.answer)

    async def _question(self, request: Request, headers: Mapping[str, str]) -> Question:
        if request.method == "GET":
            return graphql_request.of_parameters(request.query_params)
        limit, timeout = self.settings.body_max, self.settings.receive_timeout
        body = await graphql_request.read(headers, request.receive, limit=limit, timeout=timeout)
        return graphql_request.of_body(body)

    def _refuse_mutation(self, asked: Question, context: Operation) -> None:
        known = self.graph.find(context, asked.query, asked.operation_name)
        if known.kind is OperationType.MUTATION:
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
            raise graphql_request.bad(message) from None

    async def _stream(self, asked: Question, context: Operation, scope: Scope) -> Response:
        followers = self.guards.followers
        each = self.guards.each(context.viewer, followers)
        if (seat := followers.enter(payer(context), each)) is None:
            raise crowded()
        scope["seat"] = seat
        stream = EventStream(context, heartbeat=self.heartbeat)
        events = stream.text(pulled(self.groups, asked, context), self.watch)
        return StreamingResponse(events, headers=HEADERS)

    async def _present(
        self, result: ExecutionResult, kind: str, answer: AnswerBudget | None
    ) -> Response:
        payload: dict[str, Any] = dict(process_result(result))
        status = 200
        if early(result) and result.errors:
            del payload["data"]
            code = str((result.errors[0].extensions or {}).get("code"))
            status = STATUSES.get(code, 400)
            if kind == JSON and code not in ALWAYS_SAID:
                status = 200  # older clients only read the errors of responses with 200
        body = await encode_answer(payload, answer)
        response = Response(body, status, _typed(kind))
        if status in WAIT:
            wait = (result.errors or [])[0].extensions or {}
            response.headers["Retry-After"] = str(wait.get("retryAfterSeconds", 1))
        return response

    async def get_context(self, request: Request | WebSocket, response: object) -> Operation:
        """Create the context of a request or WebSocket before authentication."""
        # the first of repeated headers counts
        pairs = reversed(request.scope["headers"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
        return Operation(
            self.world,
            Viewer(),
            client_ip=client_address(request),
            request_id=request_id(headers, self.world),
            headers=headers,
            guards=self.guards,
            seat=request.scope.get("seat"),
            live=self.watch,
        )

    async def _admit(self, context: Operation, params: dict[str, Any] | None) -> None:
        try:
            credentials = _credentials(context.headers, params)
            viewer = await self.sign_in(credentials, params, context.client_ip)
        except Refused as refusal:
            raise turned_away(refusal, STATUSES) from None
        context.viewer = viewer
        if viewer.speaks_for_others:
            _believe(context)

    async def on_ws_connect(self, context: Operation) -> Any:
        """Authenticate by `connection_init`, since browsers can't set WebSocket headers.

        Raises ConnectionRejectionError for a wrong credential, TooManyConnections above the limit.
        """
        try:
            await self._admit(context, context.connection_params)
        except Rejected:
            raise ConnectionRejectionError from None
        seat, followers = context.seat, self.guards.followers
        each = self.guards.each(context.viewer, followers)
        known = context.viewer.role is not Role.PUBLIC
        if seat and known and not seat.move(payer(context), each):
            raise Crowded
        return await super().on_ws_connect(context)

    def decode_json(self, data: str | bytes) -> object:
        """Decode a WebSocket frame. Raises json.JSONDecodeError if it is too long or malformed."""
        if len(data) > self.settings.body_max:
            raise json.JSONDecodeError("too long", "", 0)
        return graphql_request.decode(data)

    def encode_json(self, data: object) -> str:
        """Encode JSON as text, since bytes would be sent as binary frames."""
        return graphql_request.encode(data).decode()


def _wants_page(request: Request) -> bool:
    return (
        request.method == "GET"
        and not any(name in request.query_params for name in DOCUMENTS)
        and graphql_request.named(request.headers.get("accept", ""), "text/html")
    )


def _credentials(headers: Mapping[str, str], params: dict[str, Any] | None) -> Mapping[str, str]:
    """Return the headers, with credentials of `connection_init` in place of theirs.

    Raises Unauthenticated if such a credential is not text.
    """
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
    """Take IP address and session from the headers of a trusted front end, for the logs."""
    with suppress(ValueError):
        context.client_ip = str(ipaddress.ip_address(context.headers.get("x-client-ip", "")))
    session = context.headers.get("x-client-session", "")
    if session.isprintable() and 0 < len(session) <= SESSION_MAX:
        context.session_id = session


def _refused(refusal: Rejected, kind: str) -> Response:
    payload, status = refusal.payload, refusal.status
    if isinstance(refusal, Unmet):  # in the form of an invalid document's errors
        if kind == EVENTS:
            return Response(one_result(payload), headers=HEADERS)
        status = 200 if kind == JSON else status
    headers = _typed(JSON if kind == EVENTS else kind) | refusal.headers
    return refusal.answer(graphql_request.encode(payload), status, headers)


def _typed(kind: str) -> dict[str, str]:
    return {"Content-Type": f"{kind}; charset=utf-8"}
