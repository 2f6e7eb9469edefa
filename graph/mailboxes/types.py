"""GraphQL types, queries and mutations of mailboxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.inputs import MailboxCreateInput, MailboxDeleteInput, MailboxRenameInput
from graph.mailboxes.shares import MailboxShare, UserSummary
from graph.messages.filter_inputs import MessageFilter, MessageListRequest
from graph.messages.message_order import MessageOrder
from graph.messages.types import MessageConnection, load_message_page
from graph.types import global_ids
from graph.types.connections import PageArguments
from graph.types.errors import DeletePayload, MutationPayload, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_views import DerivedField, Link
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_visible_user_id,
    mailbox_selector_from_ref,
    mailbox_selectors_from_refs,
    user_selector_from_selection,
)
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link, row_link
from graph.types.scalars import BigInt, ByteSize, Duration
from graph.users.limits import limit_value
from mail.mailboxes import paths
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Scope
from resolvers.mailboxes import annotations, child_mailboxes, rename, shares
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.rename import MailboxRename
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Annotation of a mailbox (RFC 5464).")
class Annotation:
    key: str = attribute_field(
        "Name of the annotation in lower case, such as `/private/comment`. "
        "`Mailbox.annotations` returns it as "
        "`comment` unless `prependPrefix` is true."
    )
    value: str | None = attribute_field(
        "Text of the annotation, by default at most 65,536 bytes in UTF-8. It is never null."
    )


def _entry_name_without_scope(entry_name: str) -> str:
    """Return the name of an annotation without /private/ or /shared/."""
    return entry_name.split("/", 2)[2]


def _owner_id_and_parent_path_or_none(row: Any) -> tuple[int, str] | None:
    """Return the user id and path of the parent mailbox; None at the top."""
    parent_path = row.path.rpartition("/")[0]
    return (row.user_id, parent_path) if parent_path else None


PARENT_LINK = Link(
    ("id", "user_id", "path"),
    _owner_id_and_parent_path_or_none,
    mailbox_loaders.load_by_paths,
    lambda row: row,
    key_in_same_list=lambda row: (row.user_id, row.path),
)


@strawberry.type(
    description="Mailbox (RFC 9051): a container of messages of one user, which people see as a "
    "folder.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class Mailbox(NodeView):
    object_id: str = attribute_field(
        "MAILBOXID (RFC 8474): 32 hexadecimal digits that stay when the mailbox is renamed."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who owns the mailbox. Null if the caller can't see that account: see "
        "`owner`.",
    )
    owner: UserSummary = link(
        "user_id",
        shares.load_user_names,
        UserSummary.from_row_or_none,
        description="Names of the user who owns the mailbox.",
    )
    name: str = attribute_field("Last level of the path, in Unicode.")
    path: str = attribute_field("Full path of the mailbox in Unicode, with `/` between levels.")
    path_utf7: str = attribute_field(
        "Full path of the mailbox in the modified UTF-7 of IMAP (RFC 3501, section 5.1.3)."
    )
    special_use: SpecialUse | None = attribute_field(
        "Special use of the mailbox (RFC 6154). Null: it has none."
    )
    modseq: BigInt = attribute_field(
        "HIGHESTMODSEQ of the mailbox (RFC 7162): the MODSEQ of the newest change or "
        "removal of a message. 0: there was none. mailboxStateSet can raise it."
    )
    uid_validity: BigInt = attribute_field(
        "UIDVALIDITY of the mailbox (RFC 9051). A UID is valid only as long as this number is "
        "unchanged."
    )
    uid_next: BigInt = attribute_field(
        "UIDNEXT of the mailbox (RFC 9051). The next added message gets this UID or a higher one."
    )
    subscribed: bool = attribute_field(
        "True if the owner subscribes to the mailbox, as with the IMAP command SUBSCRIBE."
    )
    hidden: bool = attribute_field(
        "True if lists of the owner's mailboxes and their totals omit the mailbox unless "
        "`showHidden` is true. `sharedMailboxes` and `mailboxCounters` contain it. A hidden "
        "mailbox can't be renamed or deleted."
    )
    encrypt_messages: bool = attribute_field(
        "True if messages that are delivered, imported or sent into the mailbox are encrypted with "
        "its owner's OpenPGP key. Drafts and messages that are moved there are not. False: only if "
        "the account encrypts all messages."
    )
    retention: Duration | None = attribute_field(
        "Retention of messages that are added to the mailbox from now on: the time from the "
        "addition to the deletion of a message. A mailbox without an own retention has that of the "
        "account. Null: messages are kept for ever."
    )
    retention_inherited: bool = attribute_field(
        "True if the mailbox has no retention of its own: `retention` is that of the account."
    )
    message_count: BigInt = attribute_field("Number of messages in the mailbox.")
    unseen_count: BigInt = attribute_field(
        "Number of unread messages in the mailbox: those without the flag \\Seen."
    )
    size: ByteSize = attribute_field("Size of all messages in the mailbox, in bytes.")
    parent: Optional["Mailbox"] = row_link(
        replace(
            PARENT_LINK,
            object_from_row=lazy_view_factory("graph.mailboxes.types", "Mailbox"),
            is_item=True,
        ),
        description="Mailbox one level above. Null at the top level, or if the caller can't see "
        "the mailbox above.",
    )
    parent_id: strawberry.ID | None = row_link(
        replace(
            PARENT_LINK, object_from_row=lambda row: row and global_ids.encode("Mailbox", row.id)
        ),
        description="Global ID of the mailbox one level above. Null at the top level, or if the "
        "caller can't see the mailbox above.",
    )

    load_batch = staticmethod(mailbox_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Mailbox"),
        "name": DerivedField(("path",), lambda path: path.rpartition("/")[2]),
        "path_utf7": DerivedField(("path",), paths.modified_utf7),
        "retention": DerivedField(
            ("retention",),
            lambda seconds: None if seconds is None else timedelta(seconds=seconds),
        ),
    }

    @field(
        "Rights of the signed-in user on the mailbox (RFC 4314). The owner has all of them. An "
        "administrator of the owner has none, unless the mailbox is shared with the administrator.",
        "id",
        "user_id",
    )
    async def my_rights(self, info: Info) -> list[ShareRight]:
        key = (self.row.user_id, self.row.id)
        return mailbox_rights.sorted_rights(
            await info.context.load(mailbox_rights.load_viewer_rights, key)
        )

    @field(
        "Users that the mailbox is shared with, and their rights. The owner, users with the "
        "right ADMIN and administrators of the owner see all shares; other users see only their "
        "own. At most 100.",
        "id",
    )
    async def shares(self, info: Info) -> list[MailboxShare]:
        rows = await info.context.load(shares.load_visible_shares_by_mailbox, self.row.id)
        return [MailboxShare.from_row(row) for row in rows]

    @field(
        "All annotations of the mailbox (RFC 5464), sorted by name. In a mailbox that another "
        "user shares, the signed-in user sees only those below `/shared/`; an administrator of "
        "that user sees all. At most 100.",
        "id",
    )
    async def annotations(
        self,
        info: Info,
        prefix: Annotated[
            str | None,
            strawberry.argument(
                description=(
                    "Returns only annotations whose full name begins with this text, such as "
                    "`/private/` (case is ignored), also if `prependPrefix` is false. Default: all."
                )
            ),
        ] = UNSET,
        prepend_prefix: Annotated[
            bool,
            strawberry.argument(
                description="True returns full names, such as `/private/comment`; false "
                "returns `comment`. Default: false."
            ),
        ] = False,
    ) -> list[Annotation]:
        rows = await info.context.load(annotations.load_visible_annotations_by_mailbox, self.row.id)
        return [
            Annotation(
                key=row.key if prepend_prefix else _entry_name_without_scope(row.key),
                value=row.value,
            )
            for row in rows
            if row.key.startswith((prefix or "").lower())
        ]

    @field(
        "Annotation of the mailbox with this name (RFC 5464). Null if there is none. One below "
        "`/private/` is also null if another user shares the mailbox with the signed-in user, "
        "unless that user administers the owner.",
        "id",
    )
    async def annotation(
        self,
        info: Info,
        key: Annotated[
            str,
            strawberry.argument(
                description=(
                    "Name of the annotation (RFC 5464), which begins with `/private/` or "
                    "`/shared/` (case is ignored). Another name is an error."
                )
            ),
        ],
    ) -> Annotation | None:
        name = annotations.validate_annotation_key(key)
        row = await info.context.load(
            annotations.load_visible_annotations_by_key, (self.row.id, name)
        )
        return Annotation(key=row.key, value=row.value) if row else None

    @field(
        "Messages in the mailbox. Default: newest first. If another user shares the mailbox "
        "without the right READ, the list is empty.",
        "user_id",
    )
    async def messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: Annotated[
            MessageOrder,
            strawberry.argument(
                description="Sort order of the messages. Default: RECEIVED_AT_DESC, newest first."
            ),
        ] = MessageOrder.RECEIVED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(filter, order_by, PageArguments(first, after, last, before))
        return await load_message_page(
            info, request, user_ids=[self.row.user_id], mailbox_id=self.row.id
        )


@strawberry.type(
    description=(
        "Sums of the counters of several mailboxes. Hidden ones count only if `showHidden` is true."
    )
)
class MailboxTotals:
    message_count: BigInt = attribute_field("Number of messages in the mailboxes.")
    unseen_count: BigInt = attribute_field(
        "Number of unread messages in the mailboxes: those without the flag \\Seen."
    )
    size: ByteSize = attribute_field("Size of all messages in the mailboxes, in bytes.")


@strawberry.type(description="Payload of a mutation that creates or changes mailboxes.")
class MailboxesPayload(MutationPayload):
    mailboxes: list[Mailbox] = attribute_field(
        "Mailboxes that the input names, in their new state, also if nothing changed. "
        "mailboxRename also returns the mailboxes below. Missing: created parents, subscribed "
        "paths without a mailbox, and mailboxes that the caller can't see any more.",
        default_factory=list,
    )
    tasks: list[Task] = attribute_field(
        "Tasks of mailboxUpdate with `applyRetention`, one for each user, if the mailboxes have "
        "more than 1,000 messages together (by default). Otherwise empty.",
        default_factory=list,
    )


@strawberry.type
class MailboxQuery:
    @query(
        "Returns one mailbox, also a hidden one. A mailbox that another user shares must be named "
        "by its ID, without `user`. Null if it does not exist or the caller can't see it.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox(
        self,
        info: Info,
        by: MailboxRef,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description=(
                    "User who must own the mailbox. If somebody else owns it, the result is null. "
                    "Default: the signed-in user, or the owner of the mailbox that an ID names. An "
                    "API key without a user must give `user`, or the ID of the mailbox (else "
                    "FORBIDDEN)."
                )
            ),
        ] = UNSET,
    ) -> Mailbox | None:
        owner = await load_visible_user_id(info, user) if user else None
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
    @mutation(
        "Creates mailboxes and their missing parents, for each selected user: all or none. "
        "CONFLICT if a path is given twice, or a mailbox of the user already has the path, the "
        "special use or the `objectId`. LIMIT_REACHED if a user would have more than 1,500 "
        "mailboxes (by default), or for more than 1,000 users (by default). With `parent`, no "
        "users can be selected. A `parent` of another user requires the right CREATE in it. The "
        "new mailboxes then belong to the owner of `parent` and get its shares; `specialUse` and "
        "`encryptMessages` are FORBIDDEN_OPERATION.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_create(self, info: Info, input: MailboxCreateInput) -> MailboxesPayload:
        new = NewMailboxes(
            input.paths,
            is_hidden=input.hidden,
            retention=limit_value(input.retention.value) if input.retention else None,
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
            await mailbox_create.create_mailboxes(info.context, new, user_selector)
        )

    @mutation(
        "Renames a mailbox of each selected user, or moves it below another mailbox, for all "
        "users or none. All mailboxes below it and their messages move with it. IDs, UIDs, shares "
        "and filters stay. Missing parents of the new path are created. FORBIDDEN_OPERATION for "
        "INBOX and hidden mailboxes, and if the mailbox would move below itself. CONFLICT if a "
        "mailbox has the new path. LIMIT_REACHED for more than 1,000 users (by default), or if a "
        "user would have too many mailboxes or subscriptions.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_rename(self, info: Info, input: MailboxRenameInput) -> MailboxesPayload:
        request = MailboxRename(
            mailbox_selector_from_ref(input.mailbox), input.new_path, input.rename_subscriptions
        )
        user_selector = user_selector_from_selection(input.users or None)
        return mailboxes_payload(await rename.rename_mailbox(info.context, request, user_selector))

    @mutation(
        "Deletes mailboxes of each selected user, all or none, with their shares and the filters "
        "that use them. The messages in them become deleted messages, which can be restored "
        "unless they are drafts. INBOX, hidden mailboxes and mailboxes with a special use can't "
        "be deleted (FORBIDDEN_OPERATION). A mailbox with others below it is a CONFLICT unless "
        "`recursive` is true or all of them are given. With `requireEmpty`, one with messages is "
        "a CONFLICT too. A mailbox that another user shares is NOT_FOUND. LIMIT_REACHED for more "
        "than 1,000 mailboxes or users (by default).",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_delete(self, info: Info, input: MailboxDeleteInput) -> DeletePayload:
        request = MailboxDeletion(
            mailbox_selectors_from_refs(input.mailboxes),
            is_recursive=input.recursive,
            requires_empty=input.require_empty,
            deletes_subscriptions=input.unsubscribe,
        )
        deleted_keys = await mailbox_delete.delete_mailboxes(
            info.context, request, user_selector_from_selection(input.users or None)
        )
        return DeletePayload.of_keys("Mailbox", deleted_keys)
