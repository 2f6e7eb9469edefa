"""Labels: names and colors for the keywords of messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, collate, func, literal_column, select
from sqlalchemy.dialects import postgresql
from sqlmodel import col
from sqlmodel import select as instances

from models.errors import Invalid, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.messages.labels import Label
from models.messages.tables import Message
from models.store.columns import Picked, picked
from resolvers import sql_text
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.messages.bulk.row_changes import keyword_of
from resolvers.messages.loaders import here
from resolvers.pagination import all_by_keys, by_keys

MOST = 250  # per user
LONGEST = 128  # characters
COLOR = re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class Words:
    """New values of a label. None keeps the name; the color changes only if `changes_color`."""

    name: str | None = None
    color: str | None = None
    colored: bool = False  # then a color of None removes it


@dataclass(frozen=True, slots=True)
class Figures:
    """The number of messages with a label."""

    total: int = 0
    unseen: int = 0


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's labels with these IDs, in this order. None if there is none."""
    return await by_keys(ctx, select(*picked(Label)).where(visible(ctx, Label)), col(Label.id), ids)


async def of_users(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load the labels of these users, each list sorted by name.

    Empty for other users than the viewer.
    """
    statement = select(*picked(Label)).where(visible(ctx, Label))
    found = await all_by_keys(ctx, statement, col(Label.user_id), keys)
    return [sorted(rows, key=lambda row: (row.name.casefold(), row.id)) for rows in found]


async def of_message(ctx: Context, user_id: int, keywords: Sequence[str]) -> list[Picked]:
    """Return the labels of a user for these keywords, sorted by name."""
    if not keywords:
        return []
    there = set(map(in_one_case, keywords))
    return [row for row in await ctx.load(of_users, user_id) if row.folded in there]


async def figures(ctx: Context, keys: list[tuple[int, str]]) -> list[Figures]:
    """Count messages by user ID and folded keyword, in this order.

    Deleted messages are not counted. One statement reads only messages with keywords, by their
    index.
    """
    users = {user_id for user_id, _ in keys}
    words: Any = col(Message.keywords)
    dialect = ctx.world.database.dialect
    if dialect == "sqlite":
        each = func.json_each(words).table_valued("value", name="word")
    else:
        each = func.jsonb_array_elements_text(words).table_valued("value", name="word")
    value: Any = cast(each.c.value, String)
    # SQLite folds only ASCII; the collation makes PostgreSQL do the same
    folded = func.lower(value if dialect == "sqlite" else collate(value, "C"))
    statement = (
        select(
            col(Message.user_id),
            folded.label("folded"),
            func.count(col(Message.id).distinct()).label("total"),
            func.count(col(Message.id).distinct()).filter(~col(Message.seen)).label("unseen"),
        )
        .select_from(Message)
        .join(each, onclause=literal_column("true"))
        .where(visible(ctx, Message), col(Message.user_id).in_(users), here(), labelled())
        .group_by(col(Message.user_id), folded)
    )
    found = {
        (row.user_id, row.folded): Figures(row.total, row.unseen)
        for row in await ctx.read(statement)
    }
    return [found.get(key, Figures()) for key in keys]


def labelled() -> Any:
    """Build the condition that a message has keywords, as their index has it."""
    return col(Message.keywords).op("<>")(literal_column("'[]'", postgresql.JSONB))


async def set_(ctx: Context, keyword: str, words: Words) -> None:
    """Set name and color of a keyword. A new label without a name gets that of the keyword.

    Raises InvalidInput or LimitReached.
    """
    folded = _folded(keyword)
    name = sql_text.checked(words.name, most=LONGEST, path=["name"])
    if words.name is not None and name is None:
        raise Invalid("a label has a name", constraint="required", path=["name"])
    color = words.color.lower() if words.color else None
    if color is not None and not COLOR.fullmatch(color):
        raise Invalid("a colour is such as #1e90ff", constraint="pattern", path=["color"])
    user_id = own(ctx)
    async with ctx.write(user_id) as session:
        asked = instances(Label).where(visible(ctx, Label), col(Label.folded) == folded)
        label = (await session.exec(asked)).first()
        if label is None:
            await _check_room(ctx)
            label = Label(
                id=ctx.world.key(),
                user_id=user_id,
                keyword=keyword,
                folded=folded,
                name=name or keyword,
                color=color,
                created_at=ctx.world.now(),
            )
        elif (name or label.name, color if words.colored else label.color) == (
            label.name,
            label.color,
        ):
            return
        else:
            label.name = name or label.name
            label.color = color if words.colored else label.color
        session.add(label)
        await session.flush()
        await ctx.record(session, user_id, ChangeKind.LABEL_CHANGED, [label.id])


async def remove(ctx: Context, keyword: str) -> None:
    """Delete the label of a keyword; messages keep the keyword. Raises NotFound."""
    folded, user_id = _folded(keyword), own(ctx)
    async with ctx.write(user_id) as session:
        asked = instances(Label).where(visible(ctx, Label), col(Label.folded) == folded)
        label = (await session.exec(asked)).first()
        if label is None:
            raise NotFound(keyword, path=["keyword"])
        await session.delete(label)
        await session.flush()
        await ctx.record(session, user_id, ChangeKind.LABEL_CHANGED, [label.id])


def _folded(keyword: str) -> str:
    return in_one_case(keyword_of(keyword))


def in_one_case(keyword: str) -> str:
    """Return the keyword with ASCII letters in lower case."""
    return keyword.encode().lower().decode()


async def _check_room(ctx: Context) -> None:
    (row,) = await ctx.read(select(func.count().label("many")).where(visible(ctx, Label)))
    if row.many >= MOST:
        raise LimitReached(f"at most {MOST} labels", limit=MOST, used=row.many, path=["keyword"])
