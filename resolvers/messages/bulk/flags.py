"""Changes of flags, keywords and other columns of messages, in the caller's transaction."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Select, Update, bindparam, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.scanners import training_worker
from mail.storage.message_flags import (
    SYSTEM_FLAGS,
    fold_keyword,
    imap_flags,
    imap_flags_from_values,
    without_keywords,
)
from models.errors import InvalidInput
from models.events.event_types import EventType
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.prepared_statements import (
    StatementWithValues,
    column_values,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
    raw_values,
    rows_at,
)
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.row_changes import (
    STATE_COLUMNS,
    CounterDelta,
    counter_statement,
    group_rows_by_user,
)

MAX_KEYWORDS = 64  # per message
TIME_COLUMNS = ("expires_at", "snoozed_until")
UNUSED_COLUMNS = {
    "thread_id",
    "modseq",
    "size",
    "deleted_at",
}  # of STATE_COLUMNS, not needed for flag changes

MessageColumnValues = Mapping[str, Any]  # by column


class FlagsAfter(NamedTuple):
    """The flags and keywords of a message after a change, and the difference from before."""

    flag_names: list[str]  # flags and keywords with their IMAP names
    keywords: list[str]
    changes_keywords: bool
    is_different: bool
    unseen_change: int  # added to the unseen counter


class MessagesWithFlags(NamedTuple):
    """Messages of one account, and the flags of each after the change."""

    rows: Sequence[ColumnRow]
    flags_after: Sequence[FlagsAfter]


@prepare_cached
def flag_rows_query(dialect: str) -> Select[*tuple[Any, ...]]:
    """Build the select of the messages with these `ids` of the account `user`, by ID."""
    conditions = (
        col(Message.user_id) == integer_parameter("user"),
        col(Message.deleted_at).is_(None),
    )
    rows = select(*select_columns(Message, STATE_COLUMNS - UNUSED_COLUMNS)).where(*conditions)
    return rows.where(is_in_parameter(dialect, col(Message.id), "ids")).order_by(col(Message.id))


async def change_flags(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], changes: FlagChanges
) -> list[int]:
    """Change flags, keywords and values. Returns the IDs of the messages that changed.

    `require_quota_for_metadata` checks before whether new metadata fit into the account.
    """
    return await ctx.environment.run_in_session(
        session, lambda transaction: change_flags_in_transaction(ctx, transaction, rows, changes)
    )


def change_flags_in_transaction(
    ctx: Context,
    transaction: DatabaseTransaction,
    rows: Sequence[ColumnRow],
    changes: FlagChanges,
    *,
    extra_statements: Sequence[StatementWithValues] = (),
) -> list[int]:
    """Change flags like `change_flags`, in a transaction that locks the accounts.

    `extra_statements` are sent with its own statements.
    """
    after = _flags_after_each(rows, changes)
    statements, ids = list(extra_statements), []
    for owner, indexes in _changed_row_indexes_by_user(rows, after).items():
        changed_messages = MessagesWithFlags(
            rows_at(rows, indexes), [after[index] for index in indexes]
        )
        statements += _lock_stream_and_plan_change_statements(
            ctx, transaction, owner, changed_messages, changes
        )
        _set_keywords(transaction, changed_messages)
        ids += raw_values(changed_messages.rows, "id")
    transaction.execute_statements(statements)
    training_worker.enqueue_training_for_junk_keywords(
        transaction, ids, [*changes.add, *(changes.replace or ())]
    )
    return ids


def _changed_row_indexes_by_user(
    rows: Sequence[ColumnRow], flags_after: Sequence[FlagsAfter]
) -> dict[int, list[int]]:
    """Return the row numbers of messages that change, by user ID."""
    indexes_by_user: defaultdict[int, list[int]] = defaultdict(list)
    for index, (owner, new_flags) in enumerate(
        zip(raw_values(rows, "user_id"), flags_after, strict=True)
    ):
        if new_flags.is_different:
            indexes_by_user[owner].append(index)
    return indexes_by_user


def _flags_after_each(rows: Sequence[ColumnRow], changes: FlagChanges) -> list[FlagsAfter]:
    """Compute the flags of each message after the change, once for messages with equal flags."""
    states = _flag_states(rows)
    index_by_state = {state: index for index, state in enumerate(states)}
    after = {state: _flags_after(rows[index], changes) for state, index in index_by_state.items()}
    return [after[state] for state in states]


def _flag_states(rows: Sequence[ColumnRow]) -> list[tuple[Any, ...]]:
    """Return the flags and keywords of each message as a hashable value."""
    keywords = [
        value if isinstance(value, str) else tuple(value) for value in raw_values(rows, "keywords")
    ]
    return list(zip(*(raw_values(rows, name) for name in SYSTEM_FLAGS), keywords, strict=True))


def flag_names_of_rows(rows: Sequence[ColumnRow]) -> list[list[str]]:
    """Return the flags and keywords of each message, with their IMAP names."""
    states = _flag_states(rows)
    index_by_state = {state: index for index, state in enumerate(states)}
    names_by_state = {state: imap_flags(rows[index]) for state, index in index_by_state.items()}
    return [names_by_state[state] for state in states]


def states_for_undo(rows: Sequence[ColumnRow]) -> list[list[Any]]:
    """Return the state of each message for an undo: ID, mailbox, flags, expiry and snooze."""
    columns = [
        raw_values(rows, "id"),
        raw_values(rows, "mailbox_id"),
        flag_names_of_rows(rows),
        *([at and at.isoformat() for at in column_values(rows, name)] for name in TIME_COLUMNS),
        raw_values(rows, "snoozed_from"),
    ]
    return [list(row_values) for row_values in zip(*columns, strict=True)]


def _flags_after(message: ColumnRow, changes: FlagChanges) -> FlagsAfter:
    """Return the flags of a message after the change. Raises InvalidInput for too many keywords."""
    system = {name: changes.flags.get(name, getattr(message, name)) for name in SYSTEM_FLAGS}
    keywords = _keywords_after(message.keywords, changes)
    if len(keywords) > MAX_KEYWORDS:
        raise InvalidInput(
            f"A message has at most {MAX_KEYWORDS} keywords.",
            constraint=ValidationConstraint.MAX,
            path=["set", "addFlags"],
        )
    reworded = keywords != message.keywords
    differs = any(getattr(message, name) != value for name, value in system.items())
    return FlagsAfter(
        imap_flags_from_values(*system.values(), keywords),
        keywords,
        reworded,
        differs or reworded or bool(changes.values),
        int(message.seen) - int(system["seen"]),
    )


def _keywords_after(stored_keywords: Sequence[str], changes: FlagChanges) -> list[str]:
    """Return the keywords after the change. Stored keywords keep their spelling."""
    keywords = list(stored_keywords)
    if changes.replace is not None:
        stored_spelling = {fold_keyword(name): name for name in reversed(keywords)}
        keywords = [stored_spelling.get(fold_keyword(name), name) for name in changes.replace]
    keywords += without_keywords(changes.add, keywords)
    return without_keywords(keywords, changes.remove) if changes.remove else keywords


def _lock_stream_and_plan_change_statements(
    ctx: Context,
    transaction: DatabaseTransaction,
    owner_id: int,
    changed_messages: MessagesWithFlags,
    changes: FlagChanges,
) -> list[StatementWithValues]:
    """Return the statements that update these messages of one account, and the journal."""
    rows, after = changed_messages
    last, journal_statements = _lock_stream_and_plan_journal_statements(
        ctx, transaction, owner_id, rows, [new_flags.flag_names for new_flags in after]
    )
    unseen = Counter[int]()
    for mailbox, new_flags in zip(raw_values(rows, "mailbox_id"), after, strict=True):
        if mailbox is not None:
            unseen[mailbox] += new_flags.unseen_change
    dialect = transaction.environment.database.dialect
    values = {**changes.flags, **(changes.values or {})}
    parameters = {"ids": raw_values(rows, "id"), "last": last}
    parameters |= {f"its_{name}": value for name, value in values.items()}
    statements = [*journal_statements, (_update_query(dialect, frozenset(values)), parameters)]
    tallies = {
        mailbox: CounterDelta(unseen_count=unseen_delta) for mailbox, unseen_delta in unseen.items()
    }
    return [*statements, counter_statement(dialect, last, tallies)] if tallies else statements


def _lock_stream_and_plan_journal_statements(
    ctx: Context,
    transaction: DatabaseTransaction,
    owner_id: int,
    rows: Sequence[ColumnRow],
    flag_names: list[list[str]],
) -> tuple[int, list[StatementWithValues]]:
    """Return the new MODSEQ of these messages of one account, and the journal statements."""
    entries = ctx.journal_entries(
        EventType.MESSAGE_UPDATED,
        raw_values(rows, "id"),
        mailbox=raw_values(rows, "mailbox_id"),
        uid=raw_values(rows, "uid"),
        flags=flag_names,
    )
    return transaction.lock_stream_and_plan_entry_statements(
        owner_id, entries, at=ctx.environment.now()
    )


@prepare_cached
def _update_query(dialect: str, column_names: frozenset[str]) -> Update:
    """Return the update that sets these columns and the modseq of the messages in `ids`."""
    table = core_table(Message)
    column_parameters = {
        name: bindparam(f"its_{name}", type_=table.c[name].type) for name in sorted(column_names)
    }
    statement = update(table).where(is_in_parameter(dialect, table.c.id, "ids"))
    return statement.values(modseq=integer_parameter("last"), **column_parameters)


def _set_keywords(transaction: DatabaseTransaction, messages: MessagesWithFlags) -> None:
    table = core_table(Message)
    pairs = zip(raw_values(messages.rows, "id"), messages.flags_after, strict=True)
    parameters = [
        {"key": key, "words": new_flags.keywords}
        for key, new_flags in pairs
        if new_flags.changes_keywords
    ]
    if parameters:
        keywords = bindparam("words", type_=table.c.keywords.type)
        statement = update(table).where(table.c.id == bindparam("key")).values(keywords=keywords)
        transaction.connection.execute(statement, parameters)


async def set_columns_of_each(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[ColumnRow],
    values_by_message_id: Mapping[int, MessageColumnValues],
) -> None:
    """Set columns of each message to its own values: flags, keywords and others.

    All messages get the same columns, which their rows contain.
    """
    other_rows = [
        row
        for row in rows
        if any(getattr(row, name) != value for name, value in values_by_message_id[row.id].items())
    ]
    for user_rows in group_rows_by_user(other_rows).values():
        await ctx.environment.run_in_session(
            session,
            partial(
                _set_columns_in_transaction,
                ctx,
                rows=user_rows,
                values_by_message_id=values_by_message_id,
            ),
        )


def _set_columns_in_transaction(
    ctx: Context,
    transaction: DatabaseTransaction,
    rows: Sequence[ColumnRow],
    values_by_message_id: Mapping[int, MessageColumnValues],
) -> None:
    table = core_table(Message)
    flag_names = [imap_flags(values_by_message_id[row.id]) for row in rows]
    last, journal_statements = _lock_stream_and_plan_journal_statements(
        ctx, transaction, rows[0].user_id, rows, flag_names
    )
    names = sorted(values_by_message_id[rows[0].id])
    column_parameters = {name: bindparam(f"its_{name}", type_=table.c[name].type) for name in names}
    statement = (
        update(table).where(table.c.id == bindparam("key")).values(modseq=last, **column_parameters)
    )
    parameters = [
        {"key": row.id, **{f"its_{name}": values_by_message_id[row.id][name] for name in names}}
        for row in rows
    ]
    transaction.connection.execute(statement, parameters)
    tallies: defaultdict[int, CounterDelta] = defaultdict(CounterDelta)
    for row in rows:
        if row.mailbox_id is not None:
            tallies[row.mailbox_id].unseen_count += int(row.seen) - int(
                values_by_message_id[row.id]["seen"]
            )
    transaction.execute_statements(
        [
            *journal_statements,
            counter_statement(transaction.environment.database.dialect, last, tallies),
        ]
        if tallies
        else journal_statements
    )
