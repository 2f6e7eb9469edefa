"""Mutations of mailbox annotations."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import WHOSE, MetadataEntry
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MailboxRef, UserSelection, named, users_named
from models.users.roles import Scope
from resolvers.mailboxes import metadata


@strawberry.input(description="Input of mailboxMetadataSet.")
class MailboxMetadataSetInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailbox: MailboxRef = leaf("The folder.")
    key: str = leaf("/private/… or /shared/…, in any case.")
    value: str = leaf("At most 64 KiB.")


@strawberry.input(description="Input of mailboxMetadataUnset.")
class MailboxMetadataUnsetInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailbox: MailboxRef = leaf("The folder.")
    key: str = leaf("/private/… or /shared/…, in any case.")


@strawberry.type(description="Answer of mailboxMetadataSet.")
class MailboxMetadataSetPayload(MutationPayload):
    entries: list[MetadataEntry] = leaf("As they are now.", default_factory=list)


@strawberry.type(description="Answer of mailboxMetadataUnset.")
class MailboxMetadataUnsetPayload(MutationPayload):
    keys: list[str] = leaf("The names that were there.", default_factory=list)


@strawberry.type
class MailboxMetadataMutation:
    @mutation("One annotation, of a folder of each account.", scope=Scope.MAIL)
    async def mailbox_metadata_set(
        self, info: Info, input: MailboxMetadataSetInput
    ) -> MailboxMetadataSetPayload:
        user_selector = users_named(input.users or None)
        entry = (input.key, input.value)
        entries_set = await metadata.put(info.context, named(input.mailbox), entry, user_selector)
        entries = [MetadataEntry(key=key, value=value) for key, value in entries_set]
        return MailboxMetadataSetPayload(entries=entries)

    @mutation("One annotation, of a folder of each account.", scope=Scope.MAIL)
    async def mailbox_metadata_unset(
        self, info: Info, input: MailboxMetadataUnsetInput
    ) -> MailboxMetadataUnsetPayload:
        user_selector = users_named(input.users or None)
        deleted_keys = await metadata.drop(
            info.context, named(input.mailbox), input.key, user_selector
        )
        return MailboxMetadataUnsetPayload(keys=deleted_keys)
