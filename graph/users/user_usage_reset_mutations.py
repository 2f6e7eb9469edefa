"""Mutation that resets usage counters."""

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.payloads import UsersPayload, load_users_payload
from models.errors import InvalidInput
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import UsageKind
from models.validation_constraints import ValidationConstraint
from resolvers.users.quota import user_usage_reset


@strawberry.input(description="Input of userUsageReset.")
class UserUsageResetInput(Options):
    users: UserSelection = attribute_field("Accounts whose counters are reset.")
    kinds: list[UsageKind] | None = attribute_field(
        "Counters to reset. Default: all. An empty list is the error VALIDATION.", default=UNSET
    )


@strawberry.type
class UserUsageResetMutation:
    @mutation(
        "Resets counters of accounts to 0: recipients, received messages, forwarded messages and "
        "automatic replies. It resets those of all selected accounts or none. The limits stay. It "
        "does not reset the count of the rate limit for sending: `rateLimitReset` does. It does "
        "not change the used storage: `quotaRecalculate` corrects it. LIMIT_REACHED for more than "
        "1,000 accounts (by default). CONFLICT if another request moves a user to another domain "
        "at the same time: retry.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        admin_permission=AdminPermission.RATE_LIMITS,
        access=MANAGED,
    )
    async def user_usage_reset(self, info: Info, input: UserUsageResetInput) -> UsersPayload:
        kinds = input.kinds if isinstance(input.kinds, list) else list(UsageKind)
        if not kinds:
            text = "A counter is required. Omit the field to reset all counters."
            raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["kinds"])
        keys = await user_usage_reset.reset_usage(
            info.context, user_selector_from_selection(input.users), set(kinds)
        )
        return await load_users_payload(info, keys)
