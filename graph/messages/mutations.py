"""Mutations that change, move, copy and delete messages in bulk."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task, UndoToken
from graph.messages.filter_inputs import MessageSelection
from graph.messages.types import Message
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MailboxRef, UserRef, given, named, user_named
from graph.types.row_mapping import asked
from graph.types.scalars import BigInt, free_data
from models.errors import Invalid
from models.files.blobs import StorageTier
from models.users.roles import Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_changes import Done, Order
from resolvers.messages.bulk.row_changes import Changes
from resolvers.users.selection import Users

SOURCE = (
    "Whose messages they are, where they go to another account: the one user that `select.users` "
    "names, or the viewer. Both are of one domain; for administrators. Messages get new ids."
)
FLAGS = ("seen", "flagged", "draft", "answered", "deleted")


@strawberry.input(description="What to change on messages; absent = unchanged, null = cleared.")
class MessageChanges:
    seen: strawberry.Maybe[bool] = leaf("Mark read or unread.")
    flagged: strawberry.Maybe[bool] = leaf(r"\Flagged.")
    draft: strawberry.Maybe[bool] = leaf(r"\Draft.")
    answered: strawberry.Maybe[bool] = leaf(r"\Answered.")
    deleted: strawberry.Maybe[bool] = leaf(r"\Deleted.")
    add_flags: strawberry.Maybe[list[str]] = leaf("Flags and keywords to add.")
    remove_flags: strawberry.Maybe[list[str]] = leaf("To remove.")
    flags: strawberry.Maybe[list[str]] = leaf("Replace all.")
    expires: strawberry.Maybe[datetime | None] = leaf("Null = never.")
    snoozed_until: strawberry.Maybe[datetime | None] = leaf(
        "Into the folder SNOOZED until then, when it comes back unread, before all others; "
        "null = back now, as it was. Not while it is moved."
    )
    meta_data: strawberry.Maybe[JSON | None] = leaf("Free data of the application.")

    def changes(self) -> Changes:
        """Convert the input to changes of messages.

        Raises Invalid if `flags` is combined with `addFlags` or `removeFlags`.
        """
        values: dict[str, Any] = {}
        if self.expires:
            values["expires"] = self.expires.value
        if self.meta_data:
            values["meta_data"] = free_data(self.meta_data.value, "metaData")
        if self.flags and (self.add_flags or self.remove_flags):
            raise Invalid(
                "flags replaces all: without addFlags and removeFlags",
                constraint="exclusive",
                path=["set", "flags"],
            )
        changes = Changes.of(
            {name: change.value for name in FLAGS if (change := getattr(self, name))},
            add=given(self.add_flags) or (),
            remove=given(self.remove_flags) or (),
            replaced=given(self.flags),
            values=values or None,
        )
        if self.snoozed_until:
            until = self.snoozed_until.value
            return replace(changes, snooze=until.isoformat() if until else "")
        return changes


@strawberry.input(description="Input of messageUpdate.")
class MessageUpdateInput(Options):
    select: MessageSelection = leaf("Which messages.")
    set: MessageChanges = leaf("What to change.")
    if_unchanged_since: BigInt | None = leaf(
        "Refuse with STALE when modseq is higher.", default=UNSET
    )
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)


@strawberry.input(description="Input of messageMove.")
class MessageMoveInput(Options):
    select: MessageSelection = leaf("Which messages.")
    to: MailboxRef = leaf("The folder they go to; by path or role that of each user.")
    set: MessageChanges | None = leaf("Flag changes on the way.", default=UNSET)
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)
    source_user: UserRef | None = leaf(SOURCE, default=UNSET)
    source_type: str = leaf('Kind of source: "user", there is no other.', default="user")


@strawberry.input(description="Input of messageCopy.")
class MessageCopyInput(Options):
    select: MessageSelection = leaf("Which messages.")
    to: MailboxRef = leaf("The folder the copies go to; by path or role that of each user.")
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)
    source_user: UserRef | None = leaf(SOURCE, default=UNSET)
    source_type: str = leaf('Kind of source: "user", there is no other.', default="user")


@strawberry.input(description="Input of messageDelete.")
class MessageDeleteInput(Options):
    select: MessageSelection = leaf("Which messages.")
    permanent: bool = leaf("Past the archive, without a way back.", default=False)
    delete_empty_mailbox: bool = leaf(
        "Delete the folders too that are empty then; never INBOX or one with a role, is hidden "
        "or has others below.",
        default=False,
    )
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)


@strawberry.input(description="Input of messageDeduplicate.")
class MessageDeduplicateInput(Options):
    select: MessageSelection = leaf("Among which messages.")
    by_message_id: bool = leaf(
        "The same Message-ID is enough; else the content is the same, byte for byte.",
        default=False,
    )


@strawberry.input(description="Input of messageTierMove.")
class MessageTierMoveInput(Options):
    select: MessageSelection = leaf("Which messages.")
    tier: StorageTier = leaf("Where their bodies are to lie.", default=StorageTier.COLD)
    reverse: bool = leaf("To the other tier instead.", default=False)


@strawberry.type(description="Uid before and after.")
class MovedMessage:
    old_uid: BigInt = leaf("Uid before.")
    new_uid: BigInt = leaf("Uid after.")
    message: Message | None = leaf("The message.")


@strawberry.type(description="Answer of messageUpdate.")
class MessageUpdatePayload(MutationPayload):
    updated_count: BigInt = leaf("Messages the selection holds.", default=BigInt(0))
    messages: list[Message] = leaf("The messages, as they are now.", default_factory=list)
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    undo: UndoToken | None = leaf("Takes it back.", default=None)


@strawberry.type(description="Answer of messageMove.")
class MessageMovePayload(MutationPayload):
    moved_count: BigInt = leaf("Messages moved.", default=BigInt(0))
    moved: list[MovedMessage] = leaf("Old and new uids.", default_factory=list)
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    undo: UndoToken | None = leaf("Takes it back.", default=None)


@strawberry.type(description="Answer of messageCopy.")
class MessageCopyPayload(MutationPayload):
    copied_count: BigInt = leaf("Copies made.", default=BigInt(0))
    copied: list[MovedMessage] = leaf(
        "Uids of the messages and of their copies, which are what `message` is.",
        default_factory=list,
    )
    task: Task | None = leaf("Background work, null when done at once.", default=None)


@strawberry.type(description="Answer of messageDelete and messageDeduplicate.")
class MessageDeletePayload(MutationPayload):
    deleted_count: BigInt = leaf("How many are gone.", default=BigInt(0))
    deleted_mailboxes: list[strawberry.ID] = leaf(
        "Folders that are gone; what a task deletes is told by the change stream.",
        default_factory=list,
    )
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    undo: UndoToken | None = leaf("Takes it back.", default=None)


@strawberry.type(description="Answer of messageTierMove.")
class MessageTierMovePayload(MutationPayload):
    moved_count: BigInt = leaf(
        "Messages whose bodies were moved, without those that lay there.", default=BigInt(0)
    )
    task: Task | None = leaf("Background work, null when done at once.", default=None)


def undo_token(done: Done) -> UndoToken | None:
    """Return the token that takes the changes back; None if they can't be taken back."""
    if not (done.undo and done.undo_until):
        return None
    return UndoToken(token=done.undo, expires_at=done.undo_until)


