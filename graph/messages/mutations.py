"""Mutations that change, move, copy and delete messages in bulk."""

from collections.abc import Sequence
from typing import Any

import strawberry

from graph.admin.tasks import Task, UndoToken
from graph.messages.inputs import (
    MessageCopyInput,
    MessageDeduplicateInput,
    MessageDeleteInput,
    MessageMoveInput,
    MessageTierMoveInput,
    MessageUpdateInput,
)
from graph.messages.types import Message
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    mailbox_selector_from_ref,
    user_selector_from_ref,
)
from graph.types.row_mapping import selected_fields
from graph.types.scalars import BigInt
from models.files.blobs import StorageTier
from models.users.roles import AdminPermission, Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.users.selection import UserSelector


@strawberry.type(description="Message that was moved or copied, with the UIDs of both mailboxes.")
class MovedMessage:
    old_uid: BigInt = attribute_field(
        "UID of the original in the mailbox that it was moved or copied from."
    )
    new_uid: BigInt = attribute_field(
        "UID of the moved message, or of the copy, in the target mailbox."
    )
    message: Message | None = attribute_field(
        "Message in its new mailbox, or the copy. Null if the caller can't see it."
    )


@strawberry.type(description="Payload of messageUpdate.")
class MessageUpdatePayload(MutationPayload):
    updated_count: BigInt = attribute_field(
        "Number of selected messages, also those that already had the new values. 0 if a "
        "task changes them; with `validateOnly`, the number that the task would change.",
        default=BigInt(0),
    )
    messages: list[Message] = attribute_field(
        "Selected messages in their new state, without those that the caller can't see. Empty if "
        "a task changes them.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that changes the messages if there are more than 1,000 (by default). Null: they "
        "were changed at once, or the mutation failed.",
        default=None,
    )
    undo: UndoToken | None = attribute_field(
        "Token that takes the change back with the mutation `undo`, for 10 minutes by default. "
        "Null with `validateOnly`, if no message was selected, and if a task changes the "
        "messages. Also null in a mailbox that another user shares, and for a caller without an "
        "account. Also null if `metadata` changes, and its former values have more than 1 MiB in "
        "total.",
        default=None,
    )


@strawberry.type(description="Payload of messageMove.")
class MessageMovePayload(MutationPayload):
    moved_count: BigInt = attribute_field(
        "Number of selected messages, also those that were in the target mailbox "
        "already. 0 if a task moves them; with `validateOnly`, the number that the task "
        "would move.",
        default=BigInt(0),
    )
    moved: list[MovedMessage] = attribute_field(
        "Selected messages with their old and new UIDs, which are equal if the message was in "
        "the target mailbox already. Empty if a task moves them.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that moves the messages. Null if they were moved at once.", default=None
    )
    undo: UndoToken | None = attribute_field(
        "Token that takes the move back with the mutation `undo`, for 10 minutes by default. Null "
        "with `validateOnly`, if no message was selected, and if a task moves the messages. Also "
        "null for a move to another account, in a mailbox that another user shares, and for a "
        "caller without an account. Also null if `set` changes `metadata`, and its former values "
        "have more than 1 MiB in total.",
        default=None,
    )


@strawberry.type(description="Payload of messageCopy.")
class MessageCopyPayload(MutationPayload):
    copied_count: BigInt = attribute_field(
        "Number of copies that were made. 0 if a task makes them; with `validateOnly`, "
        "the number that the task would make.",
        default=BigInt(0),
    )
    copied: list[MovedMessage] = attribute_field(
        "Copies, each with the UID of the original and its own UID. `message` is null in a "
        "mailbox where the caller lacks the right READ. Empty if a task makes the copies.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that copies the messages. Null if they were copied at once.", default=None
    )


@strawberry.type(description="Payload of messageDelete and messageDeduplicate.")
class MessageDeletePayload(MutationPayload):
    deleted_count: BigInt = attribute_field(
        "Number of messages that were deleted. 0 if a task deletes them; with "
        "`validateOnly`, the number that the task would delete.",
        default=BigInt(0),
    )
    deleted_mailbox_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the mailboxes that `deleteEmptyMailbox` deleted. Empty if a task does the "
        "work: the events MAILBOX_DELETED name them.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that deletes the messages. Null if they were deleted at once.", default=None
    )
    undo: UndoToken | None = attribute_field(
        "Token that takes the deletion back with the mutation `undo`, for 10 minutes by default. "
        "Null with `permanent` or `validateOnly`, if no message was deleted, and if a task "
        "deletes the messages. Also null in a mailbox that another user shares, and for a caller "
        "without an account.",
        default=None,
    )


@strawberry.type(description="Payload of messageTierMove.")
class MessageTierMovePayload(MutationPayload):
    moved_count: BigInt = attribute_field(
        "Number of messages whose bodies were moved. Messages whose bodies were already in the "
        "tier are not counted. 0 if a task moves them; with `validateOnly`, the number "
        "that the task would move.",
        default=BigInt(0),
    )
    task: Task | None = attribute_field(
        "Task that moves the bodies. Null if they were moved at once.", default=None
    )


