"""Mutations of vacation replies."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.autoreply.types import Autoreply
from graph.types.errors import Options, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import mutation
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.scalars import Duration, EmailAddress
from graph.users.types import User
from graph.users.update_mutations import UsersPayload
from models.users.roles import Scope
from resolvers.autoreply import autoreplies
from resolvers.autoreply.validation import SETTABLE_COLUMNS
from resolvers.users import loaders as user_loaders


@strawberry.input(description="What is answered; absent = unchanged, null = the default.")
class AutoreplyInput(RestrictionsInput):
    restriction_fields = frozenset({"addresses"})
    enabled: strawberry.Maybe[bool] = attribute_field("Switch. Another absence begins with it.")
    name: strawberry.Maybe[str | None] = attribute_field(
        "In From, at most 128 characters; null = that of the account or address."
    )
    subject: strawberry.Maybe[str | None] = attribute_field(
        "At most 2 KiB; empty = that of the original."
    )
    text: strawberry.Maybe[str | None] = attribute_field("Plain text, at most 128 KiB.")
    html: strawberry.Maybe[str | None] = attribute_field("HTML, at most 128 KiB.")
    internal_subject: strawberry.Maybe[str | None] = attribute_field(
        "To senders of the own domain, at most 2 KiB."
    )
    internal_text: strawberry.Maybe[str | None] = attribute_field(
        "Plain text to them, at most 128 KiB."
    )
    internal_html: strawberry.Maybe[str | None] = attribute_field("HTML to them, at most 128 KiB.")
    starts_at: strawberry.Maybe[datetime | None] = attribute_field("Null = at once.")
    ends_at: strawberry.Maybe[datetime | None] = attribute_field("Null = no end.")
    addresses: strawberry.Maybe[list[EmailAddress] | None] = attribute_field(
        "Only mail to these is answered, at most 50 of the account; null = to any."
    )
    interval: strawberry.Maybe[Duration | None] = attribute_field(
        "One answer per sender in that time, PT1H to P366D; for answers from now on."
    )

    def to_column_values(self) -> dict[str, object]:
        """Return the values that the input sets, by column. Absent fields are left out."""
        names = SETTABLE_COLUMNS
        return {name: change.value for name in names if (change := getattr(self, name))}


@strawberry.input(description="Input of autoreplySet.")
class AutoreplySetInput(Options):
    users: UserSelection | None = attribute_field("Whose; nothing = the viewer's.", default=UNSET)
    set: AutoreplyInput = attribute_field("What to change.")


@strawberry.input(description="Names accounts.")
class UsersInput(Options):
    users: UserSelection = attribute_field("Which.")


@strawberry.type(description="Answer of autoreplySet.")
class AutoreplySetPayload(UserSelectionPayload):
    autoreplies: list[Autoreply] = attribute_field("What is answered now.", default_factory=list)
    users: list[User] = attribute_field("The accounts, in the same order.", default_factory=list)


@strawberry.type
class AutoreplyMutation:
    @mutation(
        "Sets or changes what is answered while somebody is away. Where words or times differ, "
        "or it is switched on, all senders are answered once more.",
        scope=Scope.SETTINGS,
    )
    async def autoreply_set(self, info: Info, input: AutoreplySetInput) -> AutoreplySetPayload:
        ctx = info.context
        keys = await autoreplies.set_autoreplies(
            ctx, user_selector_from_selection(input.users), input.set.to_column_values()
        )
        replies = await ctx.load_many(autoreplies.load_autoreplies_by_user, keys)
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return AutoreplySetPayload(
            autoreplies=[Autoreply.from_row(reply) for reply in replies if reply],
            users=[User.from_row(row) for row in rows if row],
        )

    @mutation("Forgets text and times: nothing is answered.", scope=Scope.SETTINGS)
    async def autoreply_delete(self, info: Info, input: UsersInput) -> UsersPayload:
        ctx = info.context
        keys = await autoreplies.delete_autoreplies(ctx, user_selector_from_selection(input.users))
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])
