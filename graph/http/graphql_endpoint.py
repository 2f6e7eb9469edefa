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

from graph.execution.documents.documents_by_hash import (
    DocumentsByHash,
    FindTrustedText,
    UnknownDocumentRejected,
)
from graph.execution.json_encoding import encode_response_or_size_error
from graph.execution.operation_execution import ExecutableSchema, OperationContext
from graph.execution.response_size import ResponseBudget
from graph.execution.telemetry import HTTP_RESPONSES, OPEN_SOCKETS
from graph.http import cors, graphql_request
from graph.http.admission_control import AdmissionControl, RequestClient
from graph.http.graphql_request import EVENT_STREAM, JSON, GraphqlRequest, RequestRejected
from graph.http.http_errors import (
    client_ip_address,
    log_request_failure,
    rejection_of_error,
    rejection_of_exception,
    request_id_from_headers,
    too_many_streams_rejection,
)
from graph.http.rate_budgets import payer_key
from graph.http.session_peer import (
    node_refusal_or_none,
    session_peer,
    sessions_refused_rejection,
)
from graph.subscriptions.result_pull import PulledResults
from graph.subscriptions.result_stream import was_refused_before_execution
from graph.subscriptions.shared_subscriptions import SubscriptionGroups
from graph.subscriptions.sse import (
    EVENT_STREAM_HEADERS,
    ConnectionWatch,
    EventStream,
    HasCredentialEnded,
    LoadKickTimes,
    format_single_result,
    viewer_user_id,
)
from graph.subscriptions.websocket import (
    NewSessionsRefused,
    TooManyConnections,
    WebSocketAdapter,
    WebSocketHandler,
)
from models.errors import RequestError, Unauthenticated
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.viewer import Viewer

AuthenticateConnection = Callable[
    [Mapping[str, str], Mapping[str, Any] | None, str | None], Awaitable[Viewer]
]  # headers, parameters, address
PageHandler = Callable[[Request], Awaitable[Response]]

OPERATION_TYPES_BY_METHOD = {"GET": {Kind.QUERY}, "POST": {Kind.QUERY, Kind.MUTATION}}
STATUS_BY_CODE = {  # of an operation refused before execution; all other codes are 400
    "UNAUTHENTICATED": 401,
    "SECOND_FACTOR_REQUIRED": 401,
    "FORBIDDEN": 403,
    "TOO_LARGE": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
    "INTERNAL_SERVER_ERROR": 500,
}
DOCUMENT_PARAMETERS = ("query", "documentId", "extensions")
RETRY_AFTER_STATUSES = {429, 503}
CODES_WITH_STATUS_IN_JSON = {
    "RATE_LIMITED",
    "UNAVAILABLE",
    "INTERNAL_SERVER_ERROR",
}  # else JSON has 200
MAX_SESSION_ID_LENGTH = 128
ALWAYS_SENT_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """The settings of the GraphQL endpoint. Times are in seconds."""

    max_body_bytes: int = 1 << 20  # bytes
    receive_timeout: float = 10
    init_timeout: float = 5  # from the open socket to `connection_init`
    heartbeat: float = 15
    credential_check_interval: float = 30  # between two checks of open connections
    max_operations_per_socket: int = 100  # at once on one socket
    allowed_origins: tuple[str, ...] = ()  # of foreign pages that can open WebSockets
    page: PageHandler | None = None  # serves GraphiQL to browsers
    has_credential_ended: HasCredentialEnded | None = None
    load_kick_times: LoadKickTimes | None = None
    find_trusted_text: FindTrustedText | None = None
    only_trusted: bool = False  # refuse all other documents
    guards: AdmissionControl = field(default_factory=AdmissionControl)


