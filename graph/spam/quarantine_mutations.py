"""Mutations that release and delete quarantined messages, and set their notifications."""

from typing import Any

import strawberry

from graph.messages.import_mutations import MessagesPayload
from graph.messages.types import Message
from graph.types.errors import DeletePayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ObjectRef, ids_from_refs
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.messages import loaders as message_loaders
from resolvers.spam import quarantine_mutations
from resolvers.spam.quarantine_mutations import ReleaseOptions

QUARANTINE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.QUARANTINE,
}


@strawberry.input(one_of=True, description="Reference to one quarantined message.")
class QuarantineItemRef(ObjectRef):
    pass


@strawberry.input(description="Input of quarantineDelete.")
class QuarantineDeleteInput(Options):
    quarantine_items: list[QuarantineItemRef] = attribute_field(
        "Quarantined messages to delete, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of quarantineRelease.")
class QuarantineReleaseInput(Options):
    quarantine_items: list[QuarantineItemRef] = attribute_field(
        "Quarantined messages to release, 1 to 100."
    )
    learn_ham: bool = attribute_field(
        "True lets a background worker train the spam filter with the messages as ham, "
        "except those with a virus and those that were only redirected. Default: true.",
        default=True,
    )
    allow_sender: bool = attribute_field(
        "True creates a sender rule with the action ALLOW for the owner of each message. Its "
        "pattern is the From address, or the envelope sender if From is empty. An existing rule "
        "with this pattern becomes ALLOW. A USER or DOMAIN_ADMIN needs the permission "
        "SENDER_RULES. Default: false.",
        default=False,
    )


@strawberry.type
class QuarantineMutation:
    @mutation(
        "Releases at most 100 messages from the quarantine, all or none. More are VALIDATION, and "
        "more than 1,000 (by default) LIMIT_REACHED. Filters and the Sieve script of the user run "
        "and select the mailbox, by default INBOX. A message that they would reject or discard is "
        "stored. The user's redirects and forwards are sent, except for a message with a virus. "
        "Copies of BCC rules and a DSN that the sender requested are sent too. A message that a "
        "connector fetched is neither forwarded nor copied by BCC rules. A redirect that would be "
        "a mail loop is left out, and the message stored. No automatic reply is sent. By default "
        "the messages train the spam filter as ham (`learnHam`). Releasing a message with a virus "
        "requires the role DOMAIN_ADMIN. QUOTA_EXCEEDED if a message does not fit into the "
        "account. RATE_LIMITED if a limit of forwarded mail is reached. UNAVAILABLE if a message "
        "can't be encrypted to the OpenPGP key of the account. LIMIT_REACHED if `allowSender` "
        "would create too many sender rules.",
        **QUARANTINE_GUARD,
        access=MANAGED.with_permissions(AdminPermission.QUARANTINE).with_scope(Scope.FULL),
    )
    async def quarantine_release(
        self, info: Info, input: QuarantineReleaseInput
    ) -> MessagesPayload:
        item_ids = ids_from_refs(info, input.quarantine_items, "quarantineItems")
        keys = await quarantine_mutations.release_quarantined_messages(
            info.context,
            item_ids,
            ReleaseOptions(learn_ham=input.learn_ham, allow_sender=input.allow_sender),
        )
        rows = await info.context.load_many(message_loaders.load_visible_by_ids, keys)
        return MessagesPayload(messages=[Message.from_row(row) for row in rows if row])

    @mutation(
        "Deletes quarantined messages, all or none. They can't be restored, and do not train the "
        "spam filter. LIMIT_REACHED for more than 1,000 references (by default).",
        **QUARANTINE_GUARD,
        access=MANAGED.with_permissions(AdminPermission.QUARANTINE).with_scope(Scope.FULL),
    )
    async def quarantine_delete(self, info: Info, input: QuarantineDeleteInput) -> DeletePayload:
        item_ids = ids_from_refs(info, input.quarantine_items, "quarantineItems")
        await quarantine_mutations.delete_quarantined_messages(info.context, item_ids)
        return DeletePayload.of_keys("QuarantineItem", item_ids)
