"""Undo of message changes and of held sending, by a token that is returned once."""

from base64 import urlsafe_b64encode
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.queue.held_messages import find_messages_without_hold
from mail.storage.message_flags import imap_flags
from models.admin.tasks import TaskKind, UndoRecord
from models.errors import Conflict, ErrorCollector, NotFound
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import PreparedStatement, StatementWithValues, raw_values
from models.users.roles import Scope
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.auth.authentication import secret_digest
from resolvers.context import Context
from resolvers.mailboxes.owners import lock_mail_owners_and_audit_change
from resolvers.messages.bulk import flag_changes, mute, row_changes
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.submission import create as submission_create
from resolvers.submission import mutations as submission_mutations
from resolvers.submission import send_on_behalf
from resolvers.submission.create import SendRequest, SentMessage, SentRowSelection
from resolvers.submission.drafts import restoration as draft_restoration
from resolvers.submission.drafts import send as draft_send
from resolvers.submission.drafts.restoration import RestoredDraft
from resolvers.submission.drafts.send import DraftSendRequest
from resolvers.users.selection import UserSelector

SEND_KIND = "MESSAGE_SEND"

_INSERT_UNDO = PreparedStatement(insert(UndoRecord).inline())


@dataclass(frozen=True, slots=True)
class StateBeforeChange:
    """The state of messages and threads before a change."""

    task_kind: TaskKind
    changes: FlagChanges
    rows: Sequence[ColumnRow]
    muted_by_thread_id: Mapping[int, bool] = field(default_factory=dict)
    target_by_user: Mapping[int, int] | None = None  # target mailbox of each account


class StoredUndo(NamedTuple):
    """The token of a stored undo, and its expiry."""

    token: str
    expires_at: datetime


async def store_undo(ctx: Context, session: AsyncSession, state: StateBeforeChange) -> StoredUndo:
    """Store the state before a change. Returns the undo token and its expiry."""
    before = _undo_state_as_json(state)
    if "public_metadata" in (state.changes.values or {}):
        extra_columns = frozenset({"public_metadata"})
        meta_rows = await row_changes.load_rows_in_transaction(
            session, [row.id for row in state.rows], extra_columns=extra_columns
        )
        before["meta"] = {str(row.id): row.public_metadata for row in meta_rows}
    row, token = _new_token_and_row(ctx, before)
    await (await session.connection()).execute(insert(UndoRecord), row)
    return StoredUndo(token, row["expires_at"])


@dataclass(frozen=True, slots=True)
class PreparedUndo:
    """An undo token, its expiry and the statement that stores it."""

    token: str
    expires_at: datetime
    insert_statement: StatementWithValues


def prepare_undo(ctx: Context, state: StateBeforeChange) -> PreparedUndo:
    """Return an undo that is not stored yet.

    For changes of flags in one synchronous transaction, which don't touch `public_metadata`.
    """
    row, token = _new_token_and_row(ctx, _undo_state_as_json(state))
    return PreparedUndo(token, row["expires_at"], (_INSERT_UNDO, row))


class SentMessagesWithUndo(NamedTuple):
    """Sent messages. If they are held, `undo` takes them back."""

    messages: list[SentMessage]
    undo: StoredUndo | None


async def send_with_undo(
    ctx: Context,
    outgoing: SendRequest,
    problems: ErrorCollector,
    form: SentRowSelection,
    token_user_id: int | None = None,
) -> SentMessagesWithUndo:
    """Send messages. If they are held, also return a token that takes them back, and its expiry.

    The token is for the user `token_user_id`; None is the sending user.
    """
    if not outgoing.undo_window:
        return SentMessagesWithUndo(
            await submission_create.compose_and_queue_messages(ctx, outgoing, problems, form), None
        )
    async with ctx.combined_transaction():
        sent_messages = await submission_create.compose_and_queue_messages(ctx, outgoing, problems)
        held_submissions = [message.submission for message in sent_messages if message.submission]
        token = await create_undo_of_held(ctx, held_submissions, token_user_id)
    return SentMessagesWithUndo(sent_messages, token)


