"""Readers of stored messages: their exact bytes, and the decoded content of their parts."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson
from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from mail.mime import Part, Source, Whole, facts, part_of
from mail.mime.base64_lines import WHITE
from mail.mime.part_content import decoded
from mail.storage.blobs import blob_reader
from mail.storage.blobs.base64_offsets import Lines
from mail.storage.blobs.blob_reader import STEP
from mail.storage.blobs.damage_check import check_piece
from mail.storage.blobs.errors import Corrupt, Hole
from mail.storage.blobs.large_layout import (
    COPIES,
    HELD,
    READING,
    LiteralReader,
    Outline,
    read_outline,
)
from mail.storage.blobs.message_layout import Gap, Literal, Skeleton, open_skeleton
from models.errors import NotFound
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.runtime.environment import World
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.byte_cache import Shelf
from models.store.columns import Picked
from models.store.object_store import Store
from models.store.prepared_statements import Prepared, number
from models.submission.tables import Submission

log = logging.getLogger(__name__)

AT_ONCE = 8  # large layouts that are read from the store at the same time
LARGE = 8 * 1024  # bytes; from this size on a thread works on them
WHITE_MAX = 64 * 1024  # bytes of white space that may surround the content of a part
CODED = (
    "base64",
    "quoted-printable",
    "x-uuencode",
)  # with any other encoding the body is the content

_ROOTS = select(*blob_reader.COLUMNS).where(col(Blob.id).in_(bindparam("ids", expanding=True)))
ROOT = Prepared(select(*blob_reader.COLUMNS).where(col(Blob.id) == number("blob")))
_NO_PARTS = facts(b"").structure


class Holding(NamedTuple):
    """The queries for a blob of an owner row by its `digest`, and for the owner row."""

    piece: Select[*tuple[Any, ...]]
    row: Select[*tuple[Any, ...]]


def _holding(key: Any, holder: Any, blob_id: Any) -> Holding:
    mine, named = holder == bindparam("holder"), col(Blob.digest) == bindparam("digest")
    piece = select(*blob_reader.COLUMNS).join_from(Blob, holder.class_, blob_id == col(Blob.id))
    return Holding(piece.where(mine, named), select(key).where(key == bindparam("holder")))


MESSAGES = _holding(Message.id, MessageBlob.message_id, col(MessageBlob.blob_id))
QUARANTINE = _holding(QuarantineItem.id, QuarantineBlob.item_id, col(QuarantineBlob.blob_id))
SUBMISSIONS = _holding(Submission.id, SubmissionBlob.submission_id, col(SubmissionBlob.blob_id))

Read = Callable[[Select[*tuple[Any, ...]], Mapping[str, Any]], Awaitable[Sequence[Picked]]]
Stream = AsyncGenerator[bytes]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Content:
    """The decoded content of a MIME part: its size, and its bytes between two offsets."""

    size: int
    stream: Callable[[int, int], Stream]
    check: Callable[[int, int], Awaitable[None]]  # raises CorruptBlob if those bytes are damaged


class SharedResult:
    """The result of one computation for all waiting callers; dropped with the last of them."""

    __slots__ = ("lock", "value", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.value: tuple[Any] | None = None
        self.waiting = 0


def _charge_nobody(_count: int) -> None:
    """Ignore the number of bytes read."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored message. `row` has the columns that its reader selected.

    A layout of more than 1 MiB is a LazyMessageLayout: its bytes are read when they are needed,
    within the memory limit for all readers of the process. `count_bytes_read` is called with
    each number of bytes read.
    """

    row: Picked
    structure: Part
    skeleton: Skeleton | Corrupt
    _store: Store
    _read: Read
    shelf: Shelf = field(default_factory=partial(Shelf, 0))  # results of earlier calls
    _of: Holding = MESSAGES
    charge: Callable[[int], None] = _charge_nobody
    _shared: dict[Hashable, SharedResult] = field(default_factory=dict)

    @property
    def layout(self) -> Skeleton:
        """The layout, perhaps without bytes. Raises CorruptBlob if it is lost or damaged."""
        if isinstance(self.skeleton, Corrupt):
            raise Corrupt(str(self.skeleton)) from self.skeleton
        return self.skeleton

    @property
    def size(self) -> int:
        """Bytes of the whole message."""
        return len(self.layout)

    async def share(self, key: Hashable, make: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of `compute`; concurrent callers with this key share one result."""
        shared = self._shared.setdefault(key, SharedResult())
        shared.waiting += 1
        try:
            async with shared.lock:
                if shared.value is None:
                    shared.value = (await make(),)
                found: Result = shared.value[0]
                return found
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._shared.pop(key, None)

    async def fetch(self, digest: str) -> bytes:
        """Read and verify the content of a blob of this message."""
        return await blob_reader.read(self._store, await self._piece(digest))

    async def _piece(self, digest: str) -> Picked:
        """Find the row of a blob.

        Raises CorruptBlob without it, and NotFound if the message is deleted.
        """
        for row in await self._read(self._of.piece, {"holder": self.row.id, "digest": digest}):
            return row
        if await self._read(self._of.row, {"holder": self.row.id}):
            raise Corrupt(f"The message {self.row.id} lacks its piece {digest}")
        raise NotFound(str(self.row.id))  # deleted while it was read

    async def whole(self, start: int = 0, end: int | None = None) -> Stream:
        """Yield the exact bytes of the message from `start` to `end`, at most 256 KiB at once.

        However large the blobs in the range, few bytes of them are in memory. See
        `blob_reader.stream_content` for the verification.
        """
        end = self.size if end is None else min(end, self.size)
        self.charge(max(0, end - start))
        layout = self.layout
        if isinstance(layout, Outline):
            literals = LiteralReader(self._store, layout, start, end)
        else:
            literals = None
        try:
            for entry in layout.entries(start, end):
                first, last = max(start, entry.start), min(end, entry.end)
                if isinstance(entry, Gap):
                    stream = self._filled(entry, first, last)
                elif literals is None:
                    stream = _held(layout, entry, first, last)
                else:
                    stream = literals.take(last - first)
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        yield chunk
        finally:
            if literals is not None:
                await literals.close()

    async def check(self, start: int = 0, end: int | None = None) -> None:
        """Raise CorruptBlob if a blob between two offsets of the message is lost or damaged."""
        layout = self.layout
        entries = list(layout.entries(start, self.size if end is None else min(end, self.size)))
        if isinstance(layout, Outline) and any(isinstance(one, Literal) for one in entries):
            await check_piece(self._store, layout.blob)
        for entry in entries:
            if isinstance(entry, Gap):
                await check_piece(self._store, await self._filling(entry))

    async def _filling(self, gap: Gap) -> Picked:
        piece = await self._piece(gap.digest)
        if piece.size != gap.size:
            raise Corrupt(f"The content of {gap.digest} has another size")
        return piece

    async def _filled(self, entry: Gap, start: int, end: int) -> Stream:
        start, end = start - entry.start, end - entry.start
        piece = await self._filling(entry)
        if entry.wrapping is None:
            chunks = blob_reader.stream(self._store, piece, start, end)
        else:
            chunks = self._encoded(entry, piece, start, end)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _encoded(self, gap: Gap, piece: Picked, start: int, end: int) -> Stream:
        """Yield the base64 text of a blob, from offset `start` of the text to `end`."""
        lines = Lines(gap)
        at, until = lines.quad_before(start), lines.quad_after(end)
        content = blob_reader.stream(
            self._store, piece, at // 4 * 3, min(until // 4 * 3, piece.size)
        )
        async with aclosing(content):
            rest = b""
            async for chunk in content:
                rest += chunk
                whole = len(rest) - len(rest) % 3
                text = lines.text(rest[:whole], at)
                yield text[max(0, start - lines.offset(at)) : end - lines.offset(at)]
                at, rest = at + whole // 3 * 4, rest[whole:]
            if rest:  # the last quad, padded
                yield lines.text(rest, at)[
                    max(0, start - lines.offset(at)) : end - lines.offset(at)
                ]

    async def examine(self, work: Callable[[Source], Result], *, apart: bool = False) -> Result:
        """Return the result of `function`, which reads the raw message without its blobs.

        A large layout is examined in a thread, also if `in_thread` is true. If the function
        needs bytes of a blob, it runs again on the whole message.
        """
        layout = self.layout
        held = self.size - sum(hole.end - hole.start for hole in layout.holes)
        try:
            if isinstance(layout, Outline):
                self.charge(held)
                async with READING.take(held * COPIES):
                    self.charge(0)
                    skeleton = await layout.load(self._store)
                    return await asyncio.to_thread(work, skeleton)
            if held < LARGE and not apart:
                return work(layout)
            return await asyncio.to_thread(work, layout)
        except Hole:
            async with READING.take(self.size * COPIES):
                raw = await gathered(self.whole())
                return await asyncio.to_thread(work, Whole(raw))

    async def opened(self, part: Part) -> Content:
        """The decoded content of a part, to be read in chunks.

        Base64 in regular lines and content without an encoding are read in chunks; other
        content is decoded in memory.
        """
        if part.encoding not in CODED:
            begin, last = part.body_start, part.body_end
            return Content(
                part.size,
                self._bare(part),
                lambda start, end: self.check(begin + start, min(begin + end, last)),
            )
        if part.encoding == "base64" and (gap := await self._cut_out(part)):
            return Content(gap.size, self._cut(gap), self._check_gap(gap))
        body = await gathered(self.whole(part.body_start, part.body_end))
        if len(body) < LARGE:
            return _at_hand(decoded(body, part.encoding))
        return _at_hand(await asyncio.to_thread(decoded, body, part.encoding))

    async def _cut_out(self, part: Part) -> Gap | None:
        """The blob span that is the whole body of the part, apart from white space around it."""
        found: Gap | None = None
        for entry in self.layout.entries(part.body_start, part.body_end):
            first, last = max(part.body_start, entry.start), min(part.body_end, entry.end)
            if isinstance(entry, Literal):
                if last - first > WHITE_MAX or (await gathered(self.whole(first, last))).strip(
                    WHITE
                ):
                    return None
            elif found or entry.wrapping is None or (first, last) != (entry.start, entry.end):
                return None
            else:
                found = entry
        return found

    def _bare(self, part: Part) -> Callable[[int, int], Stream]:
        def stream(start: int, end: int) -> Stream:
            end = min(part.body_start + end, part.body_end)
            return self.whole(part.body_start + start, end)

        return stream

    def _cut(self, gap: Gap) -> Callable[[int, int], Stream]:
        async def stream(start: int, end: int) -> Stream:
            piece = await self._piece(gap.digest)
            async with aclosing(blob_reader.stream(self._store, piece, start, end)) as chunks:
                async for chunk in chunks:
                    yield chunk

        return stream

    def _check_gap(self, gap: Gap) -> Callable[[int, int], Awaitable[None]]:
        async def check(_start: int, _end: int) -> None:
            await check_piece(self._store, await self._filling(gap))

        return check

    async def content(self, part: Part) -> bytes:
        """Read the decoded content of a part."""
        return await gathered(self.stream_content(part))

    async def stream_content(self, part: Part, start: int = 0, end: int | None = None) -> Stream:
        """Yield the decoded content of a part from `start` to `end`."""
        content = await self.opened(part)
        last = content.size if end is None else min(end, content.size)
        async with aclosing(content.stream(start, last)) as chunks:
            async for chunk in chunks:
                yield chunk


