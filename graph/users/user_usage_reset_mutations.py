"""Mutation that resets usage counters."""

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.types import User
from models.errors import InvalidInput
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import UsageKind
from models.validation_constraints import ValidationConstraint
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import user_usage_reset


@strawberry.input(description="Input of userUsageReset.")
class UserUsageResetInput(Options):
    users: UserSelection = attribute_field("Whose.")
    kinds: list[UsageKind] | None = attribute_field("Which counters; absent = all.", default=UNSET)


@strawberry.type(description="Answer of userUsageReset.")
class UserUsageResetPayload(UserSelectionPayload):
    users: list[User] = attribute_field("The accounts, as they are now.", default_factory=list)


@strawberry.type
class UserUsageResetMutation:
    @mutation(
        "Lets counters of limits begin anew: recipients, messages received, automatic answers. "
        "What is stored is counted by quotaRecalculate.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        admin_permission=AdminPermission.RATE_LIMITS,
    )
    async def user_usage_reset(
        self, info: Info, input: UserUsageResetInput
    ) -> UserUsageResetPayload:
        kinds = input.kinds if isinstance(input.kinds, list) else list(UsageKind)
        if not kinds:
            text = "name a counter, or leave it out for all"
            raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["kinds"])
        keys = await user_usage_reset.reset_usage(
            info.context, user_selector_from_selection(input.users), set(kinds)
        )
        rows = await info.context.load_many(user_loaders.load_visible_users_by_id, keys)
        return UserUsageResetPayload(users=[User.from_row(row) for row in rows if row])
