"""Inputs of mutations on messages."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.selection_input import MessageSelection
from graph.types.errors import Options, attribute_field
from graph.types.references import (
    MailboxRef,
    UserRef,
    maybe_value,
)
from graph.types.scalars import BigInt, validate_custom_data
from models.errors import InvalidInput
from models.files.blobs import StorageTier
from models.validation_constraints import ValidationConstraint
from resolvers.messages.bulk.flag_changes import FlagChanges

SOURCE_DESCRIPTION = (
    "User whose messages are selected, if another user of the same domain gets them. "
    "`select.users` then names the one user who gets the messages (default: the signed-in user). "
    "`to` is a mailbox of that user. If `sourceUser` is another user and the caller gets the "
    "messages, the caller must be a ROOT (else FORBIDDEN). Default: the messages stay in their "
    "accounts, and `select` alone names them."
)
FLAG_FIELDS = ("seen", "flagged", "draft", "answered", "deleted")


@strawberry.input(
    description=(
        "Changes to messages. An omitted field is unchanged. messageUpdate requires at least one "
        "change."
    )
)
class MessagePatch:
    seen: strawberry.Maybe[bool] = attribute_field(
        "True marks the messages as read (sets the flag \\Seen), false marks them as unread."
    )
    flagged: strawberry.Maybe[bool] = attribute_field(
        "True sets the flag \\Flagged, false removes it."
    )
    draft: strawberry.Maybe[bool] = attribute_field("True sets the flag \\Draft, false removes it.")
    answered: strawberry.Maybe[bool] = attribute_field(
        "True sets the flag \\Answered, false removes it."
    )
    deleted: strawberry.Maybe[bool] = attribute_field(
        "True sets the flag \\Deleted, false removes it. IMAP clients expunge messages with this "
        "flag."
    )
    add_flags: strawberry.Maybe[list[str]] = attribute_field(
        "Flags (`\\Seen`, `\\Answered`, `\\Flagged`, `\\Deleted`, `\\Draft`) and keywords to set. "
        "Case is ignored. Other names that begin with `\\` are refused. A message has at most 64 "
        "keywords of 128 characters. Null is refused."
    )
    remove_flags: strawberry.Maybe[list[str]] = attribute_field(
        "Flags and keywords to remove, such as `\\Flagged` or `work`. Case is ignored. A name that "
        "is also in `addFlags` is removed. Null is refused."
    )
    flags: strawberry.Maybe[list[str]] = attribute_field(
        "Flags and keywords that replace all existing ones, also the values of `seen`, `flagged`, "
        "`draft`, `answered` and `deleted`. An empty list removes all. Not allowed together with "
        "`addFlags` or `removeFlags`. Null is refused."
    )
    expires_at: strawberry.Maybe[datetime | None] = attribute_field(
        "Time when the messages are deleted automatically; they can then be restored for 25 days "
        "by default. A past time deletes them soon. Null: they don't expire."
    )
    snoozed_until: strawberry.Maybe[datetime | None] = attribute_field(
        "Moves the messages to the mailbox with the special use SNOOZED until this time, which "
        "must be in the future, at most 3,660 days ahead. The mailbox is created if it is missing. "
        "The messages return to their former mailbox, else to INBOX, unread and as the newest "
        "messages. Null returns snoozed messages at once; their \\Seen and their place by arrival "
        "are unchanged. Not allowed with a move, nor in a mailbox that another user shares."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "JSON object that replaces the one stored with the messages, at most 64 KiB "
        "by default. Null removes "
        "it."
    )

    def to_validated_changes(self) -> FlagChanges:
        """Convert the input to changes of messages.

        Raises InvalidInput if `flags` is combined with `addFlags` or `removeFlags`.
        """
        values: dict[str, Any] = {}
        if self.expires_at:
            values["expires_at"] = self.expires_at.value
        if self.metadata:
            values["public_metadata"] = validate_custom_data(self.metadata.value, "metadata")
        if self.flags and (self.add_flags or self.remove_flags):
            raise InvalidInput(
                "`flags` can't be combined with `addFlags` and `removeFlags`.",
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
    select: MessageSelection = attribute_field("Messages to change.")
    set: MessagePatch = attribute_field(
        "Values to change, the same for all messages. At least one value is required."
    )
    if_unchanged_since: BigInt | None = attribute_field(
        "MODSEQ that the caller knows: if a selected message was changed after it, nothing is "
        "changed and the error is STALE. If a task makes the change, it skips messages that were "
        "changed after this MODSEQ in the meantime. Only messages of one user can be selected. "
        "Default: no check.",
        default=UNSET,
    )
    async_: bool = attribute_field(
        "True runs the mutation as a task, also for few messages. Default: false.",
        name="async",
        default=False,
    )


@strawberry.input(description="Input of messageMove.")
class MessageMoveInput(Options):
    select: MessageSelection = attribute_field("Messages to move.")
    to: MailboxRef = attribute_field(
        "Mailbox that gets the messages. A path or special use names the mailbox of each user; for "
        "messages that another user shares, that of the signed-in user. The error is NOT_FOUND if "
        "a user with selected messages has no such mailbox."
    )
    set: MessagePatch | None = attribute_field(
        "Changes to the moved messages. `snoozedUntil` in it is an error. Default: none.",
        default=UNSET,
    )
    async_: bool = attribute_field(
        "True runs the mutation as a task, also for few messages. Default: false.",
        name="async",
        default=False,
    )
    source_user: UserRef | None = attribute_field(SOURCE_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of messageCopy.")
class MessageCopyInput(Options):
    select: MessageSelection = attribute_field("Messages to copy.")
    to: MailboxRef = attribute_field(
        "Mailbox that gets the copies. A path or special use names the mailbox of each user; for "
        "messages that another user shares, that of the signed-in user. The error is NOT_FOUND if "
        "a user with selected messages has no such mailbox."
    )
    async_: bool = attribute_field(
        "True runs the mutation as a task, also for few messages. Default: false.",
        name="async",
        default=False,
    )
    source_user: UserRef | None = attribute_field(SOURCE_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of messageDelete.")
class MessageDeleteInput(Options):
    select: MessageSelection = attribute_field("Messages to delete.")
    permanent: bool = attribute_field(
        "True deletes the messages for good, so that they can't be restored, not even by `undo`. "
        "Default: false.",
        default=False,
    )
    delete_empty_mailbox: bool = attribute_field(
        "True also deletes the mailboxes of the messages, and the mailbox that `select` names, if "
        "they are empty afterwards. INBOX, hidden mailboxes, and mailboxes with a special use or a "
        "remaining child mailbox are kept. In a mailbox that another user shares with the "
        "signed-in user, true is the error FORBIDDEN_OPERATION, and no message is deleted. "
        "Default: false.",
        default=False,
    )
    async_: bool = attribute_field(
        "True runs the mutation as a task, also for few messages. Default: false.",
        name="async",
        default=False,
    )


@strawberry.input(description="Input of messageDeduplicate.")
class MessageDeduplicateInput(Options):
    select: MessageSelection = attribute_field("Messages among which duplicates are searched.")
    by_message_id_header: bool = attribute_field(
        "True compares messages by their Message-ID. Messages without a Message-ID are never "
        "deleted as duplicates. False compares their content, byte for byte. Default: false.",
        default=False,
    )


@strawberry.input(description="Input of messageTierMove.")
class MessageTierMoveInput(Options):
    select: MessageSelection = attribute_field("Messages whose bodies are moved.")
    tier: StorageTier = attribute_field(
        "Storage tier that the bodies are moved to. Default: COLD.", default=StorageTier.COLD
    )
    reverse: bool = attribute_field(
        "True moves the bodies to the tier that is not `tier`. Default: false.", default=False
    )
