"""Changes of an account as plain server-sent events, for scripts without GraphQL."""

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from graph.execution.operation_execution import Operation
from graph.http.admission_control import Guards
from graph.http.graphql_request import Question, Rejected, decode
from graph.http.http_errors import client_address, crowded, request_id
from graph.http.rate_budgets import payer
from graph.http.upload_body import Desk
from graph.subscriptions.result_stream import Told
from graph.subscriptions.shared_subscriptions import Groups, pulled
from graph.subscriptions.sse import HEADERS, EventStream, Farewell, Watch, one_event
from graph.types import global_ids
from models.runtime.concurrency_limits import Seat
from models.users.roles import Role
from models.users.roles import Scope as Scopes
from resolvers.changes import managed_streams
from resolvers.context import Needs
from resolvers.users import loaders as user_loaders

NEEDED = Needs(role=Role.USER, scope=Scopes.MAIL_READ)
FIELDS = """{ cursor events { cursor kind at origin
  ... on MailboxChange { folder: mailboxId path oldPath modseq mailbox { total unseen } }
  ... on MessageChange { messageId mailboxId uid fromMailboxId fromUid flags modseq }
  ... on SubmissionChange { submission { id queueId state } }
  ... on LimitChange { limit level used allowed refused resetsAt }
  ... on AccountChange { nodeId }
  ... on ResyncChange { reason } } }"""
OWN = f"subscription Updates {{ changes {FIELDS} }}"
OTHERS = f"subscription Updates($user: ID!) {{ changes(user: {{id: $user}}) {FIELDS} }}"


class Live(Protocol):
    """The parts of the GraphQL endpoint that serve subscriptions."""

    guards: Guards
    groups: Groups
    watch: Watch

    @property
    def heartbeat(self) -> float:
        """Seconds without an event until a comment is sent."""


class Updates(EventStream):
    """A stream with one event per change. The `id` of an event is the cursor after it."""

    def written(self, told: Told) -> str:
        """Return the text of the events of a batch and of the cursor after them."""
        payload: Any = decode(told.text)
        said = [one_event("error", error) for error in payload.get("errors") or ()]
        if batch := (payload.get("data") or {}).get("changes"):
            for event in batch["events"]:
                if "folder" in event:  # nullable in MessageChange, so it has another alias
                    event["mailboxId"] = event.pop("folder")
                said.append(f"id: {event['cursor']}\n{one_event(None, event)}")
            said.append(f"id: {batch['cursor']}\n\n")
        return "".join(said)

    def ending(self, farewell: Farewell | None) -> str:
        """Return the error event of a disconnection; an empty text at the normal end."""
        return one_event("error", farewell.error) if farewell else ""


class Response(StreamingResponse):
    """A streaming response that releases its concurrency slot at its end."""

    seat: Seat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then release the slot."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.seat.leave()


async def answer(live: Live, desk: Desk, request: Request) -> Response:
    """Answer GET with the changes of the user in the path.

    The user is the viewer or a user that the viewer manages. Raises Rejected for another method,
    too many open streams or a bad Last-Event-ID, NotFound or Forbidden if the user is not visible.
    """
    if request.method != "GET":
        raise Rejected(405, "BAD_USER_INPUT", "Only GET is answered here.", {"Allow": "GET"})
    key = global_ids.named("User", request.path_params["id"])
    where = client_address(request)
    viewer = await desk.sign_in(request.headers, where)
    viewer.require(NEEDED)
    own = key == viewer.user_id
    user = {} if own else {"user": request.path_params["id"]}
    context = Operation(
        desk.world,
        viewer,
        client_ip=where,
        request_id=request_id(request.headers, desk.world),
        headers=dict(request.headers),
        guards=live.guards,
        live=live.watch,
    )
    if not own:
        await user_loaders.reached(context, key)
        await managed_streams.account(key)(context)  # an error becomes the status
    stream = Updates(context, heartbeat=live.heartbeat)
    followers = live.guards.followers
    seat = followers.enter(payer(context), live.guards.each(viewer, followers))
    if seat is None:
        raise crowded()
    asked = Question(OWN if own else OTHERS, user)
    events = stream.text(pulled(live.groups, asked, context), live.watch)
    response = Response(events, headers=HEADERS)
    response.seat = seat
    return response
