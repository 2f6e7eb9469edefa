"""Folders, as the API shows them."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional

import strawberry
from strawberry import UNSET

from graph import ids
from graph.connections import Connection
from graph.errors import DeletePayload, MutationPayload, Options, leaf
from graph.fields import Auth, Info, field, query
from graph.messages import Message, message_page
from graph.mutations import mutation
from graph.refs import MailboxRef, UserRef, named, owner_of
from graph.rows import Shape, identified, link, shaped
from graph.scalars import BigInt, ByteSize, Duration
from graph.selections import MessageFilter, MessageOrder, Wanted
from graph.views import Made
from models.mailboxes import SpecialUse
from models.roles import Scope
from resolvers import mailboxes, users
from resolvers.mailboxes import Named, NewMailboxes

if TYPE_CHECKING:
    from graph.users import User


@strawberry.type(description="Folder.", directives=[Auth(scope=Scope.MAIL_READ)])
class Mailbox(Shape):
    guid: str = leaf("128-bit id as 32 hex digits.")
    user: Annotated["User", strawberry.lazy("graph.users")] = link(
        "user_id", users.by_ids, shaped("graph.users", "User"), description="Owner."
    )
    name: str = leaf("Last part of path.")
    path: str = leaf("Full path, slashes.")
    special_use: SpecialUse | None = leaf("Role of the folder.")
    modify_index: BigInt = leaf("Counts every change.")
    modseq: BigInt = leaf("Highest modification sequence of its messages.")
    uid_validity: BigInt = leaf("IMAP.")
    uid_next: BigInt = leaf("Next uid.")
    subscribed: bool = leaf("IMAP subscription.")
    hidden: bool = leaf("Not opened by IMAP.")
    retention: Duration | None = leaf("Life of messages added here.")
    total: int = leaf("Messages.")
    unseen: int = leaf("Unread.")
    size: ByteSize = leaf("Bytes.")

    batch = staticmethod(mailboxes.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Mailbox"),
        "name": Made(("path",), lambda path: path.rpartition("/")[2]),
        "retention": Made(
            ("retention",),
            lambda seconds: timedelta(seconds=seconds) if seconds else None,
        ),
    }

    @field("Folder above.", "user_id", "path")
    async def parent(self, info: Info) -> Optional["Mailbox"]:
        above = self.row.path.rpartition("/")[0]
        if not above:
            return None
        row = await info.context.load(mailboxes.named, (self.row.user_id, Named(path=above)))
        return Mailbox.maybe(row)

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
    ) -> Connection[Message]:
        wanted = Wanted(filter, order_by, (first, after, last, before))
        return await message_page(info, wanted, users=[self.row.user_id], mailbox_id=self.row.id)


@strawberry.input(description="Input of mailboxCreate.")
class MailboxCreateInput(Options):
    paths: list[str] = leaf("Full paths; missing parents are made.")
    hidden: bool = leaf("Not opened by IMAP.", default=False)
    retention: Duration | None = leaf(
        "Life of messages added here; by default that of the account, PT0S = for ever.",
        default=UNSET,
    )
    subscribe: bool = leaf("Subscribe new folders.", default=True)
    special_use: SpecialUse | None = leaf("Role of the folder, with one path.", default=UNSET)


@strawberry.input(description="Input of mailboxRename.")
class MailboxRenameInput(Options):
    mailbox: MailboxRef = leaf("The folder.")
    new_path: str = leaf("Children move along.")


@strawberry.input(description="Input of mailboxDelete.")
class MailboxDeleteInput(Options):
    mailboxes: list[MailboxRef] = leaf("The folders.")
    require_empty: bool = leaf("CONFLICT when not.", default=False)
    recursive: bool = leaf("With children.", default=False)


@strawberry.type(description="Answer of mailbox mutations.")
class MailboxesPayload(MutationPayload):
    mailboxes: list[Mailbox] = leaf("The folders.", default_factory=list)


@strawberry.type
class MailboxQuery:
    @query("One folder, or null.", scope=Scope.MAIL_READ)
    async def mailbox(
        self, info: Info, by: MailboxRef, user: UserRef | None = UNSET
    ) -> Mailbox | None:
        owner = await owner_of(info, user)
        if owner is None:
            return None
        row = await info.context.load(mailboxes.named, (owner, named(by, path="by")))
        return Mailbox.maybe(row)


def _all(rows: Sequence[Any]) -> MailboxesPayload:
    return MailboxesPayload(mailboxes=[Mailbox.of(row) for row in rows])


@strawberry.type
class MailboxMutation:
    @mutation("One or many, all or none.", scope=Scope.MAIL)
    async def mailbox_create(self, info: Info, input: MailboxCreateInput) -> MailboxesPayload:
        new = NewMailboxes(
            input.paths,
            hidden=input.hidden,
            retention=None if input.retention is UNSET else input.retention,
            subscribe=input.subscribe,
            special_use=input.special_use or None,
        )
        return _all(await mailboxes.create(info.context, new))

    @mutation("Move or rename, with all that is below.", scope=Scope.MAIL)
    async def mailbox_rename(self, info: Info, input: MailboxRenameInput) -> MailboxesPayload:
        return _all(await mailboxes.rename(info.context, named(input.mailbox), input.new_path))

    @mutation(
        "Messages go to the archive; INBOX and special folders: FORBIDDEN_OPERATION.",
        scope=Scope.MAIL,
    )
    async def mailbox_delete(self, info: Info, input: MailboxDeleteInput) -> DeletePayload:
        gone = await mailboxes.delete(
            info.context,
            [named(ref) for ref in input.mailboxes],
            recursive=input.recursive,
            require_empty=input.require_empty,
        )
        return DeletePayload(deleted_ids=[ids.encode("Mailbox", key) for key in gone])
