"""Changes of flags, keywords and other columns of messages, in the caller's transaction."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Select, Update, bindparam, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.scanners import training_worker
from mail.storage.message_flags import SYSTEM_FLAGS, flags, named_flags
from models.errors import Invalid
from models.events.journal import ChangeKind
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, picked, table_of
from models.store.prepared_statements import (
    Sent,
    among,
    chosen,
    number,
    prepared,
    read_of,
    values_of,
)
from resolvers.context import Context
from resolvers.messages.bulk.row_changes import STATE, Changes, Tally, by_user, counted

KEYWORDS = 64  # per message
TIMES = ("expires", "snoozed_until")
UNREAD = {
    "thread_id",
    "modseq",
    "size",
    "archived_at",
}  # of STATE_COLUMNS, not needed for flag changes

States = Mapping[str, Any]  # by column


class After(NamedTuple):
    """The flags and keywords of a message after a change, and the difference from before."""

    flags: list[str]  # flags and keywords with their IMAP names
    keywords: list[str]
    reworded: bool
    differs: bool
    unseen: int  # added to the unseen counter


class Some(NamedTuple):
    """Messages of one account, and the flags of each after the change."""

    rows: Sequence[Picked]
    after: Sequence[After]


@prepared
def asked(dialect: str) -> Select[*tuple[Any, ...]]:
    """Build the select of the messages with these `ids` of the account `user`, by ID."""
    theirs = col(Message.user_id) == number("user"), col(Message.archived_at).is_(None)
    rows = select(*picked(Message, STATE - UNREAD)).where(*theirs)
    return rows.where(among(dialect, col(Message.id), "ids")).order_by(col(Message.id))


async def change(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], changes: Changes
) -> list[int]:
    """Change flags, keywords and values. Returns the IDs of the messages that changed."""
    return await ctx.world.join(session, lambda turn: changed(ctx, turn, rows, changes))


def changed(
    ctx: Context,
    turn: Turn,
    rows: Sequence[Picked],
    changes: Changes,
    *,
    also: Sequence[Sent] = (),
) -> list[int]:
    """Change flags like `change_flags`, in a transaction that locks the accounts.

    `extra_statements` are sent with its own statements.
    """
    after = _after_each(rows, changes)
    works, ids = list(also), []
    for owner, places in _others(rows, after).items():
        some = Some(chosen(rows, places), [after[place] for place in places])
        works += _works(ctx, turn, owner, some, changes)
        _set_keywords(turn, some)
        ids += values_of(some.rows, "id")
    turn.send(works)
    training_worker.marked(turn, ids, [*changes.add, *(changes.replace or ())])
    return ids


def _others(rows: Sequence[Picked], after: Sequence[After]) -> dict[int, list[int]]:
    """Return the row numbers of messages that change, by user ID."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for place, (owner, to) in enumerate(zip(values_of(rows, "user_id"), after, strict=True)):
        if to.differs:
            found[owner].append(place)
    return found


def _after_each(rows: Sequence[Picked], changes: Changes) -> list[After]:
    """Compute the flags of each message after the change, once for messages with equal flags."""
    states = _states(rows)
    known = {state: place for place, state in enumerate(states)}
    after = {state: _after(rows[place], changes) for state, place in known.items()}
    return [after[state] for state in states]


def _states(rows: Sequence[Picked]) -> list[tuple[Any, ...]]:
    """Return the flags and keywords of each message as a hashable value."""
    words = [one if isinstance(one, str) else tuple(one) for one in values_of(rows, "keywords")]
    return list(zip(*(values_of(rows, name) for name in SYSTEM_FLAGS), words, strict=True))


def names_of(rows: Sequence[Picked]) -> list[list[str]]:
    """Return the flags and keywords of each message, with their IMAP names."""
    states = _states(rows)
    known = {state: place for place, state in enumerate(states)}
    named = {state: flags(rows[place]) for state, place in known.items()}
    return [named[state] for state in states]


def was(rows: Sequence[Picked]) -> list[list[Any]]:
    """Return what an undo needs of each message: ID, mailbox, flags, expiry and snooze."""
    columns = [
        values_of(rows, "id"),
        values_of(rows, "mailbox_id"),
        names_of(rows),
        *([at and at.isoformat() for at in read_of(rows, name)] for name in TIMES),
        values_of(rows, "snoozed_from"),
    ]
    return [list(one) for one in zip(*columns, strict=True)]