async def examine_each(
    many: Sequence[Stored], work: Callable[[int, Source | None], Result]
) -> list[Result]:
    """Return the result of `function` for each message; it gets the index and the source.

    The source is None if the message is damaged. Messages in memory are examined together in
    one thread, others one by one.
    """
    outlines = [nth for nth, one in enumerate(many) if isinstance(one.skeleton, Outline)]
    held = [nth for nth, one in enumerate(many) if not isinstance(one.skeleton, Outline)]

    def examine_held() -> dict[int, Result]:
        return {nth: work(nth, _source_or_none(many[nth])) for nth in held}

    found = await asyncio.to_thread(examine_held) if held else {}
    for nth in outlines:
        try:
            found[nth] = await many[nth].examine(partial(work, nth), apart=True)
        except Corrupt:  # logged when its layout was read, or by the next check
            found[nth] = await asyncio.to_thread(work, nth, None)
    return [found[nth] for nth in range(len(many))]


def _source_or_none(message: Stored) -> Source | None:
    return None if isinstance(message.skeleton, Corrupt) else message.skeleton


async def sources(
    world: World,
    rows: Sequence[Picked],
    read: Read | None = None,
    of: Holding = MESSAGES,
    *,
    charge: Callable[[int], None] = _charge_nobody,
) -> list[Stored]:
    """Open the stored messages of rows with id, blob_id and structure, with one statement.

    `queries` are those of the table of the rows. `read_rows` reads through a transaction, which
    sees its own changes. Damage to one message is logged, and raised as CorruptBlob when it is
    read.
    """
    found = await read_sources(world, rows, read, of, charge=charge)
    for one in found:
        _log_damage(one)
    return found


