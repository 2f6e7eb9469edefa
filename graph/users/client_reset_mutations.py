"""Mutation that makes clients read all their data again."""

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, UserSelectionPayload, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, users_named
from graph.users.types import User
from models.users.roles import Scope, UserPermission
from resolvers.users import client_reset


@strawberry.input(description="Input of clientStateReset.")
class ClientStateResetInput(Options):
    users: UserSelection | None = leaf("Which accounts; absent = the viewer's.", default=UNSET)


@strawberry.type(description="Answer of clientStateReset.")
class ClientStateResetPayload(UserSelectionPayload):
    users: list[User] = leaf("The accounts.", default_factory=list)


@strawberry.type
class ClientResetMutation:
    @mutation(
        "Ends connections, and makes every journal cursor of the accounts stale: clients fetch "
        "afresh.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.CLIENT_RESET,
    )
    async def client_state_reset(
        self, info: Info, input: ClientStateResetInput
    ) -> ClientStateResetPayload:
        selector = users_named(input.users or None)
        ctx, live = info.context, getattr(info.context, "live", None)
        rows = await client_reset.reset(ctx, selector)
        if live:  # other processes notice the reset at their next check
            user_ids = [row.id for row in rows]
            ctx.afterwards(lambda: live.kick(user_ids, "client state reset", force=False))
        return ClientStateResetPayload(users=[User.of(row) for row in rows])