def _after(row: Picked, changes: Changes) -> After:
    system = {name: changes.flags.get(name, getattr(row, name)) for name in SYSTEM_FLAGS}
    keywords = list(row.keywords if changes.replace is None else changes.replace)
    keywords += [name for name in changes.add if name not in keywords]
    keywords = [name for name in keywords if name not in changes.remove]
    if len(keywords) > KEYWORDS:
        raise Invalid(
            f"a message has at most {KEYWORDS} keywords", constraint="max", path=["set", "addFlags"]
        )
    reworded = keywords != row.keywords
    differs = any(getattr(row, name) != value for name, value in system.items())
    return After(
        named_flags(*system.values(), keywords),
        keywords,
        reworded,
        differs or reworded or bool(changes.values),
        int(row.seen) - int(system["seen"]),
    )


def _works(ctx: Context, turn: Turn, owner: int, some: Some, changes: Changes) -> list[Sent]:
    """Return the statements that update these messages of one account, and the journal."""
    rows, after = some
    last, told = _told(ctx, turn, owner, rows, [to.flags for to in after])
    unseen = Counter[int]()
    for mailbox, to in zip(values_of(rows, "mailbox_id"), after, strict=True):
        if mailbox is not None:
            unseen[mailbox] += to.unseen
    dialect = turn.world.database.dialect
    values = {**changes.flags, **(changes.values or {})}
    given = {"ids": values_of(rows, "id"), "last": last}
    given |= {f"its_{name}": value for name, value in values.items()}
    works = [*told, (_update(dialect, frozenset(values)), given)]
    tallies = {mailbox: Tally(unseen=more) for mailbox, more in unseen.items()}
    return [*works, counted(dialect, last, tallies)] if tallies else works


def _told(
    ctx: Context, turn: Turn, owner: int, rows: Sequence[Picked], named: list[list[str]]
) -> tuple[int, list[Sent]]:
    """Return the new MODSEQ of these messages of one account, and the journal statements."""
    entries = ctx.entries(
        ChangeKind.MESSAGE_UPDATED,
        values_of(rows, "id"),
        mailbox=values_of(rows, "mailbox_id"),
        uid=values_of(rows, "uid"),
        flags=named,
    )
    return turn.told(owner, entries, at=ctx.world.now())


@prepared
def _update(dialect: str, names: frozenset[str]) -> Update:
    table = table_of(Message)
    its = {name: bindparam(f"its_{name}", type_=table.c[name].type) for name in sorted(names)}
    these = update(table).where(among(dialect, table.c.id, "ids"))
    return these.values(modseq=number("last"), **its)


def _set_keywords(turn: Turn, some: Some) -> None:
    table = table_of(Message)
    pairs = zip(values_of(some.rows, "id"), some.after, strict=True)
    given = [{"key": key, "words": to.keywords} for key, to in pairs if to.reworded]
    if given:
        words = bindparam("words", type_=table.c.keywords.type)
        statement = update(table).where(table.c.id == bindparam("key")).values(keywords=words)
        turn.connection.execute(statement, given)


async def restate(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], states: Mapping[int, States]
) -> None:
    """Set columns of each message to its own values: flags, keywords and others.

    All messages get the same columns, which their rows contain.
    """
    others = [
        row
        for row in rows
        if any(getattr(row, name) != value for name, value in states[row.id].items())
    ]
    for theirs in by_user(others).values():
        await ctx.world.join(session, partial(_restate, ctx, rows=theirs, states=states))


def _restate(
    ctx: Context, turn: Turn, rows: Sequence[Picked], states: Mapping[int, States]
) -> None:
    table = table_of(Message)
    named = [flags(states[row.id]) for row in rows]
    last, told = _told(ctx, turn, rows[0].user_id, rows, named)
    names = sorted(states[rows[0].id])
    its = {name: bindparam(f"its_{name}", type_=table.c[name].type) for name in names}
    statement = update(table).where(table.c.id == bindparam("key")).values(modseq=last, **its)
    given = [
        {"key": row.id, **{f"its_{name}": states[row.id][name] for name in names}} for row in rows
    ]
    turn.connection.execute(statement, given)
    tallies: defaultdict[int, Tally] = defaultdict(Tally)
    for row in rows:
        if row.mailbox_id is not None:
            tallies[row.mailbox_id].unseen += int(row.seen) - int(states[row.id]["seen"])
    turn.send([*told, counted(turn.world.database.dialect, last, tallies)] if tallies else told)
