"""Mutation that makes clients read all their data again."""

import strawberry
from strawberry import UNSET

from graph.http.admission_control import ConnectionRegistry
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.payloads import UsersPayload
from graph.users.types import User
from models.users.roles import Scope, UserPermission
from resolvers.context import Context
from resolvers.users import client_reset


@strawberry.input(description="Input of userSyncReset.")
class UserSyncResetInput(Options):
    users: UserSelection | None = attribute_field(
        "Accounts whose clients synchronize again. Default: the signed-in user.", default=UNSET
    )


@strawberry.type
class ClientResetMutation:
    @mutation(
        "Makes clients of this API synchronize accounts from the beginning, for all accounts or "
        "none. The mutation ends their WebSocket connections and event streams and makes every "
        "journal cursor invalid, so that subscriptions report a RESYNC. Passwords, access tokens "
        "and API keys stay valid. Default: the signed-in user. LIMIT_REACHED for more than 1,000 "
        "accounts (by default).",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.SYNC_RESET,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def user_sync_reset(self, info: Info, input: UserSyncResetInput) -> UsersPayload:
        selector = user_selector_from_selection(input.users or None)
        ctx: Context = info.context
        live: ConnectionRegistry | None = getattr(ctx, "live", None)
        rows = await client_reset.end_connections_and_invalidate_cursors(ctx, selector)
        if live:  # other processes notice the reset at their next check
            user_ids = [row.id for row in rows]
            ctx.call_after_commit_or_now(
                lambda: live.disconnect_users(
                    user_ids, "client state reset", cancels_operations=False
                )
            )
        return UsersPayload(users=[User.from_row(row) for row in rows])
