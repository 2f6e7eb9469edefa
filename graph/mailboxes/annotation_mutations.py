"""Mutations of mailbox annotations."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.inputs import USERS_DESCRIPTION
from graph.mailboxes.types import Annotation
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from models.users.roles import AdminPermission, Scope
from resolvers.mailboxes import annotations


@strawberry.input(description="Input of mailboxAnnotationSet.")
class MailboxAnnotationSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field(
        "Mailbox that gets the annotation. Each selected user must own such a mailbox."
    )
    key: str = attribute_field(
        "Name of the annotation (RFC 5464). Case is ignored. It begins with `/private/` or "
        "`/shared/`, and has at most 255 ASCII characters without `*` and `%`."
    )
    value: str = attribute_field(
        "Text of the annotation, by default at most 65,536 bytes in UTF-8. An empty text is stored."
    )


@strawberry.input(description="Input of mailboxAnnotationDelete.")
class MailboxAnnotationDeleteInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field(
        "Mailbox with the annotation. Each selected user must own such a mailbox: one that another "
        "user shares is NOT_FOUND."
    )
    key: str = attribute_field(
        "Name of the annotation (RFC 5464). Case is ignored. It begins with `/private/` or "
        "`/shared/`, and has at most 255 ASCII characters without `*` and `%`."
    )


@strawberry.type(description="Payload of mailboxAnnotationSet.")
class MailboxAnnotationSetPayload(MutationPayload):
    annotations: list[Annotation] = attribute_field(
        "Annotation of each mailbox, also if it had this text already.", default_factory=list
    )


@strawberry.type(description="Payload of mailboxAnnotationDelete.")
class MailboxAnnotationDeletePayload(MutationPayload):
    keys: list[str] = attribute_field(
        "Name of the deleted annotation, once for each mailbox that had it.", default_factory=list
    )


@strawberry.type
class MailboxAnnotationsMutation:
    @mutation(
        "Sets one annotation (RFC 5464) in one mailbox of each selected user, for all users or "
        "none. An existing annotation with this name gets the new text. The mailbox must belong to "
        "the selected user: NOT_FOUND for a mailbox that another user shares. LIMIT_REACHED for a "
        "new annotation of a mailbox that has 100, or for more than 1,000 users (by default). "
        "QUOTA_EXCEEDED if the annotation does not fit into the storage quota of its user.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_annotation_set(
        self, info: Info, input: MailboxAnnotationSetInput
    ) -> MailboxAnnotationSetPayload:
        user_selector = user_selector_from_selection(input.users or None)
        entry = (input.key, input.value)
        entries_set = await annotations.set_annotation_in_each_account(
            info.context, mailbox_selector_from_ref(input.mailbox), entry, user_selector
        )
        return MailboxAnnotationSetPayload(
            annotations=[Annotation(key=key, value=value) for key, value in entries_set]
        )

    @mutation(
        "Deletes an annotation (RFC 5464) from one mailbox in the account of each selected user, "
        "for all users or none. A missing annotation is no error; a missing mailbox is NOT_FOUND, "
        "and so is one that another user shares. LIMIT_REACHED for more than 1,000 users (by "
        "default).",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_annotation_delete(
        self, info: Info, input: MailboxAnnotationDeleteInput
    ) -> MailboxAnnotationDeletePayload:
        user_selector = user_selector_from_selection(input.users or None)
        deleted_keys = await annotations.delete_annotation_where_present(
            info.context, mailbox_selector_from_ref(input.mailbox), input.key, user_selector
        )
        return MailboxAnnotationDeletePayload(keys=deleted_keys)
