"""Mutations that change mailboxes and subscriptions."""

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import USERS_DESCRIPTION, MailboxesPayload, mailboxes_payload
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    load_named_user_id,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from graph.types.scalars import Duration
from models.mailboxes.tables import SpecialUse
from models.users.roles import Scope
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.update import MailboxUpdate
from resolvers.users.selection import UserSelector

UPDATE_FIELDS = ("hidden", "retention", "subscribed", "special_use", "encrypt_messages")


@strawberry.input(description="What to change on folders; absent = unchanged, null = cleared.")
class MailboxPatch:
    hidden: strawberry.Maybe[bool] = attribute_field("Not opened by IMAP; INBOX always is.")
    retention: strawberry.Maybe[Duration | None] = attribute_field(
        "How long messages added here are kept: from 1 second to 36,500 days; null or PT0S keeps "
        "them for ever."
    )
    subscribed: strawberry.Maybe[bool] = attribute_field("IMAP subscription.")
    encrypt_messages: strawberry.Maybe[bool] = attribute_field(
        "Encrypt what arrives to the key of the account, which it needs."
    )
    special_use: strawberry.Maybe[SpecialUse | None] = attribute_field(
        "Role of the one folder; another one that has it loses it. Drafts, Junk, Sent and Trash "
        "always have a folder."
    )


@strawberry.input(description="Input of mailboxUpdate.")
class MailboxUpdateInput(Options):
    user: UserRef | None = attribute_field("Whose; nothing = the viewer's.", default=UNSET)
    mailboxes: list[MailboxRef] = attribute_field("The folders.")
    set: MailboxPatch = attribute_field("What to change.")
    apply_retention: bool = attribute_field(
        "The retention is also that of the messages that are there, from the day they were put "
        "there.",
        default=False,
    )


MAILBOXES_TO_SUBSCRIBE = (
    "The mailboxes of each user. A reference by path can name a mailbox that doesn't exist."
)


@strawberry.input(description="Input of mailboxSubscribe.")
class MailboxSubscribeInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailboxes: list[MailboxRef] = attribute_field(MAILBOXES_TO_SUBSCRIBE)


@strawberry.input(description="Input of mailboxUnsubscribe.")
class MailboxUnsubscribeInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailboxes: list[MailboxRef] = attribute_field(MAILBOXES_TO_SUBSCRIBE)


@strawberry.type
class MailboxUpdateMutation:
    @mutation("Hidden, retention, subscription, role, encryption: all or none.", scope=Scope.MAIL)
    async def mailbox_update(self, info: Info, input: MailboxUpdateInput) -> MailboxesPayload:
        owner = await load_named_user_id(info, input.user or None)
        fields = {name: getattr(input.set, name) for name in UPDATE_FIELDS}
        request = MailboxUpdate(
            [
                mailbox_selector_from_ref(ref, path="mailboxes", index=index)
                for index, ref in enumerate(input.mailboxes)
            ],
            {name: change.value for name, change in fields.items() if change},
            applies_retention=input.apply_retention,
        )
        user_selector = UserSelector() if owner is None else UserSelector(ids=(owner,))
        result = await mailbox_update.update_mailboxes(info.context, request, user_selector)
        payload_with_task = mailboxes_payload(result.mailboxes)
        payload_with_task.task = Task.from_row_or_none(result.task)
        return payload_with_task

    @mutation("Subscribes users to mailboxes, as IMAP SUBSCRIBE does.", scope=Scope.MAIL)
    async def mailbox_subscribe(self, info: Info, input: MailboxSubscribeInput) -> MailboxesPayload:
        return await _set_subscription(info, input, is_subscribed=True)

    @mutation("Unsubscribes users from mailboxes, as IMAP UNSUBSCRIBE does.", scope=Scope.MAIL)
    async def mailbox_unsubscribe(
        self, info: Info, input: MailboxUnsubscribeInput
    ) -> MailboxesPayload:
        return await _set_subscription(info, input, is_subscribed=False)


async def _set_subscription(
    info: Info, input: MailboxSubscribeInput | MailboxUnsubscribeInput, *, is_subscribed: bool
) -> MailboxesPayload:
    """Subscribe to the mailboxes of the input, or unsubscribe from them."""
    selectors = [
        mailbox_selector_from_ref(ref, path="mailboxes", index=index)
        for index, ref in enumerate(input.mailboxes)
    ]
    user_selector = user_selector_from_selection(input.users or None)
    rows = await subscription_mutations.set_subscribed(
        info.context, selectors, user_selector, is_subscribed=is_subscribed
    )
    return mailboxes_payload(rows)
