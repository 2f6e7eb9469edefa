"""Changes of an account as plain server-sent events, for scripts without GraphQL."""

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from graph.execution.operation_execution import OperationContext
from graph.http.admission_control import AdmissionControl
from graph.http.graphql_request import (
    GraphqlRequest,
    RequestRejected,
    decode_json_within_depth_limit,
)
from graph.http.http_errors import (
    client_ip_address,
    request_id_from_headers,
    too_many_streams_rejection,
)
from graph.http.rate_budgets import payer_key
from graph.http.session_peer import (
    node_refusal_or_none,
    session_peer,
    sessions_refused_rejection,
)
from graph.http.upload_body import UploadService
from graph.subscriptions.result_pull import PulledResults
from graph.subscriptions.result_stream import StreamResult
from graph.subscriptions.shared_subscriptions import SubscriptionGroups
from graph.subscriptions.sse import (
    EVENT_STREAM_HEADERS,
    ConnectionWatch,
    DisconnectReason,
    EventStream,
    format_event,
    viewer_user_id,
)
from graph.types import global_ids
from models.runtime.concurrency_limits import ConcurrencySlot
from models.users.roles import Role
from models.users.roles import Scope as Scopes
from resolvers.changes import managed_streams
from resolvers.users import loaders as user_loaders
from resolvers.viewer import GuardRule

RULE = GuardRule(role=Role.USER, scope=Scopes.MAIL_READ)
CHANGE_FIELDS = """{ cursor events { cursor type at origin
  ... on MailboxChange { folder: mailboxId path oldPath modseq
    mailbox { messageCount unseenCount } }
  ... on MessageChange { messageId mailboxId uid fromMailboxId fromUid flags modseq }
  ... on SubmissionChange { submission { id queueId state } }
  ... on LimitChange { limitKind level used limit refused resetsAt }
  ... on UserChange { nodeId }
  ... on ResyncChange { reason } } }"""
SUBSCRIPTION_OF_VIEWER = f"subscription Updates {{ changes {CHANGE_FIELDS} }}"
SUBSCRIPTION_OF_USER = (
    f"subscription Updates($user: ID!) {{ changes(user: {{id: $user}}) {CHANGE_FIELDS} }}"
)


class SubscriptionServer(Protocol):
    """The parts of the GraphQL endpoint that serve subscriptions."""

    guards: AdmissionControl
    subscription_groups: SubscriptionGroups
    connection_watch: ConnectionWatch

    @property
    def heartbeat(self) -> float:
        """Seconds without an event until a comment is sent."""


class ChangeEventStream(EventStream):
    """A stream with one event per change. The `id` of an event is the cursor after it."""

    def event_text_from_result(self, result: StreamResult) -> str:
        """Return the text of the events of a batch and of the cursor after them."""
        payload: Any = decode_json_within_depth_limit(result.json_text)
        events = [format_event("error", error) for error in payload.get("errors") or ()]
        if batch := (payload.get("data") or {}).get("changes"):
            for event in batch["events"]:
                if "folder" in event:  # nullable in MessageChange, so it has another alias
                    event["mailboxId"] = event.pop("folder")
                events.append(f"id: {event['cursor']}\n{format_event(None, event)}")
            events.append(f"id: {batch['cursor']}\n\n")
        return "".join(events)

    def final_events(self, reason: DisconnectReason | None) -> str:
        """Return the error event of a disconnection; an empty text at the normal end."""
        return format_event("error", reason.graphql_error) if reason else ""


class SlotStreamingResponse(StreamingResponse):
    """A streaming response that releases its concurrency slot at its end."""

    connection_slot: ConcurrencySlot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then release the slot."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.connection_slot.release()


async def authorize_and_stream_user_changes(
    server: SubscriptionServer, service: UploadService, request: Request
) -> SlotStreamingResponse:
    """Answer GET with the changes of the user in the path.

    The user is the viewer or a user that the viewer manages. Raises RequestRejected for another
    method, too many open streams or a bad Last-Event-ID, NotFound or Forbidden if the user is not
    visible.
    """
    if request.method != "GET":
        raise RequestRejected(405, "BAD_USER_INPUT", "The method must be GET.", {"Allow": "GET"})
    user_id = global_ids.decode_path_id("User", request.path_params["id"])
    ip_address = client_ip_address(request)
    viewer = await service.authenticate_request(request.headers, ip_address)
    viewer.require(RULE)
    is_viewer = user_id == viewer.user_id
    user = {} if is_viewer else {"user": request.path_params["id"]}
    context = OperationContext(
        service.environment,
        viewer,
        client_ip=ip_address,
        request_id=request_id_from_headers(request.headers, service.environment),
        headers=dict(request.headers),
        guards=server.guards,
        live=server.connection_watch,
        peer=session_peer(request),
    )
    if not is_viewer:
        await user_loaders.require_visible_or_viewer_user_id(context, user_id)
        # an error becomes the status
        await managed_streams.selector_of_user_stream(user_id)(context)
    if rejection := node_refusal_or_none(service.environment):
        raise rejection
    if not service.environment.live_sessions.accepts_sessions_of(viewer_user_id(viewer)):
        raise sessions_refused_rejection()
    stream = ChangeEventStream(context, heartbeat=server.heartbeat)
    followers = server.guards.stream_limiter
    slot = followers.acquire(
        payer_key(context), server.guards.slot_limit_of_viewer(viewer, followers)
    )
    if slot is None:
        raise too_many_streams_rejection()
    graphql_request = GraphqlRequest(
        SUBSCRIPTION_OF_VIEWER if is_viewer else SUBSCRIPTION_OF_USER, user
    )
    events = stream.stream_events(
        PulledResults(server.subscription_groups, graphql_request, context), server.connection_watch
    )
    response = SlotStreamingResponse(events, headers=EVENT_STREAM_HEADERS)
    response.connection_slot = slot
    return response