def _told(info: Info, input: Options, name: str) -> bool:
    """True if the client reads this field of the payload, or can by its idempotency key later."""
    return name in asked(info) or bool(input.options and input.options.idempotency_key)


def _task(done: Done) -> Task | None:
    """Return the task that continues the changes; None if they are finished."""
    return Task.maybe(done.task)


def _source(given: MessageMoveInput | MessageCopyInput) -> Users | None:
    """Return the selector of the source user of a move or copy; None if not named.

    Raises Invalid if `sourceType` is not "user".
    """
    if given.source_type != "user":
        raise Invalid('the only kind is "user"', constraint="enum", path=["sourceType"])
    return user_named(given.source_user, path="sourceUser") if given.source_user else None


async def _pairs(info: Info, done: Done) -> list[MovedMessage]:
    """Load the moved or copied messages, each with its UIDs before and after."""
    rows = await info.context.load_all(message_loaders.by_ids, list(done.uids))
    return [
        MovedMessage(old_uid=BigInt(old_uid), new_uid=BigInt(new_uid), message=Message.maybe(row))
        for (old_uid, new_uid), row in zip(done.uids.values(), rows, strict=True)
    ]


def _deleted(done: Done) -> MessageDeletePayload:
    """Return the payload of a deletion."""
    return MessageDeletePayload(
        deleted_count=BigInt(len(done.rows)),
        deleted_mailboxes=[
            strawberry.ID(global_ids.encode("Mailbox", key)) for key in done.mailboxes
        ],
        task=_task(done),
        undo=undo_token(done),
    )


