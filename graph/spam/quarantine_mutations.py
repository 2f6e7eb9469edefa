"""Mutations that release and delete quarantined messages, and set their notifications."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.messages.types import Message
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, keys_of, users_named
from graph.users.update_mutations import UsersPayload, payload_of
from models.users.roles import Scope, UserPermission
from models.users.tables import Frequency
from resolvers.messages import loaders as message_loaders
from resolvers.spam import quarantine_mutations
from resolvers.spam.quarantine_mutations import Beside

HELD: dict[str, Any] = {"scope": Scope.SETTINGS, "user_permission": UserPermission.QUARANTINE}


@strawberry.input(description="Input of quarantineRelease.")
class QuarantineReleaseInput(Options):
    ids: list[strawberry.ID] = leaf("The held messages, at most 100.")
    learn_ham: bool = leaf(
        "Have the spam filter learn that they are good mail, where it learns; what holds a virus "
        "it does not learn.",
        default=True,
    )
    allow_sender: bool = leaf(
        "Also make a rule for each owner that mail of these authors is no spam; takes SPAM_POLICY.",
        default=False,
    )


@strawberry.type(description="Answer of quarantineRelease.")
class QuarantineReleasePayload(MutationPayload):
    messages: list[Message] = leaf(
        "As they lie there, in the order of ids; without those that rules have sent on instead, "
        "and those that the viewer sees none of.",
        default_factory=list,
    )


@strawberry.input(description="Input of quarantineNotificationSet.")
class QuarantineNotificationSetInput(Options):
    users: UserSelection | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    frequency: Frequency = leaf("How long a letter waits for more that is held.")


@strawberry.type
class QuarantineMutation:
    @mutation(
        "Lets held messages in after all, all or none: where filters and the script of the account "
        "want them, or else into INBOX. Nothing is answered. What holds a virus only an "
        "administrator lets in.",
        **HELD,
    )
    async def quarantine_release(
        self, info: Info, input: QuarantineReleaseInput
    ) -> QuarantineReleasePayload:
        keys = await quarantine_mutations.release(
            info.context,
            keys_of(info, "QuarantineItem", input.ids),
            Beside(learn_ham=input.learn_ham, allow_sender=input.allow_sender),
        )
        rows = await info.context.load_all(message_loaders.by_ids, keys)
        return QuarantineReleasePayload(messages=[Message.of(row) for row in rows if row])

    @mutation("Deletes held messages: all or none.", **HELD)
    async def quarantine_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await quarantine_mutations.remove(info.context, keys_of(info, "QuarantineItem", input.ids))
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "How often letters tell of held messages.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.QUARANTINE_NOTIFICATION,
    )
    async def quarantine_notification_set(
        self, info: Info, input: QuarantineNotificationSetInput
    ) -> UsersPayload:
        user_selector = users_named(input.users or None)
        keys = await quarantine_mutations.set_notification(
            info.context, user_selector, input.frequency
        )
        return await payload_of(info, keys)
