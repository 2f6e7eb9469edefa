"""Mutation that deletes the data that browser clients store for a user."""

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.payloads import UsersPayload
from graph.users.types import User
from models.users.roles import Scope, UserPermission
from resolvers.users import user_preferences_reset


@strawberry.input(description="Input of userPreferencesReset.")
class UserPreferencesResetInput(Options):
    users: UserSelection | None = attribute_field(
        "Accounts whose preferences are deleted. Default: the signed-in user.", default=UNSET
    )


@strawberry.type
class UserPreferencesResetMutation:
    @mutation(
        "Deletes the preferences that web mail clients store for accounts, all or none. These are "
        "all entries whose key begins with `ui/`, in every key-value store of the accounts. "
        "Default: the signed-in user. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.PREFERENCES_RESET,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def user_preferences_reset(
        self, info: Info, input: UserPreferencesResetInput
    ) -> UsersPayload:
        rows = await user_preferences_reset.delete_browser_client_data(
            info.context, user_selector_from_selection(input.users or None)
        )
        return UsersPayload(users=[User.from_row(row) for row in rows])
