"""Changes of message rows, a chunk at a time: moving, archiving, restoring and deleting.

The functions take rows with STATE_COLUMNS, inside the caller's transaction, which has locked the
streams. A chunk takes a number of statements that does not depend on its length.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, Update, bindparam, null, select, update
from sqlalchemy import delete as delete_rows
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.limits import user_limits
from mail.scanners import training_worker
from mail.storage import audit_copies
from mail.storage.message_flags import SYSTEM_FLAGS, flags
from mail.storage.message_insert import take_quota
from mail.storage.thread_assignment import ended
from models.errors import Invalid, NotFound
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import Instant, Picked, picked, table_of
from models.store.prepared_statements import Sent, among, fetched, listed, number, prepared, send
from models.users.tables import User
from resolvers.context import Context

STATE = frozenset(
    {
        "id",
        "user_id",
        "mailbox_id",
        "thread_id",
        "uid",
        "modseq",
        "size",
        "keywords",
        "expires",
        "archived_at",
        "snoozed_until",
        "snoozed_from",
    }
    | set(SYSTEM_FLAGS)
)
LONGEST = 128  # characters
_SYSTEM = {f"\\{name.capitalize()}": name for name in SYSTEM_FLAGS}


@dataclass(slots=True)
class Tally:
    """The change of a mailbox's counters."""

    total: int = 0
    unseen: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of messages. None, and flags that are missing, change nothing."""

    flags: Mapping[str, bool]  # system flags by column name
    add: Sequence[str] = ()  # keywords
    remove: Sequence[str] = ()
    replace: Sequence[str] | None = None  # instead of all keywords
    values: Mapping[str, Any] | None = None  # such as expires and meta_data
    snooze: str | None = None  # ISO 8601; "" ends the snooze

    @classmethod
    def of(
        cls,
        flags: Mapping[str, bool],
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replaced: Sequence[str] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> "Changes":
        r"""Build changes from IMAP names, which contain flags such as `\Seen` and keywords.

        Raises InvalidInput.
        """
        system = dict(flags)
        for path, names, on in (("addFlags", add, True), ("removeFlags", remove, False)):
            system |= {_SYSTEM[name]: on for name in _checked(names, path) if name in _SYSTEM}
        if replaced is not None:
            named = {_SYSTEM[name] for name in _checked(replaced, "flags") if name in _SYSTEM}
            system |= {name: name in named for name in SYSTEM_FLAGS}
        return cls(
            system,
            _keywords(add, "addFlags"),
            _keywords(remove, "removeFlags"),
            None if replaced is None else _keywords(replaced, "flags"),
            values,
        )

    @property
    def touched(self) -> list[str]:
        """The IMAP names of the flags and keywords that are set or removed."""
        system = [name for name, column in _SYSTEM.items() if column in self.flags]
        return [*system, *self.add, *self.remove]

    @property
    def left(self) -> list[str]:
        """The IMAP names of the changed flags and keywords that are set afterwards."""
        system = [name for name, column in _SYSTEM.items() if self.flags.get(column)]
        return [*system, *self.add, *(self.replace or ())]

    @property
    def nothing(self) -> bool:
        """True if nothing changes."""
        sets = self.replace is not None or self.snooze is not None
        return not (sets or self.flags or self.add or self.remove or self.values)


def _keywords(names: Sequence[str], path: str) -> list[str]:
    return list(dict.fromkeys(name for name in _checked(names, path) if name not in _SYSTEM))


def keyword_of(name: str) -> str:
    """Return the keyword. Raises InvalidInput if it is malformed or a system flag."""
    if name[:1] == "\\" or not _word(name):
        raise Invalid("not a keyword", constraint="pattern", path=["keyword"])
    return name


def is_flag(name: str) -> bool:
    """True if this is a flag that messages can have here, or a keyword."""
    spelled = f"\\{name[1:].capitalize()}" if name[:1] == "\\" else name
    return spelled in _SYSTEM or (name[:1] != "\\" and _word(name))


def _word(name: str) -> bool:
    return 0 < len(name) <= LONGEST and not any(c in '(){%*"\\]' or c < "!" for c in name)


def _checked(names: Sequence[str], path: str) -> list[str]:
    """Return the names with canonical spelling of flags. Raises InvalidInput for other texts."""
    found = []
    for index, given in enumerate(names):
        name = f"\\{given[1:].capitalize()}" if given[:1] == "\\" else given
        if name not in _SYSTEM and not _word(name):
            raise Invalid(
                "not a flag or keyword", constraint="pattern", path=["set", path], index=index
            )
        found.append(name)
    return found


async def chosen(
    session: AsyncSession, ids: Sequence[int], *, also: frozenset[str] = frozenset()
) -> Sequence[Picked]:
    """Load these messages inside the transaction, by ID, with STATE_COLUMNS and `extra_columns`."""
    connection = await session.connection()
    asked = _chosen(connection.dialect.name, STATE | also)
    return await connection.run_sync(fetched, asked, {"ids": list(ids)})


@prepared
def _chosen(dialect: str, columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    rows = select(*picked(Message, columns)).order_by(col(Message.id))
    return rows.where(among(dialect, col(Message.id), "ids"))


async def count(session: AsyncSession, last: int, tallies: Mapping[int, Tally]) -> None:
    """Add to the counters of mailboxes, and set their MODSEQ."""
    if tallies:
        await (await session.connection()).run_sync(_count, last, tallies)


def _count(connection: Connection, last: int, tallies: Mapping[int, Tally]) -> None:
    send(connection, [counted(connection.dialect.name, last, tallies)])


def counted(dialect: str, last: int, tallies: Mapping[int, Tally]) -> Sent:
    """Build the statement that adds to the counters of mailboxes and sets their MODSEQ."""
    mailboxes = [[key, one.total, one.unseen, one.size] for key, one in sorted(tallies.items())]
    return _counters(dialect), {"last": last, "boxes": mailboxes}


@prepared
def _counters(dialect: str) -> Update:
    table = table_of(Mailbox)
    names = ("total", "unseen", "size")
    more = listed(dialect, "boxes", ("key", *names))
    values = {name: table.c[name] + more.c[name] for name in names}
    at = {name: number("last") for name in ("modseq", "modify_index")}
    return update(table).where(table.c.id == more.c.key).values(**values, **at)


def by_user(rows: Iterable[Picked]) -> dict[int, list[Picked]]:
    """Group rows by user ID."""
    theirs: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        theirs[row.user_id].append(row)
    return dict(theirs)


def _tallies(rows: Iterable[Picked], sign: int) -> dict[int, Tally]:
    tallies: defaultdict[int, Tally] = defaultdict(Tally)
    for row in rows:
        if row.mailbox_id is not None:
            tally = tallies[row.mailbox_id]
            tally.total += sign
            tally.unseen += 0 if row.seen else sign
            tally.size += sign * row.size
    return dict(tallies)


async def move(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], to: Picked
) -> dict[int, tuple[int, int]]:
    """Move messages of one account into its mailbox, in the order of their UIDs.

    Returns old and new UID by message ID. Messages that are already there keep their UID. Raises
    NotFound.
    """
    moved = sorted(
        (row for row in rows if row.mailbox_id != to.id), key=lambda r: (r.mailbox_id or 0, r.uid)
    )
    if not moved:
        return {row.id: (row.uid, row.uid) for row in rows}
    uids = await numbers(session, to, len(moved))
    last = await ctx.record(
        session,
        to.user_id,
        ChangeKind.MESSAGE_MOVED,
        [row.id for row in moved],
        mailbox=to.id,
        uid=list(uids),
        fromMailbox=[row.mailbox_id for row in moved],
        fromUid=[row.uid for row in moved],
        flags=[flags(row) for row in moved],
    )
    await _put(ctx, session, zip(moved, uids, strict=True), (to, last))
    tallies = _tallies(moved, -1)
    tallies[to.id] = arriving(moved)
    await count(session, last, tallies)
    await training_worker.moved(ctx.world, session, moved, to)
    new = {row.id: uid for row, uid in zip(moved, uids, strict=True)}
    return {row.id: (row.uid, new.get(row.id, row.uid)) for row in rows}


def arriving(rows: Sequence[Picked]) -> Tally:
    """Return what these messages add to the counters of their new mailbox."""
    unseen = sum(not row.seen for row in rows)
    return Tally(len(rows), unseen, sum(row.size for row in rows))


async def numbers(session: AsyncSession, to: Picked, many: int) -> range:
    """Reserve the next UIDs of a mailbox. Raises NotFound if it was deleted."""
    taken = await (await session.connection()).execute(
        update(Mailbox)
        .where(col(Mailbox.id) == to.id)
        .values(uid_next=Mailbox.uid_next + many)
        .returning(col(Mailbox.uid_next))
    )
    end = taken.scalar_one_or_none()
    if end is None:
        raise NotFound(str(to.id), path=["to"])
    return range(end - many, end)


async def _put(
    ctx: Context,
    session: AsyncSession,
    numbered: Iterable[tuple[Picked, int]],
    there: tuple[Picked, int],
) -> None:
    to, last = there
    at = ctx.world.now()
    connection = await session.connection()
    given = {
        "rows": [[row.id, uid] for row, uid in numbered],
        "box": to.id,
        "last": last,
        "at": at,
        "ends": at + timedelta(seconds=to.retention) if to.retention else None,
    }
    await connection.run_sync(send, [(_placed(connection.dialect.name), given)])


@prepared
def _placed(dialect: str) -> Update:
    table = table_of(Message)
    new = listed(dialect, "rows", ("key", "number"))
    return (
        update(table)
        .where(table.c.id == new.c.key)
        .values(
            mailbox_id=number("box"),
            uid=new.c.number,
            modseq=number("last"),
            saved_at=bindparam("at", type_=Instant),
            expires=bindparam("ends", type_=Instant),
            snoozed_until=null(),
            snoozed_from=null(),
            archived_at=null(),
            archived_from=null(),
            archived_mailbox_id=null(),
            purge_at=null(),
        )
    )


async def archive(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], paths: Mapping[int, str]
) -> None:
    """Move messages from their mailboxes to the archive of deleted messages.

    Drafts are kept for the undo window, other messages for the retention of the archive.
    """
    at = ctx.world.now()
    options = ctx.world.options
    for user_id, theirs in by_user(rows).items():
        last = await _taken_out(ctx, session, ChangeKind.MESSAGE_ARCHIVED, theirs)
        for row_kind, keep in ((False, options.archive_for), (True, options.undo_window)):
            groups: defaultdict[int, list[int]] = defaultdict(list)
            for row in theirs:
                if row.draft is row_kind:
                    groups[row.mailbox_id].append(row.id)
            for mailbox_id, ids in groups.items():
                values = {
                    "mailbox_id": None,
                    "modseq": last,
                    "archived_at": at,
                    "archived_from": paths[mailbox_id],
                    "archived_mailbox_id": mailbox_id,
                    "purge_at": at + keep,
                }
                await _by_thousands(session, ids, values)
        await _free(session, user_id, theirs)


async def _by_thousands(
    session: AsyncSession, ids: Sequence[int], values: Mapping[str, Any]
) -> None:
    await (await session.connection()).run_sync(_update, ids, values)


def _update(connection: Connection, ids: Sequence[int], values: Mapping[str, Any]) -> None:
    for start in range(0, len(ids), 1000):
        part = col(Message.id).in_(ids[start : start + 1000])
        connection.execute(update(Message).where(part).values(**values))


async def remove(ctx: Context, session: AsyncSession, rows: Sequence[Picked]) -> None:
    """Delete messages permanently."""
    connection = await session.connection()
    for user_id, theirs in by_user(rows).items():
        await leaving(ctx, session, user_id, [row.id for row in theirs])
        await _taken_out(ctx, session, ChangeKind.MESSAGE_DELETED, theirs)
        for start in range(0, len(theirs), 1000):
            ids = [row.id for row in theirs[start : start + 1000]]
            await connection.execute(delete_rows(Message).where(col(Message.id).in_(ids)))
        await connection.execute(ended({row.thread_id for row in theirs}))
        await _free(session, user_id, theirs)


async def leaving(ctx: Context, session: AsyncSession, user_id: int, ids: Sequence[int]) -> None:
    """Copy messages to running audits before they are deleted permanently."""
    await ctx.world.join(session, lambda turn: audit_copies.leaving(turn, user_id, ids))


async def _taken_out(
    ctx: Context, session: AsyncSession, kind: ChangeKind, rows: Sequence[Picked]
) -> int:
    last = await ctx.record(
        session,
        rows[0].user_id,
        kind,
        [row.id for row in rows],
        mailbox=[row.mailbox_id for row in rows],
        uid=[row.uid for row in rows],
    )
    await count(session, last, _tallies(rows, -1))
    return last


async def restore(ctx: Context, session: AsyncSession, rows: Sequence[Picked], to: Picked) -> None:
    """Restore archived messages of one account into its mailbox. Raises OverQuota or NotFound."""
    user_id, size = to.user_id, sum(row.size for row in rows)
    take = partial(take_quota, user_id=user_id, size=size, many=len(rows))
    taken = await ctx.world.join(session, take)
    ordered = sorted(rows, key=lambda row: row.id)
    uids = await numbers(session, to, len(ordered))
    last = await ctx.record(
        session,
        user_id,
        ChangeKind.MESSAGE_RESTORED,
        [row.id for row in ordered],
        mailbox=to.id,
        uid=list(uids),
        flags=[flags(row) for row in ordered],
    )
    await _put(ctx, session, zip(ordered, uids, strict=True), (to, last))
    await count(session, last, {to.id: arriving(ordered)})
    tell = partial(user_limits.stored, user_id=user_id, taken=taken, more=size)
    await ctx.world.join(session, tell)


async def _free(session: AsyncSession, user_id: int, rows: Sequence[Picked]) -> None:
    """Subtract these messages from the user's quota usage and message count."""
    size = sum(row.size for row in rows)
    less = {"used": User.used - size, "message_count": User.message_count - len(rows)}
    statement = update(User).where(col(User.id) == user_id).values(**less)
    await (await session.connection()).execute(statement)


def flagged(names: Collection[str]) -> dict[str, Any]:
    """Return the column values for these IMAP names of flags and keywords."""
    system = {column: name in names for name, column in _SYSTEM.items()}
    return {**system, "keywords": [name for name in names if name not in _SYSTEM]}


def when(text: str | None) -> datetime | None:
    """Parse a time that `flags.undo_values` stored. None stays None."""
    return datetime.fromisoformat(text) if text else None
