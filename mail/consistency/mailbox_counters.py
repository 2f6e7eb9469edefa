"""Checks of mailboxes: their counters, and the UIDs of their messages."""

from collections.abc import Sequence

from sqlalchemy import case, func, select
from sqlmodel import col

from mail.consistency.checks import (
    ConsistencyCheck,
    EqualityRule,
    is_in_key_range,
    whole_sum,
    write_expected_values,
)
from models.events.event_types import EventType
from models.events.journal import JournalEntry, Stream
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import core_table

SUBJECT = "counters"


def mailbox_checks() -> list[ConsistencyCheck]:
    """All checks of mailboxes."""
    return [_mailbox_counter_check(), _duplicate_uid_check(), _message_placement_check()]


def _mailbox_counter_check() -> ConsistencyCheck:
    counted = (
        select(
            col(Message.mailbox_id).label("mailbox_id"),
            func.count().label("message_count"),
            whole_sum(case((col(Message.seen), 0), else_=1)).label("unseen_count"),
            whole_sum(col(Message.size)).label("size"),
            func.max(col(Message.uid)).label("uid"),
            func.max(col(Message.modseq)).label("modseq"),
        )
        .where(is_in_key_range(col(Message.mailbox_id)))
        .group_by(col(Message.mailbox_id))
        .subquery()
    )
    uid, modseq = func.coalesce(counted.c.uid, 0), func.coalesce(counted.c.modseq, 0)
    next_uid, highest_modseq = col(Mailbox.uid_next), col(Mailbox.modseq)
    newest = func.coalesce(col(Stream.last), highest_modseq)
    # A message beyond the end of the journal is a finding of its own, not of its mailbox.
    end = case((newest < modseq, modseq), else_=newest)
    highest = case(
        (highest_modseq < modseq, modseq), (highest_modseq > end, end), else_=highest_modseq
    )
    rules = {
        name: EqualityRule(
            func.coalesce(counted.c[name], 0), col(getattr(Mailbox, name)), is_repairable=True
        )
        for name in ("message_count", "unseen_count", "size")
    }
    rules["uid_next"] = EqualityRule(
        case((next_uid > uid, next_uid), else_=uid + 1), next_uid, is_repairable=True
    )
    rules["modseq"] = EqualityRule(highest, highest_modseq, is_repairable=True)
    table = core_table(Mailbox)
    source = table.outerjoin(counted, counted.c.mailbox_id == table.c.id).outerjoin(
        Stream, col(Stream.id) == table.c.user_id
    )
    return ConsistencyCheck(
        SUBJECT,
        Mailbox,
        rules,
        source,
        col(Mailbox.user_id),
        repair=_repair_counters_and_record_event,
    )


def _repair_counters_and_record_event(
    transaction: DatabaseTransaction, check: ConsistencyCheck, keys: Sequence[int], stream: int
) -> None:
    repaired_keys = write_expected_values(transaction, check, keys)
    if repaired_keys:
        transaction.record_entry(
            stream,
            JournalEntry(EventType.MAILBOX_UPDATED, repaired_keys),
            at=transaction.environment.now(),
        )


def _duplicate_uid_check() -> ConsistencyCheck:
    twice = (
        select(col(Message.mailbox_id).label("mailbox_id"), func.count().label("many"))
        .where(is_in_key_range(col(Message.mailbox_id)))
        .group_by(col(Message.mailbox_id), col(Message.uid))
        .having(func.count() > 1)
        .subquery()
    )
    most = select(twice.c.mailbox_id, func.max(twice.c.many).label("many"))
    doubled = most.group_by(twice.c.mailbox_id).subquery()
    table = core_table(Mailbox)
    return ConsistencyCheck(
        SUBJECT,
        Mailbox,
        {"messages_of_one_uid": EqualityRule(case((doubled.c.many > 1, 1)), doubled.c.many)},
        table.join(doubled, doubled.c.mailbox_id == table.c.id),
        col(Mailbox.user_id),
    )


def _message_placement_check() -> ConsistencyCheck:
    """The check that a message is in a mailbox of its user, or in the archive and in no mailbox."""
    table = core_table(Message)
    archived = case((col(Message.deleted_at).is_not(None), "archive"), else_="mailbox")
    lies = case((col(Message.mailbox_id).is_(None), "archive"), else_="mailbox")
    return ConsistencyCheck(
        SUBJECT,
        Message,
        {
            "owner": EqualityRule(
                col(Message.user_id),
                case(
                    (col(Message.mailbox_id).is_(None), col(Message.user_id)),
                    else_=col(Mailbox.user_id),
                ),
            ),
            "place": EqualityRule(archived, lies),
        },
        table.outerjoin(Mailbox, col(Mailbox.id) == table.c.mailbox_id),
        col(Message.user_id),
    )
