"""Mutations of vacation replies."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.autoreply.types import Autoreply
from graph.types.errors import Options, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.scalars import Duration, EmailAddress
from graph.users.payloads import UsersPayload
from graph.users.types import User
from models.users.roles import Scope
from resolvers.autoreply import autoreplies
from resolvers.autoreply.validation import SETTABLE_COLUMNS
from resolvers.users import loaders as user_loaders


@strawberry.input(
    description=(
        "New values of an autoreply (vacation reply). An absent field leaves the value unchanged, "
        "or has the default in a new autoreply. Null sets the default. At least one field is "
        "required."
    )
)
class AutoreplyPatch(RestrictionsInput):
    restriction_fields = frozenset({"addresses"})
    enabled: strawberry.Maybe[bool] = attribute_field(
        "True turns the autoreply on, false turns it off. A new autoreply is off unless this is "
        "true. An enabled autoreply requires a text in `text`, `html`, `internalText` or "
        "`internalHtml`. After it is turned on, senders who already got a reply get one again."
    )
    name: strawberry.Maybe[str | None] = attribute_field(
        "Display name in From, one line of at most 128 characters. Null or empty: the name of the "
        "user or address."
    )
    subject: strawberry.Maybe[str | None] = attribute_field(
        "Subject of the reply, one line of at most 2 KiB. Null or empty: `Auto: Re:` and the "
        "original subject."
    )
    text: strawberry.Maybe[str | None] = attribute_field(
        "Plain text of the reply, at most 128 KiB. Null or empty: it is made from `html`."
    )
    html: strawberry.Maybe[str | None] = attribute_field(
        "HTML of the reply, at most 128 KiB. Null or empty: none."
    )
    internal_subject: strawberry.Maybe[str | None] = attribute_field(
        "Subject for senders of the same domain or of its active alias domains, at most 2 KiB. "
        "Null: `subject`. Empty: `Auto: Re:` and the original subject."
    )
    internal_text: strawberry.Maybe[str | None] = attribute_field(
        "Plain text for senders of the same domain or of its active alias domains, at most 128 "
        "KiB. If `internalText` and `internalHtml` are both null, these senders get `text` and "
        "`html`. If one is not null but neither has a text, they get no reply. If only "
        "`internalText` is null, it is made from `internalHtml`."
    )
    internal_html: strawberry.Maybe[str | None] = attribute_field(
        "HTML for senders of the same domain or of its active alias domains, at most 128 KiB. If "
        "`internalText` and `internalHtml` are both null, these senders get `text` and `html`. If "
        "one is not null but neither has a text, they get no reply. If only `internalHtml` is "
        "null, the reply has no HTML."
    )
    starts_at: strawberry.Maybe[datetime | None] = attribute_field(
        "Start of the period of replies. Null: replies start at once."
    )
    ends_at: strawberry.Maybe[datetime | None] = attribute_field(
        "End of the period of replies, after `startsAt`. Null: no end."
    )
    addresses: strawberry.Maybe[list[EmailAddress] | None] = attribute_field(
        "Addresses of the user to which mail is answered, at most 50. They can be set for one user "
        "only, and not for the autoreply of an address. An address of another user is NOT_FOUND. "
        "An address that only a catch-all receives is an error, and so is an empty list. Null: "
        "mail to any address is answered."
    )
    interval: strawberry.Maybe[Duration | None] = attribute_field(
        "Minimum time between two replies to one sender, PT1H to P366D. Null: the setting "
        "`autoreply.interval`, P1D by default."
    )

    def to_column_values(self) -> dict[str, object]:
        """Return the values that the input sets, by column. Absent fields are left out."""
        names = SETTABLE_COLUMNS
        return {name: change.value for name in names if (change := getattr(self, name))}


@strawberry.input(description="Input of autoreplySet.")
class AutoreplySetInput(Options):
    users: UserSelection | None = attribute_field(
        "Users to change. Default: the signed-in user.", default=UNSET
    )
    set: AutoreplyPatch = attribute_field(
        "New values of the autoreplies. At least one value is required."
    )


@strawberry.input(description="Input of autoreplyDelete.")
class AutoreplyDeleteInput(Options):
    users: UserSelection = attribute_field("Users whose autoreply is deleted.")


@strawberry.type(description="Payload of autoreplySet.")
class AutoreplySetPayload(UserSelectionPayload):
    autoreplies: list[Autoreply] = attribute_field(
        "Autoreplies after the change, also of users whose autoreply had these values already. "
        "Each belongs to the user at the same position of `users`.",
        default_factory=list,
    )
    users: list[User] = attribute_field(
        "Users of the autoreplies. The account that was created first is first.",
        default_factory=list,
    )


@strawberry.type
class AutoreplyMutation:
    @mutation(
        "Creates or changes the autoreplies (vacation or out-of-office replies) of users, all or "
        "none. A user without an autoreply gets one, which is off unless `enabled` is true. If "
        "subjects, texts or times change, or an autoreply is turned on, senders who already got a "
        "reply get one again. CONFLICT if another request moves a user to another domain at the "
        "same time: retry. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def autoreply_set(self, info: Info, input: AutoreplySetInput) -> AutoreplySetPayload:
        ctx = info.context
        keys = await autoreplies.set_autoreplies(
            ctx, user_selector_from_selection(input.users), input.set.to_column_values()
        )
        replies = await ctx.load_many(autoreplies.load_visible_autoreplies_by_user, keys)
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return AutoreplySetPayload(
            autoreplies=[Autoreply.from_row(reply) for reply in replies if reply],
            users=[User.from_row(row) for row in rows if row],
        )

    @mutation(
        "Deletes the autoreplies (vacation or out-of-office replies) of users with their texts, "
        "periods and lists of answered senders, all or none. A user without an autoreply is no "
        "error. CONFLICT if another request moves a user to another domain at the same time: "
        "retry. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def autoreply_delete(self, info: Info, input: AutoreplyDeleteInput) -> UsersPayload:
        ctx = info.context
        keys = await autoreplies.delete_autoreplies(ctx, user_selector_from_selection(input.users))
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])
