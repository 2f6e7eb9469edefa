"""Mutations that end sessions, or wait for their end."""

from datetime import timedelta

import strawberry

from graph.sessions.types import SESSION_COST, SessionRef
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ids_from_refs
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.scalars import Duration
from graph.users.types import User
from models.errors import InvalidInput
from models.sessions.live_sessions import SessionTermination
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.sessions import drain, terminate
from resolvers.sessions.drain import DrainRequest
from resolvers.sessions.terminate import TerminationRequest

MAX_DRAIN_TIMEOUT = timedelta(minutes=10)
DEFAULT_DRAIN_TIMEOUT = timedelta(seconds=30)


@strawberry.input(description="Input of sessionTerminate.")
class SessionTerminateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose sessions end. Not allowed with `sessions`. A named user whom the caller "
        "can't change is an error. Patterns, domains, tags and `all` leave out users whom the "
        "caller can't change, unless `revokeTokens` is true. Default without `sessions`: the "
        "signed-in user. An API key without a user has no default (FORBIDDEN).",
        default=strawberry.UNSET,
    )
    sessions: list[SessionRef] | None = attribute_field(
        "Sessions that end, 1 to 1,000 by default. Those that have ended, or that the caller "
        "can't end, are left out. Not allowed with `users` or `revokeTokens` (VALIDATION). "
        "Default: all sessions of `users`.",
        default=strawberry.UNSET,
    )
    reason: str | None = attribute_field(
        "Text that the disconnected clients receive: at most 120 printable characters. In replies "
        "of SMTP and LMTP, `?` replaces characters that are not ASCII. Default: a text of the "
        "server.",
        default=strawberry.UNSET,
    )
    force: bool = attribute_field(
        "True cancels running queries and mutations, and messages that are being received. False: "
        "a session ends after its message, or its running queries and mutations, which can run "
        "for at most 60 seconds more. If the selected sessions include the one that sends the "
        "mutation, that session ends after the response, also if `force` is true. Deliveries, "
        "uploads and other HTTP requests are never cancelled.",
        default=False,
    )
    revoke_tokens: bool = attribute_field(
        "True also revokes all access tokens and OAuth refresh tokens of these users. If the "
        "caller is one of them, this includes the token of the request. API keys and application "
        "passwords stay valid. By default at most 1,000 users are then allowed, also with `all`. "
        "A selected user whom the caller can't change is then FORBIDDEN.",
        default=False,
    )


@strawberry.type(description="Payload of sessionTerminate.")
class SessionTerminatePayload(MutationPayload):
    terminated_count: int = attribute_field(
        "Number of sessions on all nodes that have ended. With `validateOnly`: that would end.",
        default=0,
    )
    pending_count: int = attribute_field(
        "Number of sessions on all nodes that are still ending: they finish a message or an "
        "operation first, or their client is slow.",
        default=0,
    )
    usernames: list[str] = attribute_field(
        "Username of each session of a user that has ended or is ending, in alphabetical order. "
        "A name occurs once for each session.",
        default_factory=list,
    )
    unresponsive_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) with a process that did not answer within a second. The sessions of "
        "such a process end if it answers again within ten minutes. Empty if all processes "
        "answered.",
        default_factory=list,
    )


@strawberry.input(description="Input of sessionDrain.")
class SessionDrainInput(Options):
    users: UserSelection = attribute_field("Users whose sessions and tasks the mutation waits for.")
    timeout: Duration = attribute_field(
        "Longest wait, from 0 seconds to 10 minutes.", default=Duration(DEFAULT_DRAIN_TIMEOUT)
    )
    terminate: bool = attribute_field(
        "True ends the sessions, after their running operations and messages, and refuses new "
        "sessions of the users during the wait. Running tasks are not cancelled. False: the users "
        "can go on.",
        default=False,
    )


@strawberry.type(description="Payload of sessionDrain.")
class SessionDrainPayload(MutationPayload):
    users: list[User] = attribute_field(
        "The selected users, who have no session and no running task. Empty: the mutation failed.",
        default_factory=list,
    )


def _validated_session_ids_or_none(
    info: Info, input_object: SessionTerminateInput
) -> list[int] | None:
    """Return the IDs of the sessions in the input, None if it has none.

    Raises InvalidInput if the input also has users, or tokens are to be revoked.
    """
    if not isinstance(input_object.sessions, list):
        return None
    for name, is_given in (
        ("users", bool(input_object.users)),
        ("revokeTokens", input_object.revoke_tokens),
    ):
        if is_given:
            text = f"`sessions` excludes `{name}`."
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=[name])
    return ids_from_refs(info, input_object.sessions, "sessions")


@strawberry.type
class SessionMutation:
    @mutation(
        "Ends sessions of the signed-in user, or of users that the caller manages, on all nodes. "
        "Sessions are WebSockets, event streams, and connections by SMTP, submission and LMTP. "
        "Access tokens stay valid, so that clients can connect again, unless `revokeTokens` is "
        "true. An ADMIN can also end sessions without a user, if the field `sessions` names them. "
        "The security log of each user has an entry. NO_SESSION if all nodes answer, none has "
        "such a session, and no token was revoked. LIMIT_REACHED for more than 1,000 references "
        "(by default).",
        scope=Scope.FULL,
        access=MANAGED,
        atomic_exclusion=AtomicExclusion("The end of sessions", forbids_idempotency_key=True),
        cost=SESSION_COST,
    )
    async def session_terminate(
        self, info: Info, input: SessionTerminateInput
    ) -> SessionTerminatePayload:
        ctx = info.context
        request = TerminationRequest(
            user_selector_from_selection(input.users or None),
            _validated_session_ids_or_none(info, input),
            SessionTermination(input.reason or None, is_forced=input.force),
            revokes_tokens=input.revoke_tokens,
            caller_session_id=getattr(ctx, "live_session_id", None),
        )
        result = await terminate.terminate_sessions_and_write_security_log(ctx, request)
        return SessionTerminatePayload(
            terminated_count=result.ended_count,
            pending_count=result.pending_count,
            usernames=list(result.usernames),
            unresponsive_nodes=list(result.unresponsive_nodes),
        )

    @mutation(
        "Waits until users have no session on any node and no running task, and returns these "
        "users. With `terminate`, it ends their sessions and refuses new ones during the wait. At "
        "the timeout, it returns the error IN_USE with the numbers of sessions and tasks that "
        "remain. If none is known but a node has not answered, the error is UNAVAILABLE. The "
        "session that sends the mutation doesn't count, and is not ended. With `validateOnly` it "
        "does not wait: what remains is an error at once. LIMIT_REACHED for more than 1,000 users "
        "(by default).",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
        atomic_exclusion=AtomicExclusion("A wait for sessions", forbids_idempotency_key=True),
        cost=SESSION_COST,
    )
    async def session_drain(self, info: Info, input: SessionDrainInput) -> SessionDrainPayload:
        ctx = info.context
        if not timedelta() <= input.timeout <= MAX_DRAIN_TIMEOUT:
            raise InvalidInput(
                "The timeout must be from PT0S to PT10M.",
                constraint=ValidationConstraint.RANGE,
                path=["timeout"],
            )
        if deadline := getattr(ctx, "field_deadline", None):
            deadline.extend(input.timeout.total_seconds())
        request = DrainRequest(
            user_selector_from_selection(input.users),
            input.timeout,
            terminates=input.terminate,
            caller_session_id=getattr(ctx, "live_session_id", None),
        )
        rows = await drain.wait_until_drained_and_load_users(ctx, request)
        return SessionDrainPayload(users=[User.from_row(row) for row in rows])
