"""Mutations that change mailboxes and subscriptions."""

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import WHOSE, MailboxesPayload, payload
from graph.types.errors import Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    named,
    owner_named,
    users_named,
)
from graph.types.scalars import Duration
from models.mailboxes.tables import SpecialUse
from models.users.roles import Scope
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.update import Updated
from resolvers.users.selection import Users

FACTS = ("hidden", "retention", "subscribed", "special_use", "encrypt_messages")


@strawberry.input(description="What to change on folders; absent = unchanged, null = cleared.")
class MailboxPatch:
    hidden: strawberry.Maybe[bool] = leaf("Not opened by IMAP; INBOX always is.")
    retention: strawberry.Maybe[Duration | None] = leaf(
        "How long messages added here are kept: from 1 second to 36,500 days; null or PT0S keeps "
        "them for ever."
    )
    subscribed: strawberry.Maybe[bool] = leaf("IMAP subscription.")
    encrypt_messages: strawberry.Maybe[bool] = leaf(
        "Encrypt what arrives to the key of the account, which it needs."
    )
    special_use: strawberry.Maybe[SpecialUse | None] = leaf(
        "Role of the one folder; another one that has it loses it. Drafts, Junk, Sent and Trash "
        "always have a folder."
    )


@strawberry.input(description="Input of mailboxUpdate.")
class MailboxUpdateInput(Options):
    user: UserRef | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    mailboxes: list[MailboxRef] = leaf("The folders.")
    set: MailboxPatch = leaf("What to change.")
    apply_retention: bool = leaf(
        "The retention is also that of the messages that are there, from the day they were put "
        "there.",
        default=False,
    )


@strawberry.input(description="Input of mailboxSubscribe and mailboxUnsubscribe.")
class MailboxSubscribeInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    paths: list[str] = leaf("Full paths; there need not be a folder.")


@strawberry.type
class MailboxUpdateMutation:
    @mutation("Hidden, retention, subscription, role, encryption: all or none.", scope=Scope.MAIL)
    async def mailbox_update(self, info: Info, input: MailboxUpdateInput) -> MailboxesPayload:
        owner = await owner_named(info, input.user or None)
        fields = {name: getattr(input.set, name) for name in FACTS}
        request = Updated(
            [
                named(ref, path="mailboxes", index=index)
                for index, ref in enumerate(input.mailboxes)
            ],
            {name: change.value for name, change in fields.items() if change},
            apply=input.apply_retention,
        )
        user_selector = Users() if owner is None else Users(ids=(owner,))
        result = await mailbox_update.change(info.context, request, user_selector)
        payload_with_task = payload(result.rows)
        payload_with_task.task = Task.maybe(result.task)
        return payload_with_task

    @mutation("The paths need not exist.", scope=Scope.MAIL)
    async def mailbox_subscribe(self, info: Info, input: MailboxSubscribeInput) -> MailboxesPayload:
        return await _subscribe(info, input, subscribed=True)

    @mutation("The paths need not exist.", scope=Scope.MAIL)
    async def mailbox_unsubscribe(
        self, info: Info, input: MailboxSubscribeInput
    ) -> MailboxesPayload:
        return await _subscribe(info, input, subscribed=False)


async def _subscribe(
    info: Info, input: MailboxSubscribeInput, *, subscribed: bool
) -> MailboxesPayload:
    """Subscribe to the paths of the input, or unsubscribe from them."""
    user_selector = users_named(input.users or None)
    rows = await subscription_mutations.subscribe(
        info.context, input.paths, user_selector, subscribed=subscribed
    )
    return payload(rows)
