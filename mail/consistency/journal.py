"""Checks of the journal: positions without gaps, and messages that agree with their last entry."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    TableValuedAlias,
    case,
    cast,
    column,
    exists,
    func,
    select,
    true,
)
from sqlmodel import col

from mail.consistency.checks import ConsistencyCheck, EqualityRule, is_in_key_range
from models.events.event_types import EventType
from models.events.journal import Change, Stream
from models.messages.tables import Message
from models.store.columns import BIG_INTEGER, core_table
from models.users.tables import User

SUBJECT = "journal"
STREAMS_PER_STATEMENT = 100  # each can have as many entries as the options allow
ADDING_TYPES = (
    EventType.MESSAGE_ADDED,
    EventType.MESSAGE_RECEIVED,
    EventType.MESSAGE_MOVED,
    EventType.MESSAGE_RESTORED,
)
REMOVING_TYPES = (EventType.MESSAGE_DELETED, EventType.MESSAGE_PURGED)


def journal_checks(dialect: str) -> list[ConsistencyCheck]:
    """All checks of the journal. Lost positions can't be repaired."""
    return [
        _gap_check(dialect),
        _last_position_check(),
        _message_placement_matches_journal_check(dialect),
        _modseq_check(dialect),
    ]


def _id_count(dialect: str) -> ColumnElement[int]:
    ids = col(Change.ids)
    return func.json_array_length(ids) if dialect == "sqlite" else func.jsonb_array_length(ids)


def _ids_as_rows(dialect: str) -> TableValuedAlias:
    """The ids of a journal entry, as rows."""
    ids = col(Change.ids)
    if dialect == "sqlite":
        return func.json_each(ids).table_valued(column("value", BIG_INTEGER), name="each")
    id_rows = func.jsonb_array_elements_text(ids).table_valued(column("value", String))
    return id_rows.render_derived(name="each")


def _gap_check(dialect: str) -> ConsistencyCheck:
    """The check that each journal entry begins at the end of the one before.

    The oldest entry must begin at the end of the entries that are no longer kept.
    """
    before = func.lag(col(Change.last)).over(
        partition_by=col(Change.stream_id), order_by=col(Change.last)
    )
    rows = (
        select(
            col(Change.stream_id).label("stream_id"),
            (col(Change.last) - _id_count(dialect)).label("begins"),
            before.label("before"),
        )
        .where(is_in_key_range(col(Change.stream_id)))
        .subquery()
    )
    table = core_table(Stream)
    return ConsistencyCheck(
        SUBJECT,
        Stream,
        {
            "gap": EqualityRule(
                func.coalesce(rows.c.before, col(Stream.pruned_position)), rows.c.begins
            )
        },
        table.join(rows, rows.c.stream_id == table.c.id),
        col(Stream.id),
        keys_per_statement=STREAMS_PER_STATEMENT,
    )


def _last_position_check() -> ConsistencyCheck:
    newest = select(func.max(col(Change.last))).where(col(Change.stream_id) == col(Stream.id))
    return ConsistencyCheck(
        SUBJECT,
        Stream,
        {
            "last": EqualityRule(
                func.coalesce(newest.scalar_subquery(), col(Stream.pruned_position)),
                col(Stream.last),
            )
        },
        core_table(Stream),
        col(Stream.id),
    )


def _message_placement_matches_journal_check(dialect: str) -> ConsistencyCheck:
    """The check that the last entry that added or removed a message agrees with its mailbox."""
    id_row = _ids_as_rows(dialect)
    touched = (
        select(
            col(Change.stream_id).label("stream_id"),
            cast(id_row.c.value, BigInteger).label("message_id"),
            func.max(col(Change.last)).label("last"),
        )
        .select_from(Change)
        .join(id_row, true())
        .where(
            is_in_key_range(col(Change.stream_id)),
            col(Change.type).in_([*ADDING_TYPES, *REMOVING_TYPES]),
        )
        .group_by(col(Change.stream_id), cast(id_row.c.value, BigInteger))
        .subquery()
    )
    messages = core_table(Message)
    source = (
        touched.join(User, col(User.id) == touched.c.stream_id)
        .join(
            Change,
            (col(Change.stream_id) == touched.c.stream_id) & (col(Change.last) == touched.c.last),
        )
        .join(Stream, col(Stream.id) == touched.c.stream_id)
        .outerjoin(
            messages,
            (messages.c.id == touched.c.message_id) & (messages.c.user_id == touched.c.stream_id),
        )
    )
    rule = EqualityRule(
        case((col(Change.type).in_(ADDING_TYPES), "in a mailbox"), else_="in none"),
        case((messages.c.mailbox_id.is_not(None), "in a mailbox"), else_="in none"),
    )
    key, kind = touched.c.message_id, "messages"
    stream: ColumnElement[Any] = touched.c.stream_id
    return ConsistencyCheck(
        SUBJECT,
        Stream,
        {"events": rule},
        source,
        stream,
        object_key=key,
        object_kind=kind,
        keys_per_statement=STREAMS_PER_STATEMENT,
    )


def _modseq_check(dialect: str) -> ConsistencyCheck:
    """The check that the MODSEQ of a message is the position of an entry that names it.

    Entries that are no longer kept are not compared.
    """
    modseq = col(Message.modseq)
    is_named_in_change: ColumnElement[bool]
    if dialect == "sqlite":
        is_named_in_change = col(Message.id).in_(select(_ids_as_rows(dialect).c.value))
    else:
        is_named_in_change = col(Change.ids).op("@>")(func.to_jsonb(col(Message.id)))
    is_change_with_modseq = exists().where(
        col(Change.stream_id) == col(Message.user_id),
        col(Change.last) == modseq,
        is_named_in_change,
    )
    is_consistent = case(
        (modseq <= col(Stream.pruned_position), True),
        (modseq > col(Stream.last), True),
        else_=is_change_with_modseq,
    )
    table = core_table(Message)
    return ConsistencyCheck(
        SUBJECT,
        Message,
        {
            "modseq": EqualityRule(
                case((modseq > col(Stream.last), col(Stream.last)), else_=modseq), modseq
            ),
            "change": EqualityRule(case((is_consistent, modseq)), modseq),
        },
        table.join(Stream, col(Stream.id) == table.c.user_id),
        col(Message.user_id),
        [col(Message.mailbox_id).is_not(None)],
    )
