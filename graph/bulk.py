"""Mutations of messages: flags, moves, deletion."""

from datetime import datetime
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.errors import MutationPayload, Options, leaf
from graph.fields import Info
from graph.messages import Message
from graph.mutations import mutation
from graph.refs import MailboxRef, given, named
from graph.scalars import BigInt, free_data
from graph.selections import MessageSelection
from graph.tasks import Task, UndoToken
from models.errors import Invalid
from models.roles import Scope
from resolvers import bulk, mailboxes, messages
from resolvers.bulk import Done, Order
from resolvers.moves import Changes

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
    meta_data: strawberry.Maybe[JSON | None] = leaf("Free data of the application.")

    def changes(self) -> Changes:
        """The patch as the floors below know it."""
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
        return Changes.of(
            {name: maybe.value for name in FLAGS if (maybe := getattr(self, name))},
            add=given(self.add_flags) or (),
            remove=given(self.remove_flags) or (),
            replaced=given(self.flags),
            values=values or None,
        )


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
    to: MailboxRef = leaf("The folder they go to.")
    set: MessageChanges | None = leaf("Flag changes on the way.", default=UNSET)
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)


@strawberry.input(description="Input of messageDelete.")
class MessageDeleteInput(Options):
    select: MessageSelection = leaf("Which messages.")
    permanent: bool = leaf("Past the archive, without a way back.", default=False)
    async_: bool = leaf("Answer with a task at once.", name="async", default=False)


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


@strawberry.type(description="Answer of messageDelete.")
class MessageDeletePayload(MutationPayload):
    deleted_count: BigInt = leaf("How many are gone.", default=BigInt(0))
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    undo: UndoToken | None = leaf("Takes it back.", default=None)


def _undo(done: Done) -> UndoToken | None:
    if not (done.undo and done.undo_until):
        return None
    return UndoToken(token=done.undo, expires_at=done.undo_until)


def _task(done: Done) -> Task | None:
    return Task.maybe(done.task)


@strawberry.type
class BulkMutation:
    @mutation("Flags, expiry, metadata.", scope=Scope.MAIL)
    async def message_update(self, info: Info, input: MessageUpdateInput) -> MessageUpdatePayload:
        order = Order(
            input.select.selection(info),
            input.set.changes(),
            unless_since=input.if_unchanged_since
            if isinstance(input.if_unchanged_since, int)
            else None,
            later=input.async_,
        )
        done = await bulk.carry_out(info.context, order)
        rows = await info.context.load_all(messages.by_ids, [row.id for row in done.rows])
        return MessageUpdatePayload(
            updated_count=BigInt(len(done.rows)),
            messages=[Message.of(row) for row in rows if row],
            task=_task(done),
            undo=_undo(done),
        )

    @mutation("To another folder, with flag changes if wanted.", scope=Scope.MAIL)
    async def message_move(self, info: Info, input: MessageMoveInput) -> MessageMovePayload:
        target = await mailboxes.find(info.context, named(input.to, path="to"), path=["to"])
        changes = input.set.changes() if input.set else None
        order = Order(input.select.selection(info), changes, to=target.id, later=input.async_)
        done = await bulk.carry_out(info.context, order)
        rows = await info.context.load_all(messages.by_ids, list(done.uids))
        moved = [
            MovedMessage(old_uid=BigInt(old), new_uid=BigInt(new), message=Message.maybe(row))
            for (old, new), row in zip(done.uids.values(), rows, strict=True)
        ]
        return MessageMovePayload(
            moved_count=BigInt(len(moved)), moved=moved, task=_task(done), undo=_undo(done)
        )

    @mutation("To the archive, or for good.", scope=Scope.MAIL)
    async def message_delete(self, info: Info, input: MessageDeleteInput) -> MessageDeletePayload:
        order = Order(
            input.select.selection(info),
            delete=True,
            permanent=input.permanent,
            later=input.async_,
        )
        done = await bulk.carry_out(info.context, order)
        return MessageDeletePayload(
            deleted_count=BigInt(len(done.rows)), task=_task(done), undo=_undo(done)
        )
