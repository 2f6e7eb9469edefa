"""Payloads with users, which several mutations return."""

import strawberry

from graph.types.errors import MutationPayload, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.users.types import User
from resolvers.users import loaders as user_loaders


@strawberry.type(
    description="Payload of userCreate, and of mutations that change the second factors of a user."
)
class UserPayload(MutationPayload):
    user: User | None = attribute_field(
        "Created or changed user. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of mutations that create or change accounts.")
class UsersPayload(UserSelectionPayload):
    users: list[User] = attribute_field(
        "Created accounts in the order of the input, or all selected accounts, also those that "
        "already had the values. Empty if the mutation failed.",
        default_factory=list,
    )


async def load_users_payload(info: Info, user_ids: list[int]) -> UsersPayload:
    """Load users that were changed and return the payload with them."""
    rows = await info.context.load_many(user_loaders.load_visible_users_by_id, user_ids)
    return UsersPayload(users=[User.from_row(row) for row in rows if row])