async def submit_draft_with_undo(
    ctx: Context, request: DraftSendRequest, token_user_id: int | None = None
) -> SentMessagesWithUndo:
    """Send a draft.

    If it is held, also return a token that makes it a draft again, and its expiry. The token of a
    mail merge makes each copy a draft. The token is for the user `token_user_id`; None is the
    sending user.
    """
    if not request.undo_window:
        sent_messages, _ = await draft_send.submit_draft(ctx, request)
        return SentMessagesWithUndo(sent_messages, None)
    async with ctx.combined_transaction():
        sent_messages, restorable_draft = await draft_send.submit_draft(ctx, request)
        held_submissions = [message.submission for message in sent_messages if message.submission]
        extra_values = {} if restorable_draft is None else {"draft": restorable_draft}
        token = await create_undo_of_held(ctx, held_submissions, token_user_id, **extra_values)
    return SentMessagesWithUndo(sent_messages, token)


async def create_undo_of_held(
    ctx: Context,
    submissions: Sequence[ColumnRow],
    token_user_id: int | None = None,
    **extra_values: Any,
) -> StoredUndo | None:
    """Store an undo token for held submissions, in the transaction that holds them.

    Only the user `token_user_id` can use the token; None is the sending user. `extra_values` are
    stored with it. Returns None if the submissions are not held.
    """
    until = submissions[0].undoable_until if submissions else None
    if until is None:
        return None
    sender_id = require_user_id(ctx)
    row, token = _new_token_and_row(
        ctx,
        {
            "kind": SEND_KIND,
            "sender": sender_id,
            "submissions": [submission.id for submission in submissions],
            **extra_values,
        },
    )
    row |= {"user_id": token_user_id or sender_id, "expires_at": until}
    async with ctx.write_session(sender_id) as session:
        await (await session.connection()).execute(insert(UndoRecord), row)
    return StoredUndo(token, until)


class _NewUndoToken(NamedTuple):
    """A new undo token, and the row to insert for it."""

    row: dict[str, Any]
    token: str


def _new_token_and_row(ctx: Context, stored_state: dict[str, Any]) -> _NewUndoToken:
    """Return the row of a new undo token, and the token."""
    token = urlsafe_b64encode(ctx.environment.random_bytes(24)).decode()
    row = {
        "id": ctx.environment.new_id(),
        "user_id": require_user_id(ctx),
        "digest": secret_digest(token),
        "before": stored_state,
        "expires_at": ctx.environment.now() + ctx.environment.options.undo_window,
    }
    return _NewUndoToken(row, token)


def _undo_state_as_json(state: StateBeforeChange) -> dict[str, Any]:
    """Return the stored form of the state before a change.

    `flags` is None if all flags change; `left` lists those that are set afterwards.
    """
    changes, rows = state.changes, state.rows
    values = changes.values or {}
    # snoozing moves messages
    kind = state.task_kind if changes.snooze is None else TaskKind.MESSAGE_MOVE
    before: dict[str, Any] = {
        "kind": kind,
        "owners": sorted(set(raw_values(rows, "user_id"))),
        "messages": bulk_flags.states_for_undo(rows),
        "flags": None if changes.replace is not None else changes.touched_flag_names,
        "left": changes.flag_names_set_afterwards,
        "expires_at": kind != TaskKind.MESSAGE_UPDATE or "expires_at" in values,
    }
    if state.target_by_user is not None and kind == TaskKind.MESSAGE_MOVE:
        before["to"] = list(state.target_by_user.items())
    if state.muted_by_thread_id:
        before["muted"] = list(state.muted_by_thread_id.items())
    return before


@dataclass(frozen=True, slots=True)
class UndoneChange:
    """The messages that an undo reverted, and the submissions that it cancelled."""

    message_ids: Sequence[int]  # of an undone submission: of the drafts
    submission_ids: Sequence[int] = ()

    @property
    def restored_count(self) -> int:
        """The number of cancelled submissions, or else of reverted messages."""
        return len(self.submission_ids or self.message_ids)


