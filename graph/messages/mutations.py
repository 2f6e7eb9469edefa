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
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    maybe_value,
    user_selector_from_ref,
)
from graph.types.row_mapping import selected_fields
from graph.types.scalars import BigInt, validate_custom_data
from models.errors import InvalidInput
from models.files.blobs import StorageTier
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.users.selection import UserSelector

SOURCE_DESCRIPTION = (
    "Whose messages they are, where they go to another account: the one user that `select.users` "
    "names, or the viewer. Both are of one domain; for administrators. Messages get new ids."
)
FLAG_FIELDS = ("seen", "flagged", "draft", "answered", "deleted")


@strawberry.input(description="What to change on messages; absent = unchanged, null = cleared.")
class MessagePatch:
    seen: strawberry.Maybe[bool] = attribute_field("Mark read or unread.")
    flagged: strawberry.Maybe[bool] = attribute_field(r"\Flagged.")
    draft: strawberry.Maybe[bool] = attribute_field(r"\Draft.")
    answered: strawberry.Maybe[bool] = attribute_field(r"\Answered.")
    deleted: strawberry.Maybe[bool] = attribute_field(r"\Deleted.")
    add_flags: strawberry.Maybe[list[str]] = attribute_field("Flags and keywords to add.")
    remove_flags: strawberry.Maybe[list[str]] = attribute_field("To remove.")
    flags: strawberry.Maybe[list[str]] = attribute_field("Replace all.")
    expires_at: strawberry.Maybe[datetime | None] = attribute_field(
        "Deletes the messages automatically at this time. Null: never."
    )
    snoozed_until: strawberry.Maybe[datetime | None] = attribute_field(
        "Into the folder SNOOZED until then, when it comes back unread, before all others; "
        "null = back now, as it was. Not while it is moved."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field("Free data of the application.")

    def to_changes(self) -> FlagChanges:
        """Convert the input to changes of messages.

        Raises Invalid if `flags` is combined with `addFlags` or `removeFlags`.
        """
        values: dict[str, Any] = {}
        if self.expires_at:
            values["expires_at"] = self.expires_at.value
        if self.metadata:
            values["public_metadata"] = validate_custom_data(self.metadata.value, "metadata")
        if self.flags and (self.add_flags or self.remove_flags):
            raise InvalidInput(
                "flags replaces all: without addFlags and removeFlags",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=["set", "flags"],
            )
        changes = FlagChanges.from_flag_names(
            {name: change.value for name in FLAG_FIELDS if (change := getattr(self, name))},
            added=maybe_value(self.add_flags) or (),
            removed=maybe_value(self.remove_flags) or (),
            replacement=maybe_value(self.flags),
            column_values=values or None,
        )
        if self.snoozed_until:
            until = self.snoozed_until.value
            return replace(changes, snooze=until.isoformat() if until else "")
        return changes


@strawberry.input(description="Input of messageUpdate.")
class MessageUpdateInput(Options):
    select: MessageSelection = attribute_field("Which messages.")
    set: MessagePatch = attribute_field("What to change.")
    if_unchanged_since: BigInt | None = attribute_field(
        "Refuse with STALE when modseq is higher.", default=UNSET
    )
    async_: bool = attribute_field("Answer with a task at once.", name="async", default=False)


@strawberry.input(description="Input of messageMove.")
class MessageMoveInput(Options):
    select: MessageSelection = attribute_field("Which messages.")
    to: MailboxRef = attribute_field("The folder they go to; by path or role that of each user.")
    set: MessagePatch | None = attribute_field("Flag changes on the way.", default=UNSET)
    async_: bool = attribute_field("Answer with a task at once.", name="async", default=False)
    source_user: UserRef | None = attribute_field(SOURCE_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of messageCopy.")
class MessageCopyInput(Options):
    select: MessageSelection = attribute_field("Which messages.")
    to: MailboxRef = attribute_field(
        "The folder the copies go to; by path or role that of each user."
    )
    async_: bool = attribute_field("Answer with a task at once.", name="async", default=False)
    source_user: UserRef | None = attribute_field(SOURCE_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of messageDelete.")
class MessageDeleteInput(Options):
    select: MessageSelection = attribute_field("Which messages.")
    permanent: bool = attribute_field(
        "Deletes the messages at once; they can't be restored.", default=False
    )
    delete_empty_mailbox: bool = attribute_field(
        "Delete the folders too that are empty then; never INBOX or one with a role, is hidden "
        "or has others below.",
        default=False,
    )
    async_: bool = attribute_field("Answer with a task at once.", name="async", default=False)


@strawberry.input(description="Input of messageDeduplicate.")
class MessageDeduplicateInput(Options):
    select: MessageSelection = attribute_field("Among which messages.")
    by_message_id: bool = attribute_field(
        "The same Message-ID is enough; else the content is the same, byte for byte.",
        default=False,
    )


@strawberry.input(description="Input of messageTierMove.")
class MessageTierMoveInput(Options):
    select: MessageSelection = attribute_field("Which messages.")
    tier: StorageTier = attribute_field("Where their bodies are to lie.", default=StorageTier.COLD)
    reverse: bool = attribute_field("To the other tier instead.", default=False)


@strawberry.type(description="Uid before and after.")
class MovedMessage:
    old_uid: BigInt = attribute_field("Uid before.")
    new_uid: BigInt = attribute_field("Uid after.")
    message: Message | None = attribute_field("The message.")


@strawberry.type(description="Answer of messageUpdate.")
class MessageUpdatePayload(MutationPayload):
    updated_count: BigInt = attribute_field("Messages the selection holds.", default=BigInt(0))
    messages: list[Message] = attribute_field(
        "The messages, as they are now.", default_factory=list
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)
    undo: UndoToken | None = attribute_field("Takes it back.", default=None)


@strawberry.type(description="Answer of messageMove.")
class MessageMovePayload(MutationPayload):
    moved_count: BigInt = attribute_field("Messages moved.", default=BigInt(0))
    moved: list[MovedMessage] = attribute_field("Old and new uids.", default_factory=list)
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)
    undo: UndoToken | None = attribute_field("Takes it back.", default=None)


@strawberry.type(description="Answer of messageCopy.")
class MessageCopyPayload(MutationPayload):
    copied_count: BigInt = attribute_field("Copies made.", default=BigInt(0))
    copied: list[MovedMessage] = attribute_field(
        "Uids of the messages and of their copies, which are what `message` is.",
        default_factory=list,
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)


@strawberry.type(description="Answer of messageDelete and messageDeduplicate.")
class MessageDeletePayload(MutationPayload):
    deleted_count: BigInt = attribute_field("How many are gone.", default=BigInt(0))
    deleted_mailbox_ids: list[strawberry.ID] = attribute_field(
        "Folders that are gone; what a task deletes is told by the change stream.",
        default_factory=list,
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)
    undo: UndoToken | None = attribute_field("Takes it back.", default=None)


@strawberry.type(description="Answer of messageTierMove.")
class MessageTierMovePayload(MutationPayload):
    moved_count: BigInt = attribute_field(
        "Messages whose bodies were moved, without those that lay there.", default=BigInt(0)
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)


def undo_token_of_result(result: BulkOutcome) -> UndoToken | None:
    """Return the token that takes the changes back; None if they can't be taken back."""
    if not (result.undo_token and result.undoable_until):
        return None
    return UndoToken(token=result.undo_token, expires_at=result.undoable_until)


def _is_payload_field_needed(info: Info, input: Options, field_name: str) -> bool:
    """True if the client reads this field of the payload, or can by its idempotency key later."""
    return field_name in selected_fields(info) or bool(
        input.options and input.options.idempotency_key
    )


def _task_of_result(result: BulkOutcome) -> Task | None:
    """Return the task that continues the changes; None if they are finished."""
    return Task.from_row_or_none(result.task)


def _source_user_selector(
    transfer_input: MessageMoveInput | MessageCopyInput,
) -> UserSelector | None:
    """Return the selector of the source user of a move or copy; None if not named."""
    return (
        user_selector_from_ref(transfer_input.source_user, path="sourceUser")
        if transfer_input.source_user
        else None
    )


async def _load_moved_messages(info: Info, result: BulkOutcome) -> list[MovedMessage]:
    """Load the moved or copied messages, each with its UIDs before and after."""
    rows = await info.context.load_many(
        message_loaders.load_visible_by_ids, list(result.uids_by_message_id)
    )
    return [
        MovedMessage(
            old_uid=BigInt(old_uid), new_uid=BigInt(new_uid), message=Message.from_row_or_none(row)
        )
        for (old_uid, new_uid), row in zip(result.uids_by_message_id.values(), rows, strict=True)
    ]


def _delete_payload(result: BulkOutcome) -> MessageDeletePayload:
    """Return the payload of a deletion."""
    return MessageDeletePayload(
        deleted_count=BigInt(len(result.rows)),
        deleted_mailbox_ids=[
            strawberry.ID(global_ids.encode("Mailbox", key)) for key in result.deleted_mailbox_ids
        ],
        task=_task_of_result(result),
        undo=undo_token_of_result(result),
    )


@strawberry.type
class MessageBulkMutation:
    @mutation("Flags, expiry, snooze, metadata.", scope=Scope.MAIL)
    async def message_update(self, info: Info, input: MessageUpdateInput) -> MessageUpdatePayload:
        request = BulkRequest(
            input.select.to_selection(info),
            input.set.to_changes(),
            unchanged_since_modseq=input.if_unchanged_since
            if isinstance(input.if_unchanged_since, int)
            else None,
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_bulk_request(info.context, request)
        rows: Sequence[Any] = ()
        if _is_payload_field_needed(info, input, "messages"):
            keys = [row.id for row in result.rows]
            rows = await info.context.load_many(message_loaders.load_visible_by_ids, keys)
        return MessageUpdatePayload(
            updated_count=BigInt(len(result.rows)),
            messages=[Message.from_row(row) for row in rows if row],
            task=_task_of_result(result),
            undo=undo_token_of_result(result),
        )

    @mutation("To another folder, with flag changes if wanted.", scope=Scope.MAIL)
    async def message_move(self, info: Info, input: MessageMoveInput) -> MessageMovePayload:
        request = BulkRequest(
            input.select.to_selection(info),
            input.set.to_changes() if input.set else None,
            target_mailbox=mailbox_selector_from_ref(input.to, path="to"),
            source_user=_source_user_selector(input),
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_bulk_request(info.context, request)
        return MessageMovePayload(
            moved_count=BigInt(len(result.uids_by_message_id)),
            moved=await _load_moved_messages(info, result)
            if _is_payload_field_needed(info, input, "moved")
            else [],
            task=_task_of_result(result),
            undo=undo_token_of_result(result),
        )

    @mutation("Into a folder, once more. Bodies are shared, not copied.", scope=Scope.MAIL)
    async def message_copy(self, info: Info, input: MessageCopyInput) -> MessageCopyPayload:
        request = BulkRequest(
            input.select.to_selection(info),
            target_mailbox=mailbox_selector_from_ref(input.to, path="to"),
            source_user=_source_user_selector(input),
            is_copy=True,
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_bulk_request(info.context, request)
        copied = (
            await _load_moved_messages(info, result)
            if _is_payload_field_needed(info, input, "copied")
            else []
        )
        return MessageCopyPayload(
            copied_count=BigInt(len(result.uids_by_message_id)),
            copied=copied,
            task=_task_of_result(result),
        )

    @mutation("Deletes messages. Unless `permanent`, they can be restored.", scope=Scope.MAIL)
    async def message_delete(self, info: Info, input: MessageDeleteInput) -> MessageDeletePayload:
        request = BulkRequest(
            input.select.to_selection(info),
            is_delete=True,
            is_permanent=input.permanent,
            deletes_empty_mailboxes=input.delete_empty_mailbox,
            always_as_task=input.async_,
        )
        return _delete_payload(await bulk_changes.apply_bulk_request(info.context, request))

    @mutation(
        "Deletes messages that a mailbox contains more than once, except the oldest. They can be "
        "restored.",
        scope=Scope.MAIL,
    )
    async def message_deduplicate(
        self, info: Info, input: MessageDeduplicateInput
    ) -> MessageDeletePayload:
        request = BulkRequest(
            input.select.to_selection(info),
            is_delete=True,
            duplicate_column="message_id" if input.by_message_id else "digest",
        )
        return _delete_payload(await bulk_changes.apply_bulk_request(info.context, request))

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
        result = await storage_tiers.move_to_tier(
            info.context, input.select.to_selection(info), tier
        )
        return MessageTierMovePayload(
            moved_count=BigInt(result.moved_count), task=Task.from_row_or_none(result.task)
        )