def undo_token_of_result_or_none(result: BulkOutcome) -> UndoToken | None:
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


def _payload_of_deletion(result: BulkOutcome) -> MessageDeletePayload:
    """Return the payload of a deletion."""
    return MessageDeletePayload(
        deleted_count=BigInt(len(result.rows)),
        deleted_mailbox_ids=[
            strawberry.ID(global_ids.encode("Mailbox", key)) for key in result.deleted_mailbox_ids
        ],
        task=_task_of_result(result),
        undo=undo_token_of_result_or_none(result),
    )


@strawberry.type
class MessageBulkMutation:
    @mutation(
        "Changes flags, keywords, expiry, snooze or metadata of messages in mailboxes. In a "
        "mailbox that another user shares, this requires the right READ. There a change of \\Seen "
        "also requires SEEN, of \\Deleted DELETE, and any other change WRITE. `set.flags` "
        "requires all three, and a snooze is FORBIDDEN_OPERATION. If training of the spam filter "
        "is configured, adding the keyword $Junk or $NotJunk trains it. More than 1,000 messages "
        "(by default) are changed by a task in the background. STALE if a selected message was "
        "changed after `ifUnchangedSince`; then nothing is changed. QUOTA_EXCEEDED if new "
        "`metadata` does not fit into the storage of the owner. LIMIT_REACHED if `select` "
        "searches `text`, `body` or `header` of more than 2,000 messages. LIMIT_REACHED also if a "
        "snooze needs a new mailbox, and the user has 1,500 mailboxes (by default). RATE_LIMITED "
        "if the search exceeds the caller's rate limit. UNAVAILABLE if `select` searches for "
        "words while more than 5,000 messages are not indexed yet: retry later.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_update(self, info: Info, input: MessageUpdateInput) -> MessageUpdatePayload:
        request = BulkRequest(
            input.select.to_validated_selector(info),
            input.set.to_validated_changes(),
            unchanged_since_modseq=input.if_unchanged_since
            if isinstance(input.if_unchanged_since, int)
            else None,
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_or_queue_bulk_request(info.context, request)
        rows: Sequence[Any] = ()
        if _is_payload_field_needed(info, input, "messages"):
            keys = [row.id for row in result.rows]
            rows = await info.context.load_many(message_loaders.load_visible_by_ids, keys)
        return MessageUpdatePayload(
            updated_count=BigInt(len(result.rows)),
            messages=[Message.from_row(row) for row in rows if row],
            task=_task_of_result(result),
            undo=undo_token_of_result_or_none(result),
        )

    @mutation(
        "Moves messages to another mailbox, and applies `set` to them. They get new UIDs, and an "
        "expiry time by the retention of that mailbox, or none. Messages that are there already "
        "change only by `set`. A snooze of a moved message ends. A held or scheduled message is "
        "not sent if its stored copy is in Trash at the send time. To move messages out of a "
        "mailbox that another user shares, the caller needs READ and DELETE, and EXPUNGE if they "
        "move to another account. To move them into such a mailbox, the caller needs INSERT, and "
        "the rights for the changes in `set`. Messages get new IDs if they move to another "
        "account. CONFLICT if the two accounts are in different domains. QUOTA_EXCEEDED if the "
        "messages, or new metadata in `set`, do not fit into the storage of the account. Within "
        "an account, a move to Junk, or from Junk to a mailbox other than Trash, trains the spam "
        "filter if this is configured. More than 1,000 messages (by default) are moved by a task "
        "in the background. LIMIT_REACHED if `select` searches `text`, `body` or `header` of more "
        "than 2,000 messages, RATE_LIMITED if this search exceeds the caller's rate limit. "
        "UNAVAILABLE if `select` searches for words while more than 5,000 messages are not "
        "indexed yet: retry later.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_move(self, info: Info, input: MessageMoveInput) -> MessageMovePayload:
        request = BulkRequest(
            input.select.to_validated_selector(info),
            input.set.to_validated_changes() if input.set else None,
            target_mailbox=mailbox_selector_from_ref(input.to, path="to"),
            source_user=_source_user_selector(input),
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_or_queue_bulk_request(info.context, request)
        return MessageMovePayload(
            moved_count=BigInt(len(result.uids_by_message_id)),
            moved=await _load_moved_messages(info, result)
            if _is_payload_field_needed(info, input, "moved")
            else [],
            task=_task_of_result(result),
            undo=undo_token_of_result_or_none(result),
        )

    @mutation(
        "Copies messages with their flags and metadata into a mailbox of the same user, or of "
        "another user of the same domain. A copy gets a new ID and UID, is not snoozed, and "
        "expires by the retention of the target mailbox. Copies count for the quota of the owner "
        "of the target mailbox. Copying from a mailbox that another user shares requires the "
        "right READ, and copying into it the right INSERT. More than 1,000 messages (by default) "
        "are copied by a task in the background. QUOTA_EXCEEDED if the copies do not fit into the "
        "storage of that owner. UNAVAILABLE if `select` searches for words while more than 5,000 "
        "messages are not indexed yet: retry later. CONFLICT if the other user is in another "
        "domain. LIMIT_REACHED if `select` searches `text`, `body` or `header` of more than 2,000 "
        "messages. RATE_LIMITED if this search exceeds the caller's rate limit.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_copy(self, info: Info, input: MessageCopyInput) -> MessageCopyPayload:
        request = BulkRequest(
            input.select.to_validated_selector(info),
            target_mailbox=mailbox_selector_from_ref(input.to, path="to"),
            source_user=_source_user_selector(input),
            is_copy=True,
            always_as_task=input.async_,
        )
        result = await bulk_changes.apply_or_queue_bulk_request(info.context, request)
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

    @mutation(
        "Deletes messages from their mailboxes. In a mailbox that another user shares, this "
        "requires the rights READ and DELETE, or with `permanent` READ and EXPUNGE. Unless "
        "`permanent` is true, they become deleted messages, which can be restored for 25 days by "
        "default, and no longer count for the quota. Drafts can only be restored by `undo`, for "
        "10 minutes by default. A held or scheduled message whose copy is deleted is not sent. "
        "More than 1,000 messages (by default) are deleted by a task in the background. "
        "LIMIT_REACHED if `select` searches `text`, `body` or `header` of more than 2,000 "
        "messages, RATE_LIMITED if this search exceeds the caller's rate limit. UNAVAILABLE if "
        "`select` searches for words while more than 5,000 messages are not indexed yet: retry "
        "later. In a mailbox that another user shares, `deleteEmptyMailbox` is "
        "FORBIDDEN_OPERATION.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_delete(self, info: Info, input: MessageDeleteInput) -> MessageDeletePayload:
        request = BulkRequest(
            input.select.to_validated_selector(info),
            is_delete=True,
            is_permanent=input.permanent,
            deletes_empty_mailboxes=input.delete_empty_mailbox,
            always_as_task=input.async_,
        )
        return _payload_of_deletion(
            await bulk_changes.apply_or_queue_bulk_request(info.context, request)
        )

    @mutation(
        "Searches duplicates among the selected messages, separately in each mailbox, and deletes "
        "all but the one received first. Messages outside the selection are not compared. The "
        "deleted messages can be restored for 25 days by default; drafts only by `undo`, for 10 "
        "minutes by default. In a mailbox that another user shares with the signed-in user, this "
        "requires the rights READ and DELETE. More than 1,000 duplicates (by default) are deleted "
        "by a task in the background. LIMIT_REACHED if `select` searches `text`, `body` or "
        "`header` of more than 2,000 messages, RATE_LIMITED if this search exceeds the caller's "
        "rate limit. UNAVAILABLE if `select` searches for words while more than 5,000 messages "
        "are not indexed yet: retry later.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message_deduplicate(
        self, info: Info, input: MessageDeduplicateInput
    ) -> MessageDeletePayload:
        request = BulkRequest(
            input.select.to_validated_selector(info),
            is_delete=True,
            duplicate_column="message_id" if input.by_message_id_header else "sha256",
        )
        return _payload_of_deletion(
            await bulk_changes.apply_or_queue_bulk_request(info.context, request)
        )

    @mutation(
        "Moves the stored bodies of messages to one of the two storage tiers. A body that several "
        "messages share moves for all of them. Without `select.users`, only messages of the "
        "signed-in user can be selected; an ID of another message is NOT_FOUND. If the bodies of "
        "more than 100 messages must move, a task moves them. A task also moves them after "
        "another change in an `@atomic` request. LIMIT_REACHED if `select` searches `text`, "
        "`body` or `header` of more than 2,000 messages. RATE_LIMITED if this search exceeds the "
        "caller's rate limit. UNAVAILABLE if the platform has no second object store, or if "
        "`select` searches for words while more than 5,000 messages are not indexed yet.",
        role=Role.ADMIN,
        scope=Scope.MAIL,
        access=MANAGED,
    )
    async def message_tier_move(
        self, info: Info, input: MessageTierMoveInput
    ) -> MessageTierMovePayload:
        to_cold = (input.tier is StorageTier.COLD) is not input.reverse
        tier = StorageTier.COLD if to_cold else StorageTier.HOT
        result = await storage_tiers.move_to_tier_or_queue(
            info.context, input.select.to_validated_selector(info), tier
        )
        return MessageTierMovePayload(
            moved_count=BigInt(result.moved_count), task=Task.from_row_or_none(result.task)
        )
