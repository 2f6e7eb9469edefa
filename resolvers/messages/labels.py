"""Labels: names and colors for the keywords of messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, String, cast, collate, func, literal_column, select
from sqlalchemy.dialects import postgresql
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.message_flags import fold_keyword
from models.errors import Conflict, InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.messages.labels import Label
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.store.prepared_statements import raw_values, sorted_rows
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.context import Context
from resolvers.messages.bulk.flag_changes import validate_keyword
from resolvers.messages.listing import is_not_deleted_sql
from resolvers.pagination import read_own_rows_by_id, read_own_rows_of_users

MAX_LABELS = 250  # per user
MAX_NAME_LENGTH = 128  # characters
COLOR_PATTERN = re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class NewLabel:
    """A label to create. Its name is by default the keyword."""

    keyword: str
    name: str | None = None
    color: str | None = None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """New values of labels. None keeps the name; the color changes only if `changes_color`."""

    name: str | None = None
    color: str | None = None
    changes_color: bool = False  # then a color of None removes it


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The number of messages with a label."""

    message_count: int = 0
    unseen_count: int = 0


async def load_visible_by_ids(ctx: Context, label_ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's labels with these IDs, in this order. None if there is none."""
    return await read_own_rows_by_id(ctx, Label, label_ids)


async def load_own_labels_by_user(ctx: Context, user_ids: list[int]) -> list[Sequence[ColumnRow]]:
    """Load the labels of these users, each list sorted by name.

    Empty for other users than the viewer.
    """
    return [
        sorted_rows(rows, [name.casefold() for name in raw_values(rows, "name")])
        for rows in await read_own_rows_of_users(ctx, Label, user_ids)
    ]


async def labels_of_keywords(
    ctx: Context, user_id: int, keywords: Sequence[str]
) -> list[ColumnRow]:
    """Return the labels of a user for these keywords, sorted by name."""
    if not keywords:
        return []
    folded_keywords = set(map(fold_keyword, keywords))
    return [
        row
        for row in await ctx.load(load_own_labels_by_user, user_id)
        if row.folded in folded_keywords
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
        json_keywords = func.json_each(keywords).table_valued("value", name="word")
    else:
        json_keywords = func.jsonb_array_elements_text(keywords).table_valued("value", name="word")
    value: Any = cast(json_keywords.c.value, String)
    # SQLite folds only ASCII; the collation makes PostgreSQL do the same
    folded = func.lower(value if dialect == "sqlite" else collate(value, "C"))
    statement = (
        select(
            col(Message.user_id),
            folded.label("folded"),
            func.count(col(Message.id).distinct()).label("message_count"),
            func.count(col(Message.id).distinct()).filter(~col(Message.seen)).label("unseen_count"),
        )
        .select_from(Message)
        .join(json_keywords, onclause=literal_column("true"))
        .where(
            is_own_or_shared(ctx, Message),
            col(Message.user_id).in_(users),
            is_not_deleted_sql(),
            has_keywords_sql(),
        )
        .group_by(col(Message.user_id), folded)
    )
    counts = {
        (row.user_id, row.folded): LabelCounts(row.message_count, row.unseen_count)
        for row in await ctx.read(statement)
    }
    return [counts.get(key, LabelCounts()) for key in user_ids_and_keywords]


def has_keywords_sql() -> ColumnElement[bool]:
    """Build the condition that a message has keywords, as their index has it."""
    return col(Message.keywords).op("<>")(literal_column("'[]'", postgresql.JSONB))


async def load_ids_by_keyword(ctx: Context, keywords: Sequence[str]) -> dict[str, int]:
    """Load the IDs of the viewer's labels by keyword, in any case."""
    folded_by_keyword = {keyword: fold_keyword(keyword) for keyword in keywords}
    statement = select(col(Label.id), col(Label.folded)).where(
        is_own_or_shared(ctx, Label), col(Label.folded).in_(set(folded_by_keyword.values()))
    )
    ids = {row.folded: int(row.id) for row in await ctx.read(statement)}
    return {keyword: ids[folded] for keyword, folded in folded_by_keyword.items() if folded in ids}


async def create_label(ctx: Context, new_label: NewLabel) -> int:
    """Create a label and return its ID.

    Raises InvalidInput, Conflict if the keyword has a label, and LimitReached.
    """
    folded = _validated_folded_keyword(new_label.keyword)
    name = _validated_label_name(new_label.name, path=["name"])
    color = _validated_color(new_label.color, path=["color"])
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        statement = instances(Label).where(
            is_own_or_shared(ctx, Label), col(Label.folded) == folded
        )
        if (await session.exec(statement)).first():
            raise Conflict("This keyword already has a label.", path=["keyword"])
        await _require_label_capacity(ctx)
        label = Label(
            id=ctx.environment.new_id(),
            user_id=user_id,
            keyword=new_label.keyword,
            folded=folded,
            name=name or new_label.keyword,
            color=color,
            created_at=ctx.environment.now(),
        )
        session.add(label)
        await session.flush()
        await ctx.record_change(session, user_id, EventType.LABEL_CREATED, [label.id])
        return int(label.id)


async def update_labels(ctx: Context, label_ids: Sequence[int], change: LabelChange) -> None:
    """Set name and color of the viewer's labels: all or none.

    Raises InvalidInput, and NotFound for the first label that doesn't exist.
    """
    if change == LabelChange():
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    name = _validated_label_name(change.name, path=["set", "name"])
    color = _validated_color(change.color, path=["set", "color"])
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        changed_ids = []
        for label in await _require_own_labels(ctx, session, label_ids):
            new_values = (name or label.name, color if change.changes_color else label.color)
            if new_values != (label.name, label.color):
                label.name, label.color = new_values
                session.add(label)
                changed_ids.append(label.id)
        if changed_ids:
            await session.flush()
            await ctx.record_change(session, user_id, EventType.LABEL_UPDATED, changed_ids)


async def delete_labels(ctx: Context, label_ids: Sequence[int]) -> None:
    """Delete labels of the viewer: all or none. Messages keep the keywords. Raises NotFound."""
    user_id = require_user_id(ctx)
    async with ctx.write_session(user_id) as session:
        labels = await _require_own_labels(ctx, session, label_ids)
        for label in labels:
            await session.delete(label)
        await session.flush()
        await ctx.record_change(
            session, user_id, EventType.LABEL_DELETED, [label.id for label in labels]
        )


async def _require_own_labels(
    ctx: Context, session: AsyncSession, label_ids: Sequence[int]
) -> list[Label]:
    """Load the viewer's labels, each once. Raises NotFound for the first that doesn't exist."""
    statement = instances(Label).where(is_own_or_shared(ctx, Label), col(Label.id).in_(label_ids))
    labels = {label.id: label for label in (await session.exec(statement)).all()}
    for nth, label_id in enumerate(label_ids):
        if label_id not in labels:
            raise NotFound(str(label_id), path=["labels", str(nth), "id"])
    return [labels[label_id] for label_id in dict.fromkeys(label_ids)]


def _validated_label_name(text: str | None, *, path: Sequence[str]) -> str | None:
    """Return the trimmed name; None if it is not given. Raises InvalidInput."""
    name = sql_text.validated_trimmed_text(text, max_length=MAX_NAME_LENGTH, path=path)
    if text is not None and name is None:
        raise InvalidInput(
            "A label must have a name.", constraint=ValidationConstraint.REQUIRED, path=path
        )
    return name


def _validated_color(text: str | None, *, path: Sequence[str]) -> str | None:
    """Return the color in lower case; None if it is not given. Raises InvalidInput."""
    color = text.lower() if text else None
    if color is not None and not COLOR_PATTERN.fullmatch(color):
        raise InvalidInput(
            "`color` must be # and six hexadecimal digits, such as #1e90ff.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    return color


def _validated_folded_keyword(keyword: str) -> str:
    return fold_keyword(validate_keyword(keyword))


async def _require_label_capacity(ctx: Context) -> None:
    (row,) = await ctx.read(select(func.count().label("many")).where(is_own_or_shared(ctx, Label)))
    if row.many >= MAX_LABELS:
        raise LimitReached(
            f"At most {MAX_LABELS} labels are allowed.",
            limit=MAX_LABELS,
            used=row.many,
            path=["keyword"],
        )
