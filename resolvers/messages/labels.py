"""Labels: names and colors for the keywords of messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, collate, func, literal_column, select
from sqlalchemy.dialects import postgresql
from sqlmodel import col
from sqlmodel import select as instances

from models.errors import InvalidInput, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.messages.labels import Label
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from resolvers import sql_text
from resolvers.access import is_visible, require_user_id
from resolvers.context import Context
from resolvers.messages.bulk.row_changes import validate_keyword
from resolvers.messages.loaders import is_not_deleted_sql
from resolvers.pagination import read_all_by_keys, read_by_keys

MAX_LABELS = 250  # per user
MAX_NAME_LENGTH = 128  # characters
COLOR_PATTERN = re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class LabelChange:
    """New values of a label. None keeps the name; the color changes only if `changes_color`."""

    name: str | None = None
    color: str | None = None
    changes_color: bool = False  # then a color of None removes it


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The number of messages with a label."""

    total: int = 0
    unseen: int = 0


async def load_visible_by_ids(ctx: Context, label_ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's labels with these IDs, in this order. None if there is none."""
    return await read_by_keys(
        ctx, select(*select_columns(Label)).where(is_visible(ctx, Label)), col(Label.id), label_ids
    )


async def load_labels_by_user(ctx: Context, user_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the labels of these users, each list sorted by name.

    Empty for other users than the viewer.
    """
    statement = select(*select_columns(Label)).where(is_visible(ctx, Label))
    found = await read_all_by_keys(ctx, statement, col(Label.user_id), user_ids)
    return [sorted(rows, key=lambda row: (row.name.casefold(), row.id)) for rows in found]


async def labels_of_keywords(
    ctx: Context, user_id: int, keywords: Sequence[str]
) -> list[ColumnRow]:
    """Return the labels of a user for these keywords, sorted by name."""
    if not keywords:
        return []
    folded_keywords = set(map(ascii_lower, keywords))
    return [
        row for row in await ctx.load(load_labels_by_user, user_id) if row.folded in folded_keywords
    ]


async def count_messages_by_label(
    ctx: Context, user_ids_and_keywords: list[tuple[int, str]]
) -> list[LabelCounts]:
    """Count messages by user ID and folded keyword, in this order.

    Deleted messages are not counted. One statement reads only messages with keywords, by their
    index.
    """
    users = {user_id for user_id, _ in user_ids_and_keywords}
    keywords: Any = col(Message.keywords)
    dialect = ctx.environment.database.dialect
    if dialect == "sqlite":
        each = func.json_each(keywords).table_valued("value", name="word")
    else:
        each = func.jsonb_array_elements_text(keywords).table_valued("value", name="word")
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
        .where(
            is_visible(ctx, Message),
            col(Message.user_id).in_(users),
            is_not_deleted_sql(),
            has_keywords_sql(),
        )
        .group_by(col(Message.user_id), folded)
    )
    found = {
        (row.user_id, row.folded): LabelCounts(row.total, row.unseen)
        for row in await ctx.read(statement)
    }
    return [found.get(key, LabelCounts()) for key in user_ids_and_keywords]


def has_keywords_sql() -> Any:
    """Build the condition that a message has keywords, as their index has it."""
    return col(Message.keywords).op("<>")(literal_column("'[]'", postgresql.JSONB))


async def set_label(ctx: Context, keyword: str, change: LabelChange) -> None:
    """Set name and color of a keyword. A new label without a name gets that of the keyword.

    Raises InvalidInput or LimitReached.
    """
    folded = _validated_folded_keyword(keyword)
    name = sql_text.validate_text(change.name, max_length=MAX_NAME_LENGTH, path=["name"])
    if change.name is not None and name is None:
        raise InvalidInput("a label has a name", constraint="required", path=["name"])
    color = change.color.lower() if change.color else None
    if color is not None and not COLOR_PATTERN.fullmatch(color):
        raise InvalidInput("a colour is such as #1e90ff", constraint="pattern", path=["color"])
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        statement = instances(Label).where(is_visible(ctx, Label), col(Label.folded) == folded)
        label = (await session.exec(statement)).first()
        if label is None:
            await _require_label_capacity(ctx)
            label = Label(
                id=ctx.environment.new_id(),
                user_id=user_id,
                keyword=keyword,
                folded=folded,
                name=name or keyword,
                color=color,
                created_at=ctx.environment.now(),
            )
        elif (name or label.name, color if change.changes_color else label.color) == (
            label.name,
            label.color,
        ):
            return
        else:
            label.name = name or label.name
            label.color = color if change.changes_color else label.color
        session.add(label)
        await session.flush()
        await ctx.record_change(session, user_id, ChangeKind.LABEL_CHANGED, [label.id])


async def delete_label(ctx: Context, keyword: str) -> None:
    """Delete the label of a keyword; messages keep the keyword. Raises NotFound."""
    folded, user_id = _validated_folded_keyword(keyword), require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        statement = instances(Label).where(is_visible(ctx, Label), col(Label.folded) == folded)
        label = (await session.exec(statement)).first()
        if label is None:
            raise NotFound(keyword, path=["keyword"])
        await session.delete(label)
        await session.flush()
        await ctx.record_change(session, user_id, ChangeKind.LABEL_CHANGED, [label.id])


def _validated_folded_keyword(keyword: str) -> str:
    return ascii_lower(validate_keyword(keyword))


def ascii_lower(keyword: str) -> str:
    """Return the keyword with ASCII letters in lower case."""
    return keyword.encode().lower().decode()


async def _require_label_capacity(ctx: Context) -> None:
    (row,) = await ctx.read(select(func.count().label("many")).where(is_visible(ctx, Label)))
    if row.many >= MAX_LABELS:
        raise LimitReached(
            f"at most {MAX_LABELS} labels", limit=MAX_LABELS, used=row.many, path=["keyword"]
        )