async def read_sources(
    world: World,
    rows: Sequence[Picked],
    read: Read | None = None,
    of: Holding = MESSAGES,
    *,
    charge: Callable[[int], None] = _charge_nobody,
) -> list[Stored]:
    """Open stored messages as `open_messages`, but without a log record of damage.

    It is for callers that log CorruptBlob themselves.
    """
    read = read or world.database.read
    opened = await skeletons(world, await roots(rows, read))
    return [
        Stored(
            row,
            await read_tree(row),
            skeleton_of(row, opened),
            world.blobs,
            read,
            _of=of,
            charge=charge,
        )
        for row in rows
    ]


class _Named(NamedTuple):
    id: int
    blob_id: int


async def submitted(world: World, submission_id: int, blob_id: int) -> Stored:
    """Open a message of the queue, without its MIME tree. Raises CorruptBlob when it is read."""
    row: Any = _Named(submission_id, blob_id)
    opened = await skeletons(world, await world.database.find(ROOT, {"blob": blob_id}))
    skeleton = skeleton_of(row, opened)
    return Stored(row, _NO_PARTS, skeleton, world.blobs, world.database.read, _of=SUBMISSIONS)


async def roots(rows: Sequence[Picked], read: Read) -> Sequence[Picked]:
    """Read the rows of the layout blobs of messages, in no order, with one statement."""
    ids = list({row.blob_id for row in rows})
    return await read(_ROOTS, {"ids": ids}) if ids else []


