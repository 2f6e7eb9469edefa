"""Mutations of mailbox annotations."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import USERS_DESCRIPTION, Annotation
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from models.users.roles import Scope
from resolvers.mailboxes import annotations


@strawberry.input(description="Input of mailboxAnnotationSet.")
class MailboxAnnotationSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field("The folder.")
    key: str = attribute_field("/private/… or /shared/…, in any case.")
    value: str = attribute_field("At most 64 KiB.")


@strawberry.input(description="Input of mailboxAnnotationDelete.")
class MailboxAnnotationDeleteInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field("The folder.")
    key: str = attribute_field("/private/… or /shared/…, in any case.")


@strawberry.type(description="Answer of mailboxAnnotationSet.")
class MailboxAnnotationSetPayload(MutationPayload):
    annotations: list[Annotation] = attribute_field(
        "The annotation of each mailbox, after the mutation.", default_factory=list
    )


@strawberry.type(description="Answer of mailboxAnnotationDelete.")
class MailboxAnnotationDeletePayload(MutationPayload):
    keys: list[str] = attribute_field("The names that were there.", default_factory=list)


@strawberry.type
class MailboxAnnotationsMutation:
    @mutation("One annotation, of a folder of each account.", scope=Scope.MAIL)
    async def mailbox_annotation_set(
        self, info: Info, input: MailboxAnnotationSetInput
    ) -> MailboxAnnotationSetPayload:
        user_selector = user_selector_from_selection(input.users or None)
        entry = (input.key, input.value)
        entries_set = await annotations.set_annotation(
            info.context, mailbox_selector_from_ref(input.mailbox), entry, user_selector
        )
        return MailboxAnnotationSetPayload(
            annotations=[Annotation(key=key, value=value) for key, value in entries_set]
        )

    @mutation("One annotation, of a folder of each account.", scope=Scope.MAIL)
    async def mailbox_annotation_delete(
        self, info: Info, input: MailboxAnnotationDeleteInput
    ) -> MailboxAnnotationDeletePayload:
        user_selector = user_selector_from_selection(input.users or None)
        deleted_keys = await annotations.delete_annotation(
            info.context, mailbox_selector_from_ref(input.mailbox), input.key, user_selector
        )
        return MailboxAnnotationDeletePayload(keys=deleted_keys)