class GraphqlEndpoint(GraphQL[OperationContext, None]):
    """The GraphQL endpoint for `Route` and `WebSocketRoute`.

    `authenticate_connection` gets headers with names in lower case, the payload of
    `connection_init` and the client's IP address. It raises Unauthenticated for a wrong credential
    and returns `Viewer()` without one.
    """

    graphql_transport_ws_handler_class = WebSocketHandler
    websocket_adapter_class = WebSocketAdapter  # ty: ignore[invalid-assignment]

    def __init__(
        self,
        schema: ExecutableSchema,
        environment: Environment,
        authenticate_connection: AuthenticateConnection,
        settings: EndpointSettings | None = None,
    ) -> None:
        self.settings = settings or EndpointSettings()
        super().__init__(
            schema,
            graphql_ide=None,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
            connection_init_wait_timeout=timedelta(seconds=self.settings.init_timeout),
            max_subscriptions_per_connection=self.settings.max_operations_per_socket,
            allowed_origins=cors.exact_origins(self.settings.allowed_origins),
        )
        self.any_port_origins = cors.any_port_pattern(self.settings.allowed_origins)
        self.executable_schema = schema
        self.guards = self.settings.guards
        self.documents_by_hash = DocumentsByHash(
            schema.find_document_charging_if_uncached,
            self.settings.find_trusted_text,
            environment.now,
            only_trusted=self.settings.only_trusted,
        )
        self.environment = environment
        self.authenticate_connection = authenticate_connection
        self.connection_watch = ConnectionWatch(
            environment.now,
            self.settings.has_credential_ended,
            self.settings.credential_check_interval,
            self.settings.load_kick_times,
            environment.live_sessions,
        )
        environment.wakeups.add_credentials_listener(self.connection_watch.recheck_credentials_soon)
        self.subscription_groups = SubscriptionGroups(schema, self.connection_watch)

    @property
    def heartbeat(self) -> float:
        """Seconds without an event until an event stream sends a comment."""
        return self.settings.heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] != "http":
                await self._serve_websocket_in_stream_slot(scope, receive, send)
                return
            response = await self._respond_even_to_failures(Request(scope, receive))
            await response(scope, receive, send)
        finally:
            if slot := scope.get("connection_slot"):
                slot.release()

    async def _serve_websocket_in_stream_slot(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a WebSocket, which holds a slot of its network, and of its user after sign-in."""
        websocket = WebSocket(scope, receive, send)
        if rejection := node_refusal_or_none(self.environment):
            await websocket.send_denial_response(_rejection_response(rejection, JSON))
            return
        context = await self.get_context(websocket, None)
        scope["connection_slot"] = self.guards.stream_limiter.acquire(payer_key(context))
        if scope["connection_slot"] is None:
            await websocket.send_denial_response(
                _rejection_response(too_many_streams_rejection(), JSON)
            )
            return
        OPEN_SOCKETS.add()
        try:
            await super().__call__(scope, receive, send)
        finally:
            OPEN_SOCKETS.add(amount=-1)

    async def _respond_even_to_failures(self, request: Request) -> Response:
        context = await self.get_context(request, None)
        kind = graphql_request.response_media_type(context.headers.get("accept"))
        try:
            response = await self._parse_authenticate_and_execute(request, context, kind)
        except RequestRejected as refusal:
            response = _rejection_response(refusal, kind)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or context.presence is None or not context.presence.has_left:
                raise
            task.uncancel()
            response = Response(status_code=400)  # the client has disconnected
        except Exception as problem:  # noqa: BLE001 - the edge of a listener: logged once
            log_request_failure(problem, context.request_id, request.url.path)
            response = _rejection_response(
                rejection_of_exception(problem, context.request_id), kind
            )
        header_names = {name for name, _ in response.raw_headers}
        response.raw_headers += [
            pair for pair in ALWAYS_SENT_HEADERS if pair[0] not in header_names
        ]
        response.raw_headers.append((b"x-request-id", context.request_id.encode()))
        HTTP_RESPONSES.add("graphql", str(response.status_code))
        return response

    async def _parse_authenticate_and_execute(
        self, request: Request, context: OperationContext, media_type: str
    ) -> Response:
        if request.method not in OPERATION_TYPES_BY_METHOD:
            message = "Only GET and POST are answered here."
            headers = {"Allow": "GET, POST", "Connection": "close"}  # its body stays unread
            raise RequestRejected(405, "BAD_USER_INPUT", message, headers)
        if self.settings.page and _wants_graphiql_page(request):
            return await self.settings.page(request)
        graphql_request = await self._parse_request(request, context.headers)
        await self._authenticate_and_set_viewer(context, None)
        graphql_request = await self.documents_by_hash.resolve_or_register_document(
            graphql_request, context
        )
        if request.method == "GET":
            self._reject_mutation_by_get(graphql_request, context)
        if media_type == EVENT_STREAM:
            return await self._acquire_slot_and_stream_response(
                graphql_request, context, request.scope
            )
        context.presence = RequestClient(request.receive)
        try:
            result = await self._execute(graphql_request, context, request.method)
            return await self._result_response(result, media_type, context.answer)
        finally:
            context.release_results()

    async def _parse_request(self, request: Request, headers: Mapping[str, str]) -> GraphqlRequest:
        if request.method == "GET":
            return graphql_request.parse_request_parameters(request.query_params)
        limit, timeout = self.settings.max_body_bytes, self.settings.receive_timeout
        body = await graphql_request.read_json_body(
            headers, request.receive, limit=limit, timeout=timeout
        )
        return graphql_request.parse_request_body(body)

    def _reject_mutation_by_get(self, request: GraphqlRequest, context: OperationContext) -> None:
        document = self.executable_schema.find_document_charging_if_uncached(
            context, request.document_text, request.operation_name
        )
        if document.operation_type is OperationType.MUTATION:
            message = "Mutations are not allowed by GET."
            raise RequestRejected(405, "BAD_USER_INPUT", message, {"Allow": "POST"})

    async def _execute(
        self, request: GraphqlRequest, context: OperationContext, method: str
    ) -> ExecutionResult:
        try:
            return await self.schema.execute(
                request.document_text,
                variable_values=request.variables,
                context_value=context,
                operation_name=request.operation_name,
                allowed_operation_types=OPERATION_TYPES_BY_METHOD[method],
                operation_extensions=request.extensions,
            )
        except InvalidOperationTypeError:
            message = f"A subscription needs a WebSocket, or Accept: {EVENT_STREAM}."
            raise graphql_request.bad_request(message) from None

    async def _acquire_slot_and_stream_response(
        self, request: GraphqlRequest, context: OperationContext, scope: Scope
    ) -> Response:
        followers = self.guards.stream_limiter
        slot_limit = self.guards.slot_limit_of_viewer(context.viewer, followers)
        if rejection := node_refusal_or_none(self.environment):
            raise rejection
        if not self._accepts_session_of(context.viewer):
            raise sessions_refused_rejection()
        if (slot := followers.acquire(payer_key(context), slot_limit)) is None:
            raise too_many_streams_rejection()
        scope["connection_slot"] = slot
        stream = EventStream(context, heartbeat=self.heartbeat)
        events = stream.stream_events(
            PulledResults(self.subscription_groups, request, context), self.connection_watch
        )
        return StreamingResponse(events, headers=EVENT_STREAM_HEADERS)

    async def _result_response(
        self, result: ExecutionResult, media_type: str, response_budget: ResponseBudget | None
    ) -> Response:
        payload: dict[str, Any] = dict(process_result(result))
        status = 200
        if was_refused_before_execution(result) and result.errors:
            del payload["data"]
            code = str((result.errors[0].extensions or {}).get("code"))
            status = STATUS_BY_CODE.get(code, 400)
            if media_type == JSON and code not in CODES_WITH_STATUS_IN_JSON:
                status = 200  # older clients only read the errors of responses with 200
        body = await encode_response_or_size_error(payload, response_budget)
        response = Response(body, status, _content_type_header(media_type))
        if status in RETRY_AFTER_STATUSES:
            wait = (result.errors or [])[0].extensions or {}
            response.headers["Retry-After"] = str(wait.get("retryAfterSeconds", 1))
        return response

    async def get_context(self, request: Request | WebSocket, response: object) -> OperationContext:
        """Create the context of a request or WebSocket before authentication."""
        # the first of repeated headers counts
        pairs = reversed(request.scope["headers"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
        return OperationContext(
            self.environment,
            Viewer(),
            client_ip=client_ip_address(request),
            request_id=request_id_from_headers(headers, self.environment),
            headers=headers,
            guards=self.guards,
            connection_slot=request.scope.get("connection_slot"),
            live=self.connection_watch,
            peer=session_peer(request),
        )

    async def _authenticate_and_set_viewer(
        self, context: OperationContext, params: dict[str, Any] | None
    ) -> None:
        try:
            credentials = _headers_with_init_credentials(context.headers, params)
            viewer = await self.authenticate_connection(credentials, params, context.client_ip)
        except RequestError as refusal:
            raise rejection_of_error(refusal, STATUS_BY_CODE) from None
        context.viewer = viewer
        if viewer.is_trusted_front_end:
            _set_client_from_headers_unless_banned(context)

    async def on_ws_connect(self, context: OperationContext) -> Any:
        """Authenticate by `connection_init`, since browsers can't set WebSocket headers.

        Raises ConnectionRejectionError for a wrong credential, TooManyConnections above the limit,
        and NewSessionsRefused while new sessions of the user are refused.
        """
        try:
            await self._authenticate_and_set_viewer(context, context.connection_params)
        except RequestRejected:
            raise ConnectionRejectionError from None
        if not self._accepts_session_of(context.viewer):
            raise NewSessionsRefused
        slot, followers = context.connection_slot, self.guards.stream_limiter
        slot_limit = self.guards.slot_limit_of_viewer(context.viewer, followers)
        is_signed_in = context.viewer.role is not Role.PUBLIC
        if slot and is_signed_in and not slot.try_move_to_key(payer_key(context), slot_limit):
            raise TooManyConnections
        return await super().on_ws_connect(context)

    def _accepts_session_of(self, viewer: Viewer) -> bool:
        """Return False while new sessions of the viewer's user are refused."""
        return self.environment.live_sessions.accepts_sessions_of(viewer_user_id(viewer))

    def is_websocket_origin_allowed(self, request: WebSocket, origin: str) -> bool:
        """Return True if a page of another origin can open a WebSocket."""
        return super().is_websocket_origin_allowed(request, origin) or bool(
            self.any_port_origins and self.any_port_origins.fullmatch(origin)
        )

    def decode_json(self, data: str | bytes) -> object:
        """Decode a WebSocket frame. Raises json.JSONDecodeError if it is too long or malformed."""
        if len(data) > self.settings.max_body_bytes:
            raise json.JSONDecodeError("too long", "", 0)
        return graphql_request.decode_json_within_depth_limit(data)

    def encode_json(self, data: object) -> str:
        """Encode JSON as text, since bytes would be sent as binary frames."""
        return graphql_request.encode_json(data).decode()


def _wants_graphiql_page(request: Request) -> bool:
    return (
        request.method == "GET"
        and not any(name in request.query_params for name in DOCUMENT_PARAMETERS)
        and graphql_request.is_media_type_named(request.headers.get("accept", ""), "text/html")
    )


def _headers_with_init_credentials(
    headers: Mapping[str, str], params: dict[str, Any] | None
) -> Mapping[str, str]:
    """Return the headers, with credentials of `connection_init` in place of theirs.

    Raises Unauthenticated if such a credential is not text.
    """
    credentials: dict[str, str] = {}
    for name, value in (params or {}).items():
        if name.lower() not in ("authorization", "x-api-key", "token") or value is None:
            continue
        if not isinstance(value, str):
            raise Unauthenticated
        if name == "token":
            credentials["authorization"] = f"Bearer {value}"
        else:
            credentials[name.lower()] = value
    return {**headers, **credentials}


def _set_client_from_headers_unless_banned(context: OperationContext) -> None:
    """Take IP address and session from the headers of a trusted front end.

    Raises RequestRejected if the network of the named client is banned.
    """
    with suppress(ValueError):
        context.client_ip = str(ipaddress.ip_address(context.headers.get("x-client-ip", "")))
        context.has_named_client = True
    if context.has_named_client and context.environment.refuses_ip(context.client_ip):
        raise RequestRejected(403, "FORBIDDEN", "The network of the client is banned.")
    session = context.headers.get("x-client-session", "")
    if session.isprintable() and 0 < len(session) <= MAX_SESSION_ID_LENGTH:
        context.session_id = session


def _rejection_response(rejection: RequestRejected, media_type: str) -> Response:
    payload, status = rejection.graphql_payload, rejection.status
    if isinstance(
        rejection, UnknownDocumentRejected
    ):  # in the form of an invalid document's errors
        if media_type == EVENT_STREAM:
            return Response(format_single_result(payload), headers=EVENT_STREAM_HEADERS)
        status = 200 if media_type == JSON else status
    headers = (
        _content_type_header(JSON if media_type == EVENT_STREAM else media_type) | rejection.headers
    )
    return rejection.response_class(graphql_request.encode_json(payload), status, headers)


def _content_type_header(media_type: str) -> dict[str, str]:
    return {"Content-Type": f"{media_type}; charset=utf-8"}
