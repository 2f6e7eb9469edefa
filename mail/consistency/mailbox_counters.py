"""Checks of mailboxes: their counters, and the UIDs of their messages."""

from collections.abc import Sequence

from sqlalchemy import case, func, select, update
from sqlmodel import col

from mail.consistency.checks import Check, Rule, total, within, write
from models.events.journal import ChangeKind, Entry, Stream
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import table_of

SUBJECT = "counters"


def checks() -> list[Check]:
    """All checks of mailboxes."""
    return [_folders(), _uids(), _places()]


def _folders() -> Check:
    counted = (
        select(
            col(Message.mailbox_id).label("mailbox_id"),
            func.count().label("total"),
            total(case((col(Message.seen), 0), else_=1)).label("unseen"),
            total(col(Message.size)).label("size"),
            func.max(col(Message.uid)).label("uid"),
            func.max(col(Message.modseq)).label("modseq"),
        )
        .where(within(col(Message.mailbox_id)))
        .group_by(col(Message.mailbox_id))
        .subquery()
    )
    uid, modseq = func.coalesce(counted.c.uid, 0), func.coalesce(counted.c.modseq, 0)
    next_uid, known = col(Mailbox.uid_next), col(Mailbox.modseq)
    newest = func.coalesce(col(Stream.last), known)
    # A message beyond the end of the journal is a finding of its own, not of its mailbox.
    end = case((newest < modseq, modseq), else_=newest)
    highest = case((known < modseq, modseq), (known > end, end), else_=known)
    rules = {
        name: Rule(func.coalesce(counted.c[name], 0), col(getattr(Mailbox, name)), cured=True)
        for name in ("total", "unseen", "size")
    }
    rules["uid_next"] = Rule(case((next_uid > uid, next_uid), else_=uid + 1), next_uid, cured=True)
    rules["modseq"] = Rule(highest, known, cured=True)
    index, told = col(Mailbox.modify_index), case((highest > newest, newest), else_=highest)
    rules["modify_index"] = Rule(case((index < told, told), else_=index), index, cured=True)
    table = table_of(Mailbox)
    source = table.outerjoin(counted, counted.c.mailbox_id == table.c.id).outerjoin(
        Stream, col(Stream.id) == table.c.user_id
    )
    return Check(SUBJECT, Mailbox, rules, source, col(Mailbox.user_id), cure=_recount)


def _recount(turn: Turn, check: Check, keys: Sequence[int], stream: int) -> None:
    written = write(turn, check, keys)
    if written:
        last = turn.record(stream, Entry(ChangeKind.MAILBOX_UPDATED, written), at=turn.world.now())
        theirs = update(Mailbox).where(col(Mailbox.id).in_(written))
        turn.connection.execute(theirs.values(modify_index=last))


def _uids() -> Check:
    twice = (
        select(col(Message.mailbox_id).label("mailbox_id"), func.count().label("many"))
        .where(within(col(Message.mailbox_id)))
        .group_by(col(Message.mailbox_id), col(Message.uid))
        .having(func.count() > 1)
        .subquery()
    )
    most = select(twice.c.mailbox_id, func.max(twice.c.many).label("many"))
    doubled = most.group_by(twice.c.mailbox_id).subquery()
    table = table_of(Mailbox)
    return Check(
        SUBJECT,
        Mailbox,
        {"messages_of_one_uid": Rule(case((doubled.c.many > 1, 1)), doubled.c.many)},
        table.join(doubled, doubled.c.mailbox_id == table.c.id),
        col(Mailbox.user_id),
    )


def _places() -> Check:
    """The check that a message is in a mailbox of its user, or in the archive and in no mailbox."""
    table = table_of(Message)
    archived = case((col(Message.archived_at).is_not(None), "archive"), else_="folder")
    lies = case((col(Message.mailbox_id).is_(None), "archive"), else_="folder")
    return Check(
        SUBJECT,
        Message,
        {
            "owner": Rule(
                col(Message.user_id),
                case(
                    (col(Message.mailbox_id).is_(None), col(Message.user_id)),
                    else_=col(Mailbox.user_id),
                ),
            ),
            "place": Rule(archived, lies),
        },
        table.outerjoin(Mailbox, col(Mailbox.id) == table.c.mailbox_id),
        col(Message.user_id),
    )
