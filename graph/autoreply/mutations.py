"""Mutations of vacation replies."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.autoreply.types import Autoreply
from graph.types.errors import Options, UserSelectionPayload, leaf
from graph.types.fields import Info
from graph.types.input_conditions import Restrictions
from graph.types.mutations import mutation
from graph.types.references import UserSelection, users_named
from graph.types.scalars import Duration, EmailAddress
from graph.users.types import User
from graph.users.update_mutations import UsersPayload
from models.users.roles import Scope
from resolvers.autoreply import autoreplies
from resolvers.autoreply.validation import FACTS
from resolvers.users import loaders as user_loaders


@strawberry.input(description="What is answered; absent = unchanged, null = the default.")
class AutoreplyInput(Restrictions):
    restrictions = frozenset({"addresses"})
    enabled: strawberry.Maybe[bool] = leaf("Switch. Another absence begins with it.")
    name: strawberry.Maybe[str | None] = leaf(
        "In From, at most 128 characters; null = that of the account or address."
    )
    subject: strawberry.Maybe[str | None] = leaf("At most 2 KiB; empty = that of the original.")
    text: strawberry.Maybe[str | None] = leaf("Plain text, at most 128 KiB.")
    html: strawberry.Maybe[str | None] = leaf("HTML, at most 128 KiB.")
    internal_subject: strawberry.Maybe[str | None] = leaf(
        "To senders of the own domain, at most 2 KiB."
    )
    internal_text: strawberry.Maybe[str | None] = leaf("Plain text to them, at most 128 KiB.")
    internal_html: strawberry.Maybe[str | None] = leaf("HTML to them, at most 128 KiB.")
    starts_at: strawberry.Maybe[datetime | None] = leaf("Null = at once.")
    ends_at: strawberry.Maybe[datetime | None] = leaf("Null = no end.")
    addresses: strawberry.Maybe[list[EmailAddress] | None] = leaf(
        "Only mail to these is answered, at most 50 of the account; null = to any."
    )
    interval: strawberry.Maybe[Duration | None] = leaf(
        "One answer per sender in that time, PT1H to P366D; for answers from now on."
    )

    def given(self) -> dict[str, object]:
        """Return the values that the input sets, by column. Absent fields are left out."""
        names = FACTS
        return {name: change.value for name in names if (change := getattr(self, name))}


@strawberry.input(description="Input of autoreplySet.")
class AutoreplySetInput(Options):
    users: UserSelection | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    set: AutoreplyInput = leaf("What to change.")


@strawberry.input(description="Names accounts.")
class UsersInput(Options):
    users: UserSelection = leaf("Which.")


@strawberry.type(description="Answer of autoreplySet.")
class AutoreplySetPayload(UserSelectionPayload):
    autoreplies: list[Autoreply] = leaf("What is answered now.", default_factory=list)
    users: list[User] = leaf("The accounts, in the same order.", default_factory=list)


@strawberry.type
class AutoreplyMutation:
    @mutation(
        "Sets or changes what is answered while somebody is away. Where words or times differ, "
        "or it is switched on, all senders are answered once more.",
        scope=Scope.SETTINGS,
    )
    async def autoreply_set(self, info: Info, input: AutoreplySetInput) -> AutoreplySetPayload:
        ctx = info.context
        keys = await autoreplies.set_(ctx, users_named(input.users), input.set.given())
        replies = await ctx.load_all(autoreplies.of_users, keys)
        rows = await ctx.load_all(user_loaders.by_ids, keys)
        return AutoreplySetPayload(
            autoreplies=[Autoreply.of(reply) for reply in replies if reply],
            users=[User.of(row) for row in rows if row],
        )

    @mutation("Forgets text and times: nothing is answered.", scope=Scope.SETTINGS)
    async def autoreply_delete(self, info: Info, input: UsersInput) -> UsersPayload:
        ctx = info.context
        keys = await autoreplies.remove(ctx, users_named(input.users))
        rows = await ctx.load_all(user_loaders.by_ids, keys)
        return UsersPayload(users=[User.of(row) for row in rows if row])
