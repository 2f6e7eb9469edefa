"""GraphQL types, queries and mutations of mailboxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.shares import AccountName, MailboxShare
from graph.messages.filter_inputs import MessageFilter, MessageOrder, Wanted
from graph.messages.types import MessageConnection, message_page
from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Link, Made
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    named,
    owner_of,
    plain,
    users_named,
)
from graph.types.row_mapping import Shape, identified, link, row_link, shaped
from graph.types.scalars import BigInt, ByteSize, Duration
from mail.mailboxes import paths
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import SpecialUse
from models.users.roles import Scope
from resolvers.mailboxes import child_mailboxes, metadata, rename, shares
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.delete import Gone
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.mailboxes.rename import Renamed
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

WHOSE = "Whose; nothing = the viewer's."


@strawberry.type(description="An annotation (RFC 5464).")
class MetadataEntry:
    key: str = leaf("Such as /private/comment.")
    value: str | None = leaf("Text.")


def _short(key: str) -> str:
    """Return the name of an annotation without /private/ or /shared/."""
    return key.split("/", 2)[2]


def _path_above(row: Any) -> tuple[int, str] | None:
    """Return the user id and path of the parent mailbox; None at the top."""
    parent_path = row.path.rpartition("/")[0]
    return (row.user_id, parent_path) if parent_path else None


ABOVE = Link(
    ("id", "user_id", "path"),
    _path_above,
    mailbox_loaders.by_paths,
    lambda row: row,
    own_key=lambda row: (row.user_id, row.path),
)


@strawberry.type(description="Folder.", directives=[Auth(scope=Scope.MAIL_READ)])
class Mailbox(Shape):
    guid: str = leaf("128-bit id as 32 hex digits.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Owner; null of a folder that is shared with the viewer.",
    )
    owner: AccountName = link(
        "user_id", shares.names, AccountName.maybe, description="What its owner is called."
    )
    name: str = leaf("Last part of path.")
    path: str = leaf("Full path, slashes.")
    path_utf7: str = leaf("Path in IMAP's modified UTF-7.")
    special_use: SpecialUse | None = leaf("Role of the folder.")
    modify_index: BigInt = leaf("Counts every change.")
    modseq: BigInt = leaf("Highest modification sequence of its messages.")
    uid_validity: BigInt = leaf("IMAP.")
    uid_next: BigInt = leaf("Next uid.")
    subscribed: bool = leaf("IMAP subscription.")
    hidden: bool = leaf("Not opened by IMAP.")
    encrypt_messages: bool = leaf("What arrives here is encrypted to the key of its owner.")
    retention: Duration | None = leaf("Life of messages added here.")
    total: int = leaf("Messages.")
    unseen: int = leaf("Unread.")
    size: ByteSize = leaf("Bytes.")
    parent: Optional["Mailbox"] = row_link(
        replace(ABOVE, of=shaped("graph.mailboxes.types", "Mailbox"), item=True),
        description="Folder above.",
    )
    parent_id: strawberry.ID | None = row_link(
        replace(ABOVE, of=lambda row: row and global_ids.encode("Mailbox", row.id)),
        description="Id of the folder above; null at the top, or if the viewer can't see it.",
    )

    batch = staticmethod(mailbox_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Mailbox"),
        "name": Made(("path",), lambda path: path.rpartition("/")[2]),
        "path_utf7": Made(("path",), paths.utf7),
        "retention": Made(
            ("retention",),
            lambda seconds: timedelta(seconds=seconds) if seconds else None,
        ),
    }

    @field("What the viewer may do in it: all for the owner, else what is shared.", "id", "user_id")
    async def my_rights(self, info: Info) -> list[ShareRight]:
        key = (self.row.user_id, self.row.id)
        return mailbox_rights.ordered(await info.context.load(mailbox_rights.rights, key))

    @field("Whom it is shared with; who has no ADMIN sees the own share alone.", "id")
    async def acl(self, info: Info) -> list[MailboxShare]:
        rows = await info.context.load(shares.of_boxes, self.row.id)
        return [MailboxShare.of(row) for row in rows]

    @field("Annotations, by name; of others' folders the /shared/ ones.", "id")
    async def metadata(
        self,
        info: Info,
        prefix: Annotated[
            str | None, strawberry.argument(description="Only names that begin so.")
        ] = UNSET,
        prepend_prefix: bool = False,
    ) -> list[MetadataEntry]:
        rows = await info.context.load(metadata.of_mailboxes, self.row.id)
        return [
            MetadataEntry(key=row.key if prepend_prefix else _short(row.key), value=row.value)
            for row in rows
            if row.key.startswith((prefix or "").lower())
        ]

    @field("One annotation.", "id")
    async def metadata_entry(self, info: Info, key: str) -> MetadataEntry | None:
        name = metadata.checked_key(key)
        row = await info.context.load(metadata.single, (self.row.id, name))
        return MetadataEntry(key=row.key, value=row.value) if row else None

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
        request = Wanted(filter, order_by, (first, after, last, before))
        return await message_page(info, request, users=[self.row.user_id], mailbox_id=self.row.id)


@strawberry.type(description="Sums over folders.")
class MailboxTotals:
    total: BigInt = leaf("Messages.")
    unseen: BigInt = leaf("Unread.")
    size: ByteSize = leaf("Bytes.")


@strawberry.input(description="Input of mailboxCreate.")
class MailboxCreateInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    paths: list[str] = leaf("Full paths; missing parents are made.")
    parent: MailboxRef | None = leaf(
        "The folder that paths begin below; another's, in which one has CREATE, by its id. "
        "What is made is shared as it is.",
        default=UNSET,
    )
    hidden: bool = leaf("Not opened by IMAP.", default=False)
    retention: Duration | None = leaf(
        "How long messages added here are kept: from 1 second to 36,500 days; PT0S keeps them for "
        "ever. Default: the retention of the account.",
        default=UNSET,
    )
    subscribe: bool = leaf("Subscribe new folders.", default=True)
    encrypt_messages: bool = leaf(
        "Encrypt what arrives in them to the key of the account, which it needs.", default=False
    )
    guid: str | None = leaf("32 hex digits; only with one path and one user.", default=UNSET)
    special_use: SpecialUse | None = leaf("Role of the folder, with one path.", default=UNSET)


@strawberry.input(description="Input of mailboxRename.")
class MailboxRenameInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailbox: MailboxRef = leaf("The folder.")
    new_path: str = leaf("Children move along.")
    subscriptions: bool = leaf("Subscriptions follow.", default=True)


@strawberry.input(description="Input of mailboxDelete.")
class MailboxDeleteInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailboxes: list[MailboxRef] = leaf("The folders.")
    require_empty: bool = leaf("CONFLICT when not.", default=False)
    recursive: bool = leaf("With children.", default=False)
    unsubscribe: bool = leaf("Their paths are no longer subscribed to.", default=True)


@strawberry.type(description="Answer of mailbox mutations.")
class MailboxesPayload(MutationPayload):
    mailboxes: list[Mailbox] = leaf("The folders.", default_factory=list)
    task: Task | None = leaf("Work on many messages; null when done at once.", default=None)


@strawberry.type
class MailboxQuery:
    @query("One folder, or null.", scope=Scope.MAIL_READ)
    async def mailbox(
        self, info: Info, by: MailboxRef, user: UserRef | None = UNSET
    ) -> Mailbox | None:
        owner = await owner_of(info, user) if user else None
        if user and owner is None:
            return None
        name = named(by, path="by")
        return Mailbox.maybe(await mailbox_loaders.find_seen(info.context, name, owner))


def payload(rows: Sequence[Any]) -> MailboxesPayload:
    """Return the payload of a mutation that changed these mailboxes."""
    return MailboxesPayload(mailboxes=[Mailbox.of(row) for row in rows])


@strawberry.type
class MailboxMutation:
    @mutation("One or many, all or none.", scope=Scope.MAIL)
    async def mailbox_create(self, info: Info, input: MailboxCreateInput) -> MailboxesPayload:
        new = NewMailboxes(
            input.paths,
            hidden=input.hidden,
            retention=plain(input.retention),
            subscribe=input.subscribe,
            encrypt=input.encrypt_messages,
            special_use=input.special_use or None,
            guid=input.guid if isinstance(input.guid, str) else None,
        )
        user_selector = users_named(input.users or None)
        if input.parent:
            parent = named(input.parent, path="parent")
            return payload(await child_mailboxes.create(info.context, new, parent, user_selector))
        return payload(await mailbox_loaders.create(info.context, new, user_selector))

    @mutation("Move or rename, with all that is below.", scope=Scope.MAIL)
    async def mailbox_rename(self, info: Info, input: MailboxRenameInput) -> MailboxesPayload:
        request = Renamed(named(input.mailbox), input.new_path, input.subscriptions)
        user_selector = users_named(input.users or None)
        return payload(await rename.rename(info.context, request, user_selector))

    @mutation(
        "Messages go to the archive; INBOX and special folders: FORBIDDEN_OPERATION.",
        scope=Scope.MAIL,
    )
    async def mailbox_delete(self, info: Info, input: MailboxDeleteInput) -> DeletePayload:
        request = Gone(
            [
                named(ref, path="mailboxes", index=index)
                for index, ref in enumerate(input.mailboxes)
            ],
            recursive=input.recursive,
            require_empty=input.require_empty,
            unsubscribe=input.unsubscribe,
        )
        deleted_keys = await mailbox_delete.delete(
            info.context, request, users_named(input.users or None)
        )
        return DeletePayload(
            deleted_ids=[global_ids.encode("Mailbox", key) for key in deleted_keys]
        )
