"""Mutations that change mailboxes and subscriptions."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import MailboxesPayload, mailboxes_payload
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    MailboxRef,
    UserSelection,
    is_true,
    mailbox_selectors_from_refs,
    user_selector_from_selection,
)
from graph.types.scalars import Duration
from graph.users.limits import limit_value
from models.errors import InvalidInput
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.update import MailboxUpdate

UPDATE_FIELDS = ("hidden", "subscribed", "special_use", "encrypt_messages")


@strawberry.input(
    description=("Changes to mailboxes. An omitted field is unchanged. At least one must be given.")
)
class MailboxPatch:
    hidden: strawberry.Maybe[bool] = attribute_field(
        "True: lists and totals omit the mailboxes unless `showHidden` is true, and they can't be "
        "renamed or deleted. Not allowed for INBOX."
    )
    retention: strawberry.Maybe[Duration | None] = attribute_field(
        "Time after which messages that are added to the mailboxes are deleted: 1 second to "
        "36,500 days. Null: messages are kept for ever."
    )
    inherit_retention: strawberry.Maybe[bool] = attribute_field(
        "True: the mailboxes get the retention of the account, also when it changes later. True "
        "together with `retention` is the error VALIDATION. False changes nothing: to end the "
        "inheritance, give `retention`. False as the only field is the error VALIDATION."
    )
    subscribed: strawberry.Maybe[bool] = attribute_field(
        "True subscribes the owner of the mailboxes to them, as SUBSCRIBE in IMAP. False ends the "
        "subscription."
    )
    encrypt_messages: strawberry.Maybe[bool] = attribute_field(
        "True encrypts messages that are delivered, imported or sent into the mailboxes from now "
        "on, except drafts and messages that are moved there. False encrypts them only if the "
        "account encrypts all messages. For true, the owner needs an OpenPGP key."
    )
    special_use: strawberry.Maybe[SpecialUse | None] = attribute_field(
        "Special use that the mailbox gets (RFC 6154). A value is allowed with one mailbox "
        "reference only. Another mailbox of the user that has it loses it. Null removes it, also "
        "from several mailboxes. The special uses DRAFTS, JUNK, SENT and TRASH can't be removed or "
        "replaced by another use: set them on another mailbox. The use INBOX can neither be given "
        "nor removed."
    )

    def to_validated_column_values(self) -> dict[str, Any]:
        """Return the values that the patch sets, by column. Absent fields are left out."""
        fields = {name: getattr(self, name) for name in UPDATE_FIELDS}
        values = {name: change.value for name, change in fields.items() if change}
        if self.retention:
            values["retention"] = limit_value(self.retention.value)
        if is_true(self.inherit_retention):
            if self.retention:
                raise InvalidInput(
                    "`inheritRetention` can't be combined with a retention of the mailbox.",
                    constraint=ValidationConstraint.EXCLUSIVE,
                    path=["set", "inheritRetention"],
                )
            values["retention"] = None
        return values


@strawberry.input(description="Input of mailboxUpdate.")
class MailboxUpdateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose mailboxes are changed. Default: the signed-in user.", default=UNSET
    )
    mailboxes: list[MailboxRef] = attribute_field(
        "Mailboxes to change, at least one. Each selected user must own all of them: one that "
        "another user shares is NOT_FOUND. By default at most 1,000 mailboxes of all users "
        "together (LIMIT_REACHED)."
    )
    set: MailboxPatch = attribute_field("Values to change, at least one.")
    apply_retention: bool = attribute_field(
        "True also sets the expiry of existing messages, counted from the time they were added to "
        "the mailbox. A retention of null removes it. For more than 1,000 messages (by default) a "
        "task does it. Requires `set.retention` or `set.inheritRetention`. Default: false.",
        default=False,
    )


@strawberry.input(description="Input of mailboxSubscribe.")
class MailboxSubscribeInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who subscribe to the mailboxes. Default: the signed-in user.",
        default=UNSET,
    )
    mailboxes: list[MailboxRef] = attribute_field(
        "Mailboxes that each selected user subscribes to from now on, 1 to 1,000 by default. A "
        "path can name a mailbox that does not exist yet. A special use or MAILBOXID must exist "
        "for each user, and an ID fits only one user. A mailbox that another user shares is "
        "NOT_FOUND."
    )


@strawberry.input(description="Input of mailboxUnsubscribe.")
class MailboxUnsubscribeInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose subscriptions end. Default: the signed-in user.",
        default=UNSET,
    )
    mailboxes: list[MailboxRef] = attribute_field(
        "Mailboxes that each selected user no longer subscribes to, 1 to 1,000 by default. A path "
        "can name a mailbox that does not exist. A special use or MAILBOXID must exist for each "
        "user, and an ID fits only one user. A mailbox that another user shares is NOT_FOUND."
    )


@strawberry.type
class MailboxUpdateMutation:
    @mutation(
        "Changes the visibility, retention, subscription, special use or encryption of mailboxes, "
        "for each selected user: all or none. FORBIDDEN_OPERATION to hide INBOX, or to set or "
        "remove its special use. FORBIDDEN_OPERATION also to remove or replace the special use "
        "DRAFTS, JUNK, SENT or TRASH: set it on another mailbox instead. A mailbox that another "
        "user shares is NOT_FOUND. LIMIT_REACHED for more than 1,000 users, or more than 1,000 "
        "mailboxes of all users together (by default).",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
        cost=LONG_MUTATION_COST,
    )
    async def mailbox_update(self, info: Info, input: MailboxUpdateInput) -> MailboxesPayload:
        request = MailboxUpdate(
            mailbox_selectors_from_refs(input.mailboxes),
            input.set.to_validated_column_values(),
            applies_retention=input.apply_retention,
        )
        user_selector = user_selector_from_selection(input.users or None)
        result = await mailbox_update.update_mailboxes(info.context, request, user_selector)
        payload = mailboxes_payload(result.mailboxes)
        payload.tasks = [Task.from_row(task) for task in result.tasks]
        return payload

    @mutation(
        "Subscribes users to mailboxes, as the IMAP command SUBSCRIBE does: all or none. A path "
        "can also name a mailbox that does not exist. A user has at most 1,500 (by default) "
        "subscriptions without a mailbox, else LIMIT_REACHED. A subscription that exists already "
        "is no error. LIMIT_REACHED also for more than 1,000 mailboxes or users (by default). "
        "Mailboxes that are not named by path are counted for all users together.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_subscribe(self, info: Info, input: MailboxSubscribeInput) -> MailboxesPayload:
        return await _set_subscription(info, input, is_subscribed=True)

    @mutation(
        "Ends subscriptions of users to mailboxes, as the IMAP command UNSUBSCRIBE does: all or "
        "none. A missing subscription is no error. LIMIT_REACHED for more than 1,000 mailboxes or "
        "users (by default).",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_unsubscribe(
        self, info: Info, input: MailboxUnsubscribeInput
    ) -> MailboxesPayload:
        return await _set_subscription(info, input, is_subscribed=False)


async def _set_subscription(
    info: Info, input: MailboxSubscribeInput | MailboxUnsubscribeInput, *, is_subscribed: bool
) -> MailboxesPayload:
    """Subscribe to the mailboxes of the input, or unsubscribe from them."""
    selectors = mailbox_selectors_from_refs(input.mailboxes)
    user_selector = user_selector_from_selection(input.users or None)
    rows = await subscription_mutations.set_subscribed(
        info.context, selectors, user_selector, is_subscribed=is_subscribed
    )
    return mailboxes_payload(rows)
