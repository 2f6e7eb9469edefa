"""GraphQL types, queries and mutations of mailboxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.shares import MailboxShare, UserSummary
from graph.messages.filter_inputs import MessageFilter, MessageListRequest, MessageOrder
from graph.messages.types import MessageConnection, load_message_page
from graph.types import global_ids
from graph.types.connections import PageArguments
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField, Link
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    load_user_or_viewer_id,
    mailbox_selector_from_ref,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link, row_link
from graph.types.scalars import BigInt, ByteSize, Duration
from mail.mailboxes import paths
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import SpecialUse
from models.users.roles import Scope
from resolvers.mailboxes import annotations, child_mailboxes, rename, shares
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.mailboxes.rename import MailboxRename
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

USERS_DESCRIPTION = "Whose; nothing = the viewer's."


@strawberry.type(description="An annotation (RFC 5464).")
class Annotation:
    key: str = attribute_field("Such as /private/comment.")
    value: str | None = attribute_field("Text.")


def _entry_name_without_scope(entry_name: str) -> str:
    """Return the name of an annotation without /private/ or /shared/."""
    return entry_name.split("/", 2)[2]


def _parent_key(row: Any) -> tuple[int, str] | None:
    """Return the user id and path of the parent mailbox; None at the top."""
    parent_path = row.path.rpartition("/")[0]
    return (row.user_id, parent_path) if parent_path else None


PARENT_LINK = Link(
    ("id", "user_id", "path"),
    _parent_key,
    mailbox_loaders.load_by_paths,
    lambda row: row,
    key_in_same_list=lambda row: (row.user_id, row.path),
)


@strawberry.type(description="Folder.", directives=[Auth(scope=Scope.MAIL_READ)])
class Mailbox(NodeView):
    object_id: str = attribute_field(
        "MAILBOXID (RFC 8474): 32 hexadecimal digits that stay when the mailbox is renamed."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Owner; null of a folder that is shared with the viewer.",
    )
    owner: UserSummary = link(
        "user_id",
        shares.load_user_names,
        UserSummary.from_row_or_none,
        description="What its owner is called.",
    )
    name: str = attribute_field("Last part of path.")
    path: str = attribute_field("Full path, slashes.")
    path_utf7: str = attribute_field("Path in IMAP's modified UTF-7.")
    special_use: SpecialUse | None = attribute_field("Role of the folder.")
    modseq: BigInt = attribute_field("Highest modification sequence of its messages.")
    uid_validity: BigInt = attribute_field("IMAP.")
    uid_next: BigInt = attribute_field("Next uid.")
    subscribed: bool = attribute_field("IMAP subscription.")
    hidden: bool = attribute_field("Not opened by IMAP.")
    encrypt_messages: bool = attribute_field(
        "What arrives here is encrypted to the key of its owner."
    )
    retention: Duration | None = attribute_field("Life of messages added here.")
    message_count: BigInt = attribute_field("Number of messages in the mailbox.")
    unseen_count: BigInt = attribute_field("Number of messages without the flag \\Seen.")
    size: ByteSize = attribute_field("Size of all messages in the mailbox, in bytes.")
    parent: Optional["Mailbox"] = row_link(
        replace(
            PARENT_LINK,
            object_from_row=lazy_view_factory("graph.mailboxes.types", "Mailbox"),
            is_item=True,
        ),
        description="Folder above.",
    )
    parent_id: strawberry.ID | None = row_link(
        replace(
            PARENT_LINK, object_from_row=lambda row: row and global_ids.encode("Mailbox", row.id)
        ),
        description="Id of the folder above; null at the top, or if the viewer can't see it.",
    )

    load_batch = staticmethod(mailbox_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Mailbox"),
        "message_count": DerivedField(("total",), BigInt),
        "unseen_count": DerivedField(("unseen",), BigInt),
        "name": DerivedField(("path",), lambda path: path.rpartition("/")[2]),
        "path_utf7": DerivedField(("path",), paths.modified_utf7),
        "retention": DerivedField(
            ("retention",),
            lambda seconds: timedelta(seconds=seconds) if seconds else None,
        ),
    }

    @field("What the viewer may do in it: all for the owner, else what is shared.", "id", "user_id")
    async def my_rights(self, info: Info) -> list[ShareRight]:
        key = (self.row.user_id, self.row.id)
        return mailbox_rights.sorted_rights(
            await info.context.load(mailbox_rights.load_rights, key)
        )

    @field("Whom it is shared with; who has no ADMIN sees the own share alone.", "id")
    async def shares(self, info: Info) -> list[MailboxShare]:
        rows = await info.context.load(shares.load_shares_by_mailbox, self.row.id)
        return [MailboxShare.from_row(row) for row in rows]

    @field("Annotations, by name; of others' folders the /shared/ ones.", "id")
    async def annotations(
        self,
        info: Info,
        prefix: Annotated[
            str | None, strawberry.argument(description="Only names that begin so.")
        ] = UNSET,
        prepend_prefix: bool = False,
    ) -> list[Annotation]:
        rows = await info.context.load(annotations.load_annotations_by_mailbox, self.row.id)
        return [
            Annotation(
                key=row.key if prepend_prefix else _entry_name_without_scope(row.key),
                value=row.value,
            )
            for row in rows
            if row.key.startswith((prefix or "").lower())
        ]

    @field("One annotation.", "id")
    async def annotation(
        self,
        info: Info,
        key: Annotated[
            str,
            strawberry.argument(
                description="Name of the annotation (RFC 5464), which begins with `/private/` or "
                "`/shared/`, in any case."
            ),
        ],
    ) -> Annotation | None:
        name = annotations.validate_key(key)
        row = await info.context.load(annotations.load_annotations_by_key, (self.row.id, name))
        return Annotation(key=row.key, value=row.value) if row else None

    @field("Messages, newest first.", "user_id")
    async def messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: MessageOrder = MessageOrder.RECEIVED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(filter, order_by, PageArguments(first, after, last, before))
        return await load_message_page(
            info, request, user_ids=[self.row.user_id], mailbox_id=self.row.id
        )


@strawberry.type(description="Sums of the counters of several mailboxes.")
class MailboxTotals:
    message_count: BigInt = attribute_field("Number of messages in the mailboxes.")
    unseen_count: BigInt = attribute_field("Number of messages without the flag \\Seen.")
    size: ByteSize = attribute_field("Size of all messages, in bytes.")


@strawberry.input(description="Input of mailboxCreate.")
class MailboxCreateInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    paths: list[str] = attribute_field("Full paths; missing parents are made.")
    parent: MailboxRef | None = attribute_field(
        "The folder that paths begin below; another's, in which one has CREATE, by its id. "
        "What is made is shared as it is.",
        default=UNSET,
    )
    hidden: bool = attribute_field("Not opened by IMAP.", default=False)
    retention: Duration | None = attribute_field(
        "How long messages added here are kept: from 1 second to 36,500 days; PT0S keeps them for "
        "ever. Default: the retention of the account.",
        default=UNSET,
    )
    subscribe: bool = attribute_field("Subscribe new folders.", default=True)
    encrypt_messages: bool = attribute_field(
        "Encrypt what arrives in them to the key of the account, which it needs.", default=False
    )
    object_id: str | None = attribute_field(
        "MAILBOXID of the new mailbox: 32 hexadecimal digits. Allowed with one path and one user. "
        "Default: a random one.",
        default=UNSET,
    )
    special_use: SpecialUse | None = attribute_field(
        "Role of the folder, with one path.", default=UNSET
    )


@strawberry.input(description="Input of mailboxRename.")
class MailboxRenameInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field("The folder.")
    new_path: str = attribute_field("Children move along.")
    rename_subscriptions: bool = attribute_field(
        "Whether subscriptions to the old path become subscriptions to the new one.", default=True
    )


@strawberry.input(description="Input of mailboxDelete.")
class MailboxDeleteInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailboxes: list[MailboxRef] = attribute_field("The folders.")
    require_empty: bool = attribute_field("CONFLICT when not.", default=False)
    recursive: bool = attribute_field("With children.", default=False)
    unsubscribe: bool = attribute_field("Their paths are no longer subscribed to.", default=True)


@strawberry.type(description="Answer of mailbox mutations.")
class MailboxesPayload(MutationPayload):
    mailboxes: list[Mailbox] = attribute_field("The folders.", default_factory=list)
    task: Task | None = attribute_field(
        "Work on many messages; null when done at once.", default=None
    )


@strawberry.type
class MailboxQuery:
    @query("One folder, or null.", scope=Scope.MAIL_READ)
    async def mailbox(
        self,
        info: Info,
        by: MailboxRef,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="Owner of the mailbox. Default: the signed-in user, or the owner of "
                "the mailbox that an ID names."
            ),
        ] = UNSET,
    ) -> Mailbox | None:
        owner = await load_user_or_viewer_id(info, user) if user else None
        if user and owner is None:
            return None
        name = mailbox_selector_from_ref(by, path="by")
        return Mailbox.from_row_or_none(
            await mailbox_loaders.find_visible(info.context, name, owner)
        )


def mailboxes_payload(rows: Sequence[Any]) -> MailboxesPayload:
    """Return the payload of a mutation that changed these mailboxes."""
    return MailboxesPayload(mailboxes=[Mailbox.from_row(row) for row in rows])


@strawberry.type
class MailboxMutation:
    @mutation("One or many, all or none.", scope=Scope.MAIL)
    async def mailbox_create(self, info: Info, input: MailboxCreateInput) -> MailboxesPayload:
        new = NewMailboxes(
            input.paths,
            is_hidden=input.hidden,
            retention=value_or_none(input.retention),
            is_subscribed=input.subscribe,
            encrypt_messages=input.encrypt_messages,
            special_use=input.special_use or None,
            object_id=input.object_id if isinstance(input.object_id, str) else None,
        )
        user_selector = user_selector_from_selection(input.users or None)
        if input.parent:
            parent = mailbox_selector_from_ref(input.parent, path="parent")
            return mailboxes_payload(
                await child_mailboxes.create_child_mailboxes(
                    info.context, new, parent, user_selector
                )
            )
        return mailboxes_payload(
            await mailbox_loaders.create_mailboxes(info.context, new, user_selector)
        )

    @mutation("Move or rename, with all that is below.", scope=Scope.MAIL)
    async def mailbox_rename(self, info: Info, input: MailboxRenameInput) -> MailboxesPayload:
        request = MailboxRename(
            mailbox_selector_from_ref(input.mailbox), input.new_path, input.rename_subscriptions
        )
        user_selector = user_selector_from_selection(input.users or None)
        return mailboxes_payload(await rename.rename_mailbox(info.context, request, user_selector))

    @mutation(
        "Deletes mailboxes. Their messages become deleted messages, which can be restored. INBOX "
        "and mailboxes with a special use can't be deleted.",
        scope=Scope.MAIL,
    )
    async def mailbox_delete(self, info: Info, input: MailboxDeleteInput) -> DeletePayload:
        request = MailboxDeletion(
            [
                mailbox_selector_from_ref(ref, path="mailboxes", index=index)
                for index, ref in enumerate(input.mailboxes)
            ],
            is_recursive=input.recursive,
            requires_empty=input.require_empty,
            deletes_subscriptions=input.unsubscribe,
        )
        deleted_keys = await mailbox_delete.delete_mailboxes(
            info.context, request, user_selector_from_selection(input.users or None)
        )
        return DeletePayload(
            deleted_ids=[global_ids.encode("Mailbox", key) for key in deleted_keys]
        )
