"""Bulk operations as they are requested, and their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from models.admin.tasks import Task, TaskKind
from models.store.columns import ColumnRow
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.row_changes import UidChange
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.users.selection import UserSelector


@dataclass(slots=True)
class BulkOutcome:
    """The result of a bulk operation: the changed messages, or the task that changes them."""

    rows: Sequence[ColumnRow] = ()
    uids_by_message_id: dict[int, UidChange] = field(default_factory=dict)
    task: Task | None = None
    undo_token: str | None = field(default=None, repr=False)
    undoable_until: datetime | None = None
    deleted_mailbox_ids: Sequence[int] = ()  # mailboxes that were deleted


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A bulk operation on the messages of a selection."""

    selector: MessageSelector
    changes: FlagChanges | None = None
    target_mailbox: MailboxSelector | None = None  # the mailbox with this name in each account
    source_user: UserSelector | None = None  # its messages go to the account of the selection
    is_copy: bool = False  # keeps the messages where they are
    is_delete: bool = False
    is_permanent: bool = False
    duplicate_column: str | None = None  # only messages with the same value as an older one
    deletes_empty_mailboxes: bool = False  # that this request empties
    unchanged_since_modseq: int | None = None  # refuses messages that changed after this MODSEQ
    always_as_task: bool = False  # also for few messages
    # `muted` of threads before the change
    muted_before: Mapping[int, bool] = field(default_factory=dict)
    source_mailbox_ids: Sequence[int] | None = (
        None  # mailboxes to select from, so that their index is used
    )

    @property
    def mutation_name(self) -> str:
        """The name of the mutation in the schema."""
        if self.duplicate_column:
            return "messageDeduplicate"
        if self.is_delete:
            return "messageDelete"
        if self.is_copy:
            return "messageCopy"
        return "messageMove" if self.target_mailbox is not None else "messageUpdate"

    @property
    def is_flag_change_by_id(self) -> bool:
        """True if the request only sets flags of messages given by ID."""
        changes = self.changes
        if changes is None or changes.values or changes.snooze is not None or self.muted_before:
            return False
        other = (
            self.always_as_task
            or self.target_mailbox is not None
            or self.unchanged_since_modseq is not None
        )
        return self.selector.ids is not None and not self.is_delete and not other

    @property
    def task_kind(self) -> TaskKind:
        """The kind of the task that runs the request."""
        return TaskKind(f"MESSAGE_{self.mutation_name.removeprefix('message').upper()}")
