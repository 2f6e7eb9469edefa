"""Mutation that ends live connections."""

from collections.abc import Collection

import strawberry

from graph.http.admission_control import ConnectionRegistry
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, user_selector_from_selection
from models.errors import InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.auth import sessions

MAX_REASON_LENGTH = 120  # characters


@strawberry.input(description="Input of sessionTerminate.")
class SessionTerminateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose connections end. Default: the signed-in user.", default=strawberry.UNSET
    )
    reason: str | None = attribute_field(
        "Text that the disconnected clients receive: at most 120 printable characters.",
        default=strawberry.UNSET,
    )
    force: bool = attribute_field(
        "Cancels running queries and mutations. If false, a connection ends after "
        "its running operations.",
        default=False,
    )
    revoke_tokens: bool = attribute_field(
        "Revokes all access tokens of these users.", default=False
    )


@strawberry.type(description="Payload of sessionTerminate.")
class SessionTerminatePayload(MutationPayload):
    terminated_count: int = attribute_field(
        "Number of connections to this process. Connections to other processes end "
        "within a second and are not counted.",
        default=0,
    )
    usernames: list[str] = attribute_field(
        "User name of each connection that ends, in alphabetical order. A name "
        "occurs once for each connection.",
        default_factory=list,
    )


@strawberry.type
class SessionMutation:
    @mutation(
        "Disconnects the WebSockets and event streams of the signed-in user, or of "
        "users that the caller manages. The error NO_SESSION is returned if there "
        "is no connection, no token was revoked, and no other process can have "
        "connections.",
        scope=Scope.FULL,
    )
    async def session_terminate(
        self, info: Info, input: SessionTerminateInput
    ) -> SessionTerminatePayload:
        ctx, reason = info.context, input.reason or None
        if reason and (len(reason) > MAX_REASON_LENGTH or not reason.isprintable()):
            text = f"at most {MAX_REASON_LENGTH} printable characters"
            raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["reason"])
        users = user_selector_from_selection(input.users or None)
        live: ConnectionRegistry | None = getattr(ctx, "live", None)

        def has_connection(accounts: Collection[int]) -> bool:
            return bool(live and live.viewers_of_users(accounts))

        revoke_tokens = input.revoke_tokens
        usernames_by_id = await sessions.end_sessions_and_return_usernames(
            ctx, users, revoke_tokens=revoke_tokens, is_any_connected=has_connection
        )
        connections = live.viewers_of_users(usernames_by_id) if live else []
        if live:
            ctx.call_after_commit(
                lambda: live.disconnect_users(
                    usernames_by_id, reason, cancels_operations=input.force
                )
            )
        usernames = [
            usernames_by_id[viewer.user_id or viewer.pending_user_id] for viewer in connections
        ]
        return SessionTerminatePayload(
            terminated_count=len(connections), usernames=sorted(usernames)
        )
