"""What a filter asks that no column answers: search words, texts, header fields and path masks.

It is looked up before the statement that selects the messages.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, select
from sqlmodel import col

from mail import mime
from mail.mailboxes import paths
from mail.mime import Part, Source
from mail.search.index_worker import BATCH, body_of
from mail.storage import message_content
from mail.storage.blobs.errors import Corrupt, Hole
from mail.storage.message_content import Stored
from models.errors import Invalid, LimitReached
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import picked
from models.store.text_folding import fold_text
from models.users.roles import Role
from resolvers.access import administered, records
from resolvers.context import Context
from resolvers.messages.content_access import readable_boxes, refusal, witnessed
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.search.index_query import Waiting, waiting_of

MOST = 2000  # messages that are read for one filter
READ = ("text", "body", "header")  # conditions that need the message to be read

Leaf = tuple[str, Any]  # one of READ_FIELDS, and its value


class Place(NamedTuple):
    """The scope of a filter: an account, or one of its mailboxes or threads."""

    where: MessageWhere
    user_id: int
    mailbox_id: int | None = None
    thread_id: int | None = None
    archived: bool = False  # searches deleted messages, by the mailboxes they were in


@dataclass(frozen=True, slots=True)
class Looked:
    """The results of the lookups of a filter."""

    waiting: Waiting
    archived: bool = False
    found: Mapping[Leaf, Sequence[int]] = field(default_factory=dict)  # messages
    boxes: Mapping[str, Sequence[int]] = field(default_factory=dict)  # folders by masks


DEPTH = 8  # levels of and, or and not
FILTERS = 250  # in a filter

Terms = Callable[[MessageWhere, Looked], list[ColumnElement[bool]]]


def parts(where: MessageWhere) -> Iterator[MessageWhere]:
    """Yield the filter and all filters in it.

    Raises InvalidInput if they are too many or too deep.
    """
    waiting = [(where, 0)]
    for many, (one, depth) in enumerate(waiting, 1):
        if depth > DEPTH:
            words = f"and, or and not go {DEPTH} levels deep"
            raise Invalid(words, constraint="depth", path=["filter"])
        if many > FILTERS:
            words = f"a filter has at most {FILTERS} parts"
            raise Invalid(words, constraint="max", path=["filter"])
        yield one
        below = (*(one.every or ()), *(one.some or ()), *((one.none,) if one.none else ()))
        waiting += ((part, depth + 1) for part in below)


def _leaves(where: MessageWhere) -> set[Leaf]:
    return {
        (name, asked)
        for one in parts(where)
        for name in READ
        if (asked := getattr(one, name)) is not None
    }


async def looked(
    ctx: Context, places: Sequence[Place], terms: Terms
) -> dict[tuple[MessageWhere, bool], Looked]:
    """Load the lookups of these filters, in a fixed number of statements per filter.

    `build_conditions` builds the SQL of the other conditions. Raises LimitReached if too many
    messages would have to be read: other conditions must narrow them.
    """
    alike: defaultdict[tuple[MessageWhere, bool], list[Place]] = defaultdict(list)
    for place in places:
        alike[place.where, place.archived].append(place)
    return {key: await _looked(ctx, key[0], group, terms) for key, group in alike.items()}


async def _looked(
    ctx: Context, where: MessageWhere, places: Sequence[Place], terms: Terms
) -> Looked:
    filters = list(parts(where))
    owners = sorted({place.user_id for place in places})
    by_words = any(one.query for one in filters)
    waiting = await waiting_of(ctx, owners) if by_words else Waiting(owners)
    seen = Looked(waiting, places[0].archived)
    masks = {mask for one in filters for mask in one.mailbox_masks or ()}
    if masks:
        seen = replace(seen, boxes=await _boxes(ctx, owners, masks))
    leaves = _leaves(where)
    if leaves:
        await _opened(ctx, places)
        there = [*_there(ctx, places, owners), *terms(_of_columns(where), seen)]
        seen = replace(seen, found=await _read(ctx, there, leaves))
    return seen


async def _opened(ctx: Context, places: Sequence[Place]) -> None:
    """Raise Forbidden if the viewer can't read the texts the filter asks for.

    Reads by ROOT are logged.
    """
    foreign = {place for place in places if place.user_id != ctx.viewer.user_id}
    if not foreign or not administered(ctx):  # only shared messages can be found
        return
    mailboxes = await readable_boxes(ctx, {place.mailbox_id for place in foreign})
    closed = {place.user_id for place in foreign if place.mailbox_id not in mailboxes}
    if closed and ctx.viewer.role is not Role.ROOT:
        raise refusal()
    await witnessed(ctx, closed)


def _there(
    ctx: Context, places: Sequence[Place], owners: Sequence[int]
) -> list[ColumnElement[bool]]:
    found = [records(ctx, Message), col(Message.user_id).in_(owners)]
    for name in ("mailbox_id", "thread_id"):
        keys = {getattr(place, name) for place in places}
        if None not in keys:
            found.append(col(getattr(Message, name)).in_(keys))
    gone = col(Message.archived_at)
    return [*found, gone.is_not(None) if places[0].archived else gone.is_(None)]


async def _boxes(ctx: Context, owners: Sequence[int], masks: Iterable[str]) -> dict[str, list[int]]:
    statement = select(*picked(Mailbox, {"id", "path"}))
    rows = await ctx.read(statement.where(records(ctx, Mailbox), col(Mailbox.user_id).in_(owners)))
    fits = {mask: paths.compiled(mask).fullmatch for mask in masks}
    folded = [(row.id, fold_text(row.path)) for row in rows]
    return {mask: [key for key, path in folded if fit(path)] for mask, fit in fits.items()}


def _of_columns(where: MessageWhere) -> MessageWhere:
    """Return a wider filter, without the conditions that need a message to be read."""
    return replace(
        where,
        text=None,
        body=None,
        header=None,
        every=None if where.every is None else tuple(map(_of_columns, where.every)),
        some=where.some if not any(map(_leaves, where.some or ())) else None,
        none=where.none if where.none and not _leaves(where.none) else None,
    )


async def _read(
    ctx: Context, there: Sequence[ColumnElement[bool]], leaves: Iterable[Leaf]
) -> dict[Leaf, list[int]]:
    """Find the messages that fulfill each condition by reading them. Raises LimitReached."""
    statement = select(*picked(Message, {"id", "blob_id", "structure"})).where(*there)
    rows = await ctx.read(statement.limit(MOST + 1))
    if len(rows) > MOST:
        raise LimitReached(
            f"text, body and header are looked for in at most {MOST} messages: "
            "say more of them, such as a folder or when they came, or search by words",
            limit=MOST,
            used=len(rows),
            path=["filter"],
        )
    found: dict[Leaf, list[int]] = {leaf: [] for leaf in leaves}
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        stored = await message_content.sources(ctx.world, some, ctx.read, charge=ctx.charge)
        held = await message_content.examine_each(stored, partial(_held, stored, found))
        for message, ones in zip(stored, held, strict=True):
            for leaf in ones:
                found[leaf].append(message.row.id)
    return found


def _held(
    stored: Sequence[Stored], leaves: Iterable[Leaf], nth: int, source: Source | None
) -> list[Leaf]:
    """Return the conditions that a message fulfills. A damaged message fulfills none."""
    if source is None:
        return []
    read = _Texts(source, stored[nth].structure)
    return [leaf for leaf in leaves if read.holds(leaf)]


@dataclass
class _Texts:
    """The text and header fields of a message, parsed once for all conditions."""

    source: Source
    structure: Part

    def holds(self, leaf: Leaf) -> bool:
        """True if the message fulfills the condition. A damaged message does not."""
        name, statement = leaf
        try:
            if name == "header":
                return self._has_header(*statement)
            within = fold_text(statement) in self._body
            return within or (name == "text" and fold_text(statement) in self._head)
        except (Corrupt, Hole):  # damage was logged where it was read
            return False

    def _has_header(self, name: str, part: str | None) -> bool:
        values = [field.value for field in self._fields if field.key.casefold() == name.casefold()]
        return bool(values) and (
            part is None or any(fold_text(part) in fold_text(value) for value in values)
        )

    @cached_property
    def _body(self) -> str:
        return fold_text(body_of(self.source, self.structure))

    @cached_property
    def _fields(self) -> Sequence[mime.Header]:
        return mime.headers(self.source, self.structure)

    @cached_property
    def _head(self) -> str:
        return fold_text("\n".join(f"{field.key}: {field.value}" for field in self._fields))
