"""Annotations of folders (RFC 5464)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, true, update
from sqlmodel import col

from models.errors import Invalid, LimitReached
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox, MailboxEntry
from models.store.columns import Picked, insert_or, table_of
from models.store.prepared_statements import number
from resolvers.access import administered, records
from resolvers.context import Context
from resolvers.mailboxes.loaders import Named, named_of_each
from resolvers.mailboxes.owners import Held, holding
from resolvers.users.selection import MINE, Users

LONGEST = 255  # characters of a name
LARGEST = 64 * 1024  # bytes of a value
MOST = 100  # of a folder
# RFC 5464, section 3.2: printable ASCII without wildcards, no part of it empty
_NAME = re.compile(r"/(?:private|shared)(?:/[ !-$&-)+-.0-~]+)+")


def checked_key(key: str) -> str:
    """The name as it is stored: they know no case. Invalid where it is none."""
    if len(key) > LONGEST or not _NAME.fullmatch(key.lower()):
        text = (
            f"a name begins with /private/ or /shared/, and has at most {LONGEST} characters of "
            "ASCII, without * and %"
        )
        raise Invalid(text, constraint="pattern", path=["key"])
    return key.lower()


async def put(
    ctx: Context, name: Named, entry: tuple[str, str], users: Users = MINE
) -> list[tuple[str, str]]:
    """Set an annotation of this folder of each account; returns them."""
    key, value = checked_key(entry[0]), entry[1]
    if len(value.encode(errors="surrogatepass")) > LARGEST:
        raise Invalid(f"a value has at most {LARGEST} bytes", constraint="max", path=["value"])
    async with holding(ctx, users, "mailboxMetadataSet") as held:
        boxes = await named_of_each(held, name)
        known = await _counted(held, boxes, key)
        for box in boxes:
            many, had = known.get(box.id, (0, None))
            if had is None and many >= MOST:
                text = held.whose(box.user_id, "too many annotations of the folder")
                raise LimitReached(text, limit=MOST, used=many, path=["key"])
        new = [box for box in boxes if known.get(box.id, (0, None))[1] != value]
        if new:
            rows = [{"mailbox_id": box.id, "key": key, "value": value} for box in new]
            written = insert_or(ctx.world.database.dialect, MailboxEntry)
            written = written.on_conflict_do_update(
                index_elements=["mailbox_id", "key"], set_={"value": written.excluded.value}
            )
            await (await held.session.connection()).execute(written, rows)
            await _tell(held, new)
    return [(key, value) for _ in boxes]


async def drop(ctx: Context, name: Named, key: str, users: Users = MINE) -> list[str]:
    """Take an annotation from this folder of each account; returns those that were there."""
    key = checked_key(key)
    async with holding(ctx, users, "mailboxMetadataUnset") as held:
        boxes = await named_of_each(held, name)
        keys = [box.id for box in boxes]
        these = (col(MailboxEntry.mailbox_id).in_(keys), col(MailboxEntry.key) == key)
        gone = delete(MailboxEntry).where(*these).returning(col(MailboxEntry.mailbox_id))
        found = set((await (await held.session.connection()).execute(gone)).scalars())
        await _tell(held, [box for box in boxes if box.id in found])
    return [key for _ in found]


async def _counted(
    held: Held, boxes: Sequence[Picked], key: str
) -> dict[int, tuple[int, str | None]]:
    """How many annotations these folders have, and the value of the one of this name."""
    here = col(MailboxEntry.key) == key
    asked = (
        select(
            col(MailboxEntry.mailbox_id),
            func.count(),
            func.max(col(MailboxEntry.value)).filter(here),
        )
        .where(col(MailboxEntry.mailbox_id).in_([box.id for box in boxes]))
        .group_by(col(MailboxEntry.mailbox_id))
    )
    rows = (await (await held.session.connection()).execute(asked)).all()
    return {box: (many, value) for box, many, value in rows}


async def _tell(held: Held, boxes: Sequence[Picked]) -> None:
    theirs: defaultdict[int, list[int]] = defaultdict(list)
    for box in boxes:
        theirs[box.user_id].append(box.id)
    kind = ChangeKind.MAILBOX_UPDATED
    lasts = await held.tell({user: held.ctx.entries(kind, ids) for user, ids in theirs.items()})
    given = [{"key": box.id, "last": lasts[box.user_id]} for box in boxes]
    if given:
        table = table_of(Mailbox)
        changed = update(table).where(table.c.id == number("key"))
        changed = changed.values(modify_index=number("last"))
        await (await held.session.connection()).execute(changed, given)


def _asked(ctx: Context, keys: Sequence[int]) -> Select[*tuple[Any, ...]]:
    return (
        select(col(MailboxEntry.mailbox_id), col(MailboxEntry.key), col(MailboxEntry.value))
        .join(Mailbox, col(Mailbox.id) == col(MailboxEntry.mailbox_id))
        .where(col(MailboxEntry.mailbox_id).in_(keys), records(ctx, Mailbox), _told(ctx))
        .order_by(col(MailboxEntry.key))
    )


def _told(ctx: Context) -> ColumnElement[bool]:
    """Of others' folders what is /private/ is their owners' (RFC 5464, section 3.3)."""
    if not ctx.viewer.reach.shared or administered(ctx):
        return true()
    mine = col(Mailbox.user_id) == ctx.viewer.user_id
    return mine | col(MailboxEntry.key).startswith("/shared/")


async def of_mailboxes(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """The annotations of these folders, in their order, by name."""
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(_asked(ctx, keys)):
        found[row.mailbox_id].append(row)
    return [found[key] for key in keys]


async def single(ctx: Context, keys: list[tuple[int, str]]) -> list[Picked | None]:
    """The annotations of these folders and names, in their order; None where there is none."""
    names = {name for _, name in keys}
    asked = _asked(ctx, [key for key, _ in keys]).where(col(MailboxEntry.key).in_(names))
    found = {(row.mailbox_id, row.key): row for row in await ctx.read(asked)}
    return [found.get(key) for key in keys]
