"""Mutation that ends live connections."""

from collections.abc import Collection

import strawberry

from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, users_named
from models.errors import Invalid
from models.users.roles import Scope
from resolvers.auth import sessions

REASON_MAX = 120  # characters


@strawberry.input(description="Input of sessionKick.")
class SessionKickInput(Options):
    users: UserSelection | None = leaf("Whose; default: the viewer's.", default=strawberry.UNSET)
    reason: str | None = leaf("Shown to those who are sent away.", default=strawberry.UNSET)
    force: bool = leaf("Also where a query or mutation is being answered.", default=False)
    revoke_tokens: bool = leaf("End all their tokens too.", default=False)


@strawberry.type(description="Answer of sessionKick.")
class SessionKickPayload(MutationPayload):
    kicked: int = leaf(
        "Connections to this process; those to others end within a second.", default=0
    )
    results: list[str] = leaf(
        "User names, once for each connection that ends.", default_factory=list
    )


@strawberry.type
class SessionMutation:
    @mutation(
        "End WebSockets and event streams: one's own, or of users one manages. Nobody there = "
        "NO_SESSION, unless tokens were ended or other processes may hold connections.",
        scope=Scope.MASTER,
    )
    async def session_kick(self, info: Info, input: SessionKickInput) -> SessionKickPayload:
        ctx, reason = info.context, input.reason or None
        if reason and (len(reason) > REASON_MAX or not reason.isprintable()):
            text = f"at most {REASON_MAX} printable characters"
            raise Invalid(text, constraint="length", path=["reason"])
        users = users_named(input.users or None)
        live = getattr(ctx, "live", None)

        def has_connection(accounts: Collection[int]) -> bool:
            return bool(live and live.of(accounts))

        revoke_tokens = input.revoke_tokens
        usernames_by_id = await sessions.kick(
            ctx, users, revoke_tokens=revoke_tokens, connected=has_connection
        )
        connections = live.of(usernames_by_id) if live else []
        if live:
            ctx.afterwards(lambda: live.kick(usernames_by_id, reason, force=input.force))
        results = [usernames_by_id[viewer.user_id or viewer.pending_for] for viewer in connections]
        return SessionKickPayload(kicked=len(connections), results=sorted(results))