async def skeletons(world: World, blobs: Sequence[Picked]) -> dict[int, Skeleton | Corrupt]:
    """Open the layouts in these blobs, by blob id; the error instead of a damaged layout."""
    turn = asyncio.Semaphore(AT_ONCE)
    if len(blobs) == 1:
        return {blobs[0].id: await _skeleton(world.blobs, blobs[0], turn)}
    opened = await asyncio.gather(*(_skeleton(world.blobs, blob, turn) for blob in blobs))
    return dict(zip((blob.id for blob in blobs), opened, strict=True))


def _log_damage(message: Stored) -> None:
    if isinstance(message.skeleton, Corrupt):
        extra = {"blob": message.row.blob_id, "damage": str(message.skeleton)}
        log.warning("a stored message is damaged", extra=extra)


def skeleton_of(row: Picked, opened: Mapping[int, Skeleton | Corrupt]) -> Skeleton | Corrupt:
    """The layout of a row, or the error if it is lost or damaged."""
    found = opened.get(row.blob_id)
    return Corrupt(f"The skeleton {row.blob_id} has no row") if found is None else found


async def read_tree(row: Picked) -> Part:
    """Parse the MIME tree of a row; a large one in a thread."""
    if is_large_tree(row):
        return await asyncio.to_thread(tree_of, row)
    return tree_of(row)


def is_large_tree(row: Picked) -> bool:
    """True if the MIME tree of a row must be parsed in a thread."""
    return len(row.structure) >= LARGE


def tree_of(row: Picked) -> Part:
    """Parse the MIME tree of a row."""
    return part_of(orjson.loads(row.structure))


async def _skeleton(store: Store, blob: Picked, turn: asyncio.Semaphore) -> Skeleton | Corrupt:
    try:
        async with turn:
            if blob.size > HELD:
                return await read_outline(store, blob)
            return open_skeleton(await blob_reader.read(store, blob))
    except Corrupt as problem:
        return Corrupt(f"The skeleton {blob.digest} cannot be read. {problem}")


async def gathered(stream: Stream) -> bytes:
    """All bytes of a stream."""
    async with aclosing(stream):
        return b"".join([chunk async for chunk in stream])


async def _quads(content: Stream) -> Stream:
    """Yield the same bytes in multiples of three; only the last chunk can have another size."""
    rest = b""
    async with aclosing(content):
        async for chunk in content:
            rest += chunk
            whole = len(rest) - len(rest) % 3
            yield rest[:whole]
            rest = rest[whole:]
    if rest:
        yield rest


def _at_hand(content: bytes) -> Content:
    async def stream(start: int, end: int) -> Stream:
        for at in range(start, min(end, len(content)), STEP):
            yield content[at : min(at + STEP, end)]

    async def check(_start: int, _end: int) -> None: ...

    return Content(len(content), stream, check)


async def _held(skeleton: Skeleton, entry: Literal, start: int, end: int) -> Stream:
    for at in range(start, end, STEP):
        yield skeleton.literal(entry, at, min(at + STEP, end))
