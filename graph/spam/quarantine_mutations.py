"""Mutations that release and delete quarantined messages, and set their notifications."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.messages.types import Message
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.update_mutations import UsersPayload, load_users_payload
from models.users.roles import Scope, UserPermission
from models.users.tables import Frequency
from resolvers.messages import loaders as message_loaders
from resolvers.spam import quarantine_mutations
from resolvers.spam.quarantine_mutations import ReleaseOptions

QUARANTINE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.QUARANTINE,
}


@strawberry.input(one_of=True, description="Names one quarantined message.")
class QuarantineItemRef(ObjectRef):
    pass


@strawberry.input(description="Input of quarantineDelete.")
class QuarantineDeleteInput(Options):
    quarantine_items: list[QuarantineItemRef] = attribute_field(
        "The quarantined messages to delete."
    )


@strawberry.input(description="Input of quarantineRelease.")
class QuarantineReleaseInput(Options):
    quarantine_items: list[QuarantineItemRef] = attribute_field(
        "The quarantined messages to release: 1 to 100."
    )
    learn_ham: bool = attribute_field(
        "Trains the spam filter with the messages as ham. Messages with a virus are left out.",
        default=True,
    )
    allow_sender: bool = attribute_field(
        "Creates a sender rule for each user that allows the address in From. "
        "Requires the permission SPAM_POLICY.",
        default=False,
    )


@strawberry.type(description="Payload of quarantineRelease.")
class QuarantineReleasePayload(MutationPayload):
    messages: list[Message] = attribute_field(
        "The delivered messages, in the order of the references. Messages that a "
        "filter redirected without a copy, and messages that the caller can't see, "
        "are missing.",
        default_factory=list,
    )


@strawberry.input(description="Input of quarantineNotificationSet.")
class QuarantineNotificationSetInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who receive the digests. Default: the signed-in user.", default=UNSET
    )
    frequency: Frequency = attribute_field(
        "Time from the first unlisted message to the next digest."
    )


@strawberry.type
class QuarantineMutation:
    @mutation(
        "Releases messages from the quarantine, all or none. Filters and the Sieve "
        "script of the user select the mailbox; the default is INBOX. No automatic "
        "reply is sent. Releasing a message with a virus requires the role "
        "DOMAIN_ADMIN.",
        **QUARANTINE_GUARD,
    )
    async def quarantine_release(
        self, info: Info, input: QuarantineReleaseInput
    ) -> QuarantineReleasePayload:
        item_ids = ids_from_refs(info, input.quarantine_items, "quarantineItems")
        keys = await quarantine_mutations.release_messages(
            info.context,
            item_ids,
            ReleaseOptions(learn_ham=input.learn_ham, allow_sender=input.allow_sender),
        )
        rows = await info.context.load_many(message_loaders.load_visible_by_ids, keys)
        return QuarantineReleasePayload(messages=[Message.from_row(row) for row in rows if row])

    @mutation("Deletes quarantined messages, all or none.", **QUARANTINE_GUARD)
    async def quarantine_delete(self, info: Info, input: QuarantineDeleteInput) -> DeletePayload:
        item_ids = ids_from_refs(info, input.quarantine_items, "quarantineItems")
        await quarantine_mutations.delete_messages(info.context, item_ids)
        return DeletePayload.of_keys("QuarantineItem", item_ids)

    @mutation(
        "Updates how often users receive a digest of quarantined messages.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.QUARANTINE_NOTIFICATION,
    )
    async def quarantine_notification_set(
        self, info: Info, input: QuarantineNotificationSetInput
    ) -> UsersPayload:
        user_selector = user_selector_from_selection(input.users or None)
        keys = await quarantine_mutations.set_digest_frequency(
            info.context, user_selector, input.frequency
        )
        return await load_users_payload(info, keys)