async def undo_by_token(ctx: Context, token: str) -> UndoneChange:
    """Undo the change of this token. Returns what was reverted.

    Later changes stay: of a message that was moved on or restored, and of a flag that was set or
    removed again. Permanently deleted messages stay deleted; INBOX replaces a mailbox that no
    longer exists. Changes of others' messages need the permission again. Raises NotFound,
    Forbidden, or Conflict if a held message is already being sent.
    """
    user_id = require_user_id(ctx)
    is_this_undo = (
        col(UndoRecord.digest) == secret_digest(token),
        is_own_or_shared(ctx, UndoRecord),
        col(UndoRecord.expires_at) > ctx.environment.now(),
    )
    stored_state = next(
        iter(await ctx.read(select(col(UndoRecord.before)).where(*is_this_undo))), None
    )
    if stored_state and stored_state.before["kind"] == SEND_KIND:
        sender_id = stored_state.before.get("sender")  # missing in tokens of earlier versions
        async with send_on_behalf.audited_transaction_as_user(
            ctx, sender_id, "undo", frozenset({Scope.MAIL})
        ) as sender_ctx:
            return await _cancel_held_submissions_and_restore_draft(
                sender_ctx,
                is_this_undo,
                await draft_restoration.store_blobs_for_draft_restoration(
                    sender_ctx, stored_state.before
                ),
            )
    # without messages the threads of the viewer were muted
    owners = (stored_state.before.get("owners") if stored_state else None) or [user_id]
    async with lock_mail_owners_and_audit_change(
        ctx, UserSelector(is_reference=True, ids=tuple(owners)), "undo", path="token"
    ) as locked_owners:
        return await _revert_messages_to_undo_state(
            ctx,
            locked_owners.session,
            await _delete_undo_token_and_return_state(locked_owners.session, is_this_undo),
        )


async def _delete_undo_token_and_return_state(
    session: AsyncSession, conditions: Sequence[Any]
) -> dict[str, Any]:
    """Delete the token and return its stored state. Raises NotFound."""
    record = (await session.exec(instances(UndoRecord).where(*conditions))).first()
    if record is None:
        raise NotFound("", path=["token"], noun="Undo token")
    await session.delete(record)
    await session.flush()
    return record.before


async def _cancel_held_submissions_and_restore_draft(
    ctx: Context, conditions: Sequence[Any], draft_state: RestoredDraft | None
) -> UndoneChange:
    """Use up the undo token with these conditions, and cancel its held messages.

    Without `draft_state` their copies become drafts; otherwise the former draft is restored. Raises
    Conflict with the path of the token if a message can't be cancelled any more.
    """
    async with ctx.write_session(require_user_id(ctx)) as session:
        before = await _delete_undo_token_and_return_state(session, conditions)
        # tokens from before mail merge have one submission
        submission_ids = before.get("submissions") or [before["submission"]]
        try:
            submission_rows = await submission_mutations.cancel_submissions(
                ctx, submission_ids, make_drafts=draft_state is None
            )
        except Conflict as late:
            raise Conflict(late.message, path=["token"]) from late
        if draft_state:
            await draft_restoration.restore_draft(ctx, session, draft_state)
    message_ids = [row.message_id for row in submission_rows if row.message_id is not None]
    return UndoneChange(message_ids, submission_ids)


async def _revert_messages_to_undo_state(
    ctx: Context, session: AsyncSession, stored_state: dict[str, Any]
) -> UndoneChange:
    """Revert what the change did, and leave later changes. Returns the reverted messages."""
    state_by_id = {message[0]: message[1:] for message in stored_state["messages"]}
    await mute.set_muted(ctx, session, dict(stored_state.get("muted", ())))
    is_move = stored_state["kind"] != TaskKind.MESSAGE_UPDATE
    if is_move:
        current_rows = await row_changes.load_rows_in_transaction(session, list(state_by_id))
        state_by_id = {
            row.id: state_by_id[row.id]
            for row in current_rows
            if _is_where_change_left_it(row, stored_state)
        }
        await _restore_or_move_to_former_mailboxes(
            ctx,
            session,
            stored_state["kind"],
            {key: message_state[0] for key, message_state in state_by_id.items()},
        )
    meta = stored_state.get("meta")
    extra_columns = frozenset() if meta is None else frozenset({"public_metadata"})
    rows = [
        row
        for row in await row_changes.load_rows_in_transaction(
            session, list(state_by_id), extra_columns=extra_columns
        )
        if row.mailbox_id is not None
    ]
    states = {}
    for row in rows:
        # tokens from before snoozing end with the expiry
        home_mailbox_id, flag_names, expires, *snoozed = state_by_id[row.id]
        until, origin = snoozed or (None, None)
        states[row.id] = flag_changes.columns_from_flag_names(
            _reverted_flag_names(imap_flags(row), flag_names, stored_state)
        )
        if stored_state["expires_at"]:
            states[row.id]["expires_at"] = row_changes.parse_stored_time(expires)
        if is_move:  # a returned message is snoozed again
            is_at_home = row.mailbox_id == home_mailbox_id
            states[row.id]["snoozed_until"] = (
                row_changes.parse_stored_time(until) if is_at_home else None
            )
            states[row.id]["snoozed_from"] = origin if is_at_home else None
        if meta is not None:
            states[row.id]["public_metadata"] = meta[str(row.id)]
    await bulk_flags.set_columns_of_each(ctx, session, rows, states)
    return UndoneChange([row.id for row in rows])