@strawberry.type
class BulkMutation:
    @mutation("Flags, expiry, snooze, metadata.", scope=Scope.MAIL)
    async def message_update(self, info: Info, input: MessageUpdateInput) -> MessageUpdatePayload:
        request = Order(
            input.select.selection(info),
            input.set.changes(),
            unless_since=input.if_unchanged_since
            if isinstance(input.if_unchanged_since, int)
            else None,
            later=input.async_,
        )
        result = await bulk_changes.carry_out(info.context, request)
        rows: Sequence[Any] = ()
        if _told(info, input, "messages"):
            keys = [row.id for row in result.rows]
            rows = await info.context.load_all(message_loaders.by_ids, keys)
        return MessageUpdatePayload(
            updated_count=BigInt(len(result.rows)),
            messages=[Message.of(row) for row in rows if row],
            task=_task(result),
            undo=undo_token(result),
        )

    @mutation("To another folder, with flag changes if wanted.", scope=Scope.MAIL)
    async def message_move(self, info: Info, input: MessageMoveInput) -> MessageMovePayload:
        request = Order(
            input.select.selection(info),
            input.set.changes() if input.set else None,
            to=named(input.to, path="to"),
            source=_source(input),
            later=input.async_,
        )
        result = await bulk_changes.carry_out(info.context, request)
        return MessageMovePayload(
            moved_count=BigInt(len(result.uids)),
            moved=await _pairs(info, result) if _told(info, input, "moved") else [],
            task=_task(result),
            undo=undo_token(result),
        )

    @mutation("Into a folder, once more. Bodies are shared, not copied.", scope=Scope.MAIL)
    async def message_copy(self, info: Info, input: MessageCopyInput) -> MessageCopyPayload:
        request = Order(
            input.select.selection(info),
            to=named(input.to, path="to"),
            source=_source(input),
            copy=True,
            later=input.async_,
        )
        result = await bulk_changes.carry_out(info.context, request)
        copied = await _pairs(info, result) if _told(info, input, "copied") else []
        return MessageCopyPayload(
            copied_count=BigInt(len(result.uids)), copied=copied, task=_task(result)
        )

    @mutation("To the archive, or for good.", scope=Scope.MAIL)
    async def message_delete(self, info: Info, input: MessageDeleteInput) -> MessageDeletePayload:
        request = Order(
            input.select.selection(info),
            delete=True,
            permanent=input.permanent,
            drop_empty=input.delete_empty_mailbox,
            later=input.async_,
        )
        return _deleted(await bulk_changes.carry_out(info.context, request))

    @mutation(
        "Deletes, to the archive, what is in its folder more than once; the oldest stays.",
        scope=Scope.MAIL,
    )
    async def message_deduplicate(
        self, info: Info, input: MessageDeduplicateInput
    ) -> MessageDeletePayload:
        request = Order(
            input.select.selection(info),
            delete=True,
            duplicates="message_id" if input.by_message_id else "digest",
        )
        return _deleted(await bulk_changes.carry_out(info.context, request))

    @mutation(
        "Bodies between storage tiers; one that several messages share goes once, with all of "
        "them. UNAVAILABLE where there is no second store.",
        role=Role.ADMIN,
        scope=Scope.MAIL,
    )
    async def message_tier_move(
        self, info: Info, input: MessageTierMoveInput
    ) -> MessageTierMovePayload:
        to_cold = (input.tier is StorageTier.COLD) is not input.reverse
        tier = StorageTier.COLD if to_cold else StorageTier.HOT
        result = await storage_tiers.move(info.context, input.select.selection(info), tier)
        return MessageTierMovePayload(
            moved_count=BigInt(result.moved), task=Task.maybe(result.task)
        )
