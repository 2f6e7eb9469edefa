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

from mail.consistency.checks import Check, Rule, within
from models.events.journal import Change, ChangeKind, Stream
from models.messages.tables import Message
from models.store.columns import Big, table_of
from models.users.tables import User

SUBJECT = "journal"
STREAMS = 100  # each can have as many entries as the options allow
HERE = (ChangeKind.MESSAGE_ADDED, ChangeKind.MESSAGE_MOVED, ChangeKind.MESSAGE_RESTORED)
AWAY = (ChangeKind.MESSAGE_ARCHIVED, ChangeKind.MESSAGE_DELETED)


def checks(dialect: str) -> list[Check]:
    """All checks of the journal. Lost positions can't be repaired."""
    return [_gaps(dialect), _ends(), _events(dialect), _modseqs(dialect)]


def _length(dialect: str) -> ColumnElement[int]:
    ids = col(Change.ids)
    return func.json_array_length(ids) if dialect == "sqlite" else func.jsonb_array_length(ids)


def _each(dialect: str) -> TableValuedAlias:
    """The ids of a journal entry, as rows."""
    ids = col(Change.ids)
    if dialect == "sqlite":
        return func.json_each(ids).table_valued(column("value", Big), name="each")
    named = func.jsonb_array_elements_text(ids).table_valued(column("value", String))
    return named.render_derived(name="each")


def _gaps(dialect: str) -> Check:
    """The check that each journal entry begins at the end of the one before.

    The oldest entry must begin at the end of the entries that are no longer kept.
    """
    before = func.lag(col(Change.last)).over(
        partition_by=col(Change.stream_id), order_by=col(Change.last)
    )
    rows = (
        select(
            col(Change.stream_id).label("stream_id"),
            (col(Change.last) - _length(dialect)).label("begins"),
            before.label("before"),
        )
        .where(within(col(Change.stream_id)))
        .subquery()
    )
    table = table_of(Stream)
    return Check(
        SUBJECT,
        Stream,
        {"gap": Rule(func.coalesce(rows.c.before, col(Stream.gone)), rows.c.begins)},
        table.join(rows, rows.c.stream_id == table.c.id),
        col(Stream.id),
        step=STREAMS,
    )


def _ends() -> Check:
    newest = select(func.max(col(Change.last))).where(col(Change.stream_id) == col(Stream.id))
    return Check(
        SUBJECT,
        Stream,
        {"last": Rule(func.coalesce(newest.scalar_subquery(), col(Stream.gone)), col(Stream.last))},
        table_of(Stream),
        col(Stream.id),
    )


def _events(dialect: str) -> Check:
    """The check that the last entry that added or removed a message agrees with its mailbox."""
    each = _each(dialect)
    touched = (
        select(
            col(Change.stream_id).label("stream_id"),
            cast(each.c.value, BigInteger).label("message_id"),
            func.max(col(Change.last)).label("last"),
        )
        .select_from(Change)
        .join(each, true())
        .where(within(col(Change.stream_id)), col(Change.kind).in_([*HERE, *AWAY]))
        .group_by(col(Change.stream_id), cast(each.c.value, BigInteger))
        .subquery()
    )
    messages = table_of(Message)
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
    rule = Rule(
        case((col(Change.kind).in_(HERE), "in a folder"), else_="in none"),
        case((messages.c.mailbox_id.is_not(None), "in a folder"), else_="in none"),
    )
    key, kind = touched.c.message_id, "messages"
    stream: ColumnElement[Any] = touched.c.stream_id
    return Check(
        SUBJECT, Stream, {"events": rule}, source, stream, key=key, kind=kind, step=STREAMS
    )


def _modseqs(dialect: str) -> Check:
    """The check that the MODSEQ of a message is the position of an entry that names it.

    Entries that are no longer kept are not compared.
    """
    modseq = col(Message.modseq)
    named: ColumnElement[bool]
    if dialect == "sqlite":
        named = col(Message.id).in_(select(_each(dialect).c.value))
    else:
        named = col(Change.ids).op("@>")(func.to_jsonb(col(Message.id)))
    told = exists().where(
        col(Change.stream_id) == col(Message.user_id), col(Change.last) == modseq, named
    )
    said = case((modseq <= col(Stream.gone), True), (modseq > col(Stream.last), True), else_=told)
    table = table_of(Message)
    return Check(
        SUBJECT,
        Message,
        {
            "modseq": Rule(
                case((modseq > col(Stream.last), col(Stream.last)), else_=modseq), modseq
            ),
            "change": Rule(case((said, modseq)), modseq),
        },
        table.join(Stream, col(Stream.id) == table.c.user_id),
        col(Message.user_id),
        [col(Message.mailbox_id).is_not(None)],
    )