def _is_where_change_left_it(message_row: ColumnRow, stored_state: Mapping[str, Any]) -> bool:
    """True if a message is still where the change put it. After a snooze it can be anywhere."""
    if stored_state["kind"] != TaskKind.MESSAGE_MOVE:
        return message_row.mailbox_id is None
    if "to" not in stored_state:
        return message_row.mailbox_id is not None
    return bool(message_row.mailbox_id == dict(stored_state["to"]).get(message_row.user_id))


def _reverted_flag_names(
    current: list[str], previous: list[str], stored_state: Mapping[str, Any]
) -> list[str]:
    """Return the flags with those reverted that are still as the change left them."""
    left = stored_state.get("left", current)  # missing in tokens of earlier versions
    touched = [*previous, *left] if stored_state["flags"] is None else stored_state["flags"]
    back = {name for name in touched if (name in current) == (name in left)}
    return [n for n in current if n not in back] + [n for n in previous if n in back]


async def _restore_or_move_to_former_mailboxes(
    ctx: Context, session: AsyncSession, task_kind: TaskKind, mailbox_by_message: Mapping[int, int]
) -> None:
    """Return deleted or moved messages to their former mailboxes, else to INBOX.

    INBOX also replaces SCHEDULED for a message that is no longer held.
    """
    rows = await row_changes.load_rows_in_transaction(session, list(mailbox_by_message))
    mailboxes, inboxes = await _load_homes_and_inboxes(session, rows, mailbox_by_message)
    homes = {
        row.id: mailboxes.get(mailbox_by_message[row.id], inboxes[row.user_id]) for row in rows
    }
    connection = await session.connection()
    unheld_ids = await connection.run_sync(find_messages_without_hold, homes)
    homes |= {row.id: inboxes[row.user_id] for row in rows if row.id in unheld_ids}
    deleted = task_kind != TaskKind.MESSAGE_MOVE
    back: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in rows:
        if (row.mailbox_id is None) is deleted and row.mailbox_id != homes[row.id].id:
            back[homes[row.id].id].append(row)
    for mailbox_rows in back.values():
        home_mailbox = homes[mailbox_rows[0].id]
        if deleted:
            await row_changes.restore_deleted_messages_to_mailbox(
                ctx, session, mailbox_rows, home_mailbox
            )
        else:
            await row_changes.move_messages_to_mailbox(ctx, session, mailbox_rows, home_mailbox)


class _HomesAndInboxes(NamedTuple):
    """The former mailboxes that still exist, and the inboxes of their users."""

    home_by_mailbox_id: dict[int, ColumnRow]
    inbox_by_user_id: dict[int, ColumnRow]


async def _load_homes_and_inboxes(
    session: AsyncSession, rows: Sequence[ColumnRow], mailbox_by_message: Mapping[int, int]
) -> _HomesAndInboxes:
    """Return the former mailboxes that still exist by ID, and INBOX by user ID."""
    keys, users = sorted(set(mailbox_by_message.values())), sorted({row.user_id for row in rows})
    is_home_or_inbox = col(Mailbox.id).in_(keys) | (col(Mailbox.path) == "INBOX")
    statement = select(*select_columns(Mailbox)).where(
        col(Mailbox.user_id).in_(users), is_home_or_inbox
    )
    found = (await (await session.connection()).execute(statement)).all()
    inboxes = {row.user_id: row for row in found if row.path == "INBOX"}
    return _HomesAndInboxes({row.id: row for row in found}, inboxes)
