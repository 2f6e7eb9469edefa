"""Keeping the pieces of a message: their bytes before the unit of work, their rows in it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, String, insert, select
from sqlmodel import col

from mail.blobs.codec import compress
from mail.blobs.pack import Filed, Piece
from mail.blobs.store import object_name
from models.blobs import Blob, MessageBlob
from models.columns import insert_or
from models.prepared import Prepared, Sent, among, number, prepared
from models.world import Turn, World

INLINE_ROOT = 256 * 1024  # compressed bytes; ordinary reads then touch no store
INLINE = 4 * 1024
LARGE = 64 * 1024  # from here on a thread compresses

_REFERRED = Prepared(insert(MessageBlob).inline())


@prepared
def _known(dialect: str, *, held: bool) -> Select[*tuple[Any, ...]]:
    asked = select(col(Blob.id), col(Blob.digest)).where(
        col(Blob.tenant_id) == number("tenant"), among(dialect, col(Blob.digest), "digests", String)
    )
    return asked.with_for_update(read=True, key_share=True) if held else asked


class Gone(Exception):
    """A piece that was there before the unit was collected meanwhile: put it once more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The pieces of a message, safe, and the rows that will tell of them.

    `root` is the digest of the skeleton. A piece of `known` was stored before; it has no row.
    """

    root: str
    rows: Sequence[Mapping[str, Any]]
    known: Sequence[str]
    tenant_id: int

    @property
    def digests(self) -> Iterable[str]:
        """Those of all pieces, each once."""
        return dict.fromkeys([*self.known, *(row["digest"] for row in self.rows)])


@dataclass(frozen=True, slots=True)
class Pieces:
    """What was cut out of a message, safe; as in `Kept`."""

    rows: Sequence[Mapping[str, Any]]
    known: Sequence[str]


async def keep(  # noqa: PLR0913 - what is kept, and how
    world: World,
    tenant_id: int,
    root: Piece,
    pieces: Sequence[Piece],
    *,
    again: bool = False,
    once: dict[int, asyncio.Future[Pieces]] | None = None,
) -> Kept:
    """Make the pieces of a message safe for this tenant. What it has already is not stored again.

    With `again` they are stored even so: after Gone. `once` is shared, by tenant, by messages
    that differ in what is left of them only: what was cut out is made safe once for all.
    """
    once = {} if once is None else once
    if again or tenant_id not in once:
        once[tenant_id] = asyncio.ensure_future(_pieces(world, tenant_id, pieces, again=again))
    cut = await asyncio.shield(once[tenant_id])
    rows = [await _stored(world, tenant_id, root, INLINE_ROOT), *cut.rows]
    return Kept(root.digest, rows, cut.known, tenant_id)


def keep_small(
    world: World, tenant_id: int, root: Piece, pieces: Sequence[Piece]
) -> "asyncio.Future[Kept] | None":
    """The same of most messages, which need no wait: it is done. None of others."""
    content = root.content
    if pieces or isinstance(content, Filed) or len(content) >= LARGE:
        return None
    codec, data = compress(content)
    row = _row(world, tenant_id, root, (codec, data, len(data), None))
    done: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
    done.set_result(Kept(root.digest, [row], (), tenant_id))
    return done


async def _pieces(world: World, tenant_id: int, pieces: Sequence[Piece], *, again: bool) -> Pieces:
    known: list[str] = []
    large = [piece.digest for piece in pieces if piece.size > INLINE]
    if large and not again:
        given = {"tenant": tenant_id, "digests": large}
        asked = _known(world.database.dialect, held=False)
        known = [row.digest for row in await world.database.find(asked, given)]
    new = [piece for piece in pieces if piece.digest not in known]
    return Pieces([await _stored(world, tenant_id, piece, INLINE) for piece in new], known)


async def _stored(world: World, tenant_id: int, piece: Piece, inline: int) -> dict[str, Any]:
    codec, data = await _packed(piece)
    size = data.stored if isinstance(data, Filed) else len(data)
    name = None if size <= inline else object_name(piece.digest, world.key())
    if isinstance(data, Filed):
        if name:
            await world.blobs.put_file(name, data.path)
        else:
            data = await asyncio.to_thread(data.path.read_bytes)
    elif name:
        await world.blobs.put(name, data)
    return _row(world, tenant_id, piece, (codec, None if name else data, size, name))


def _row(
    world: World, tenant_id: int, piece: Piece, lies: tuple[str, Any, int, str | None]
) -> dict[str, Any]:
    """What is written of a piece, by how it lies: codec, data or none, bytes, name of an object."""
    codec, data, size, name = lies
    return {
        "tenant_id": tenant_id,
        "digest": piece.digest,
        "size": piece.size,
        "stored_size": size,
        "codec": codec,
        "name": name,
        "data": data,
        "created_at": world.now(),
    }


async def _packed(piece: Piece) -> tuple[str, bytes | Filed]:
    """The codec, and what to store."""
    content = piece.content
    if isinstance(content, Filed):
        return content.codec, content
    if len(content) < LARGE:
        return compress(content)
    return await asyncio.to_thread(compress, content)


def blob_ids(turn: Turn, *kept: Kept) -> dict[str, int]:
    """The keys of the pieces by their digests, in the unit that will refer to them.

    Those of several messages are of one tenant. A twin that came first is used instead of ours.
    Raises Gone.
    """
    dialect, tenant_id = turn.connection.dialect.name, kept[0].tenant_id
    found = dict[str, int]()
    if known := sorted({digest for one in kept for digest in one.known}):
        asked = _known(dialect, held=True)
        found = {row.digest: row.id for row in turn.fetched(asked, tenant=tenant_id, digests=known)}
        if len(found) < len(known):
            raise Gone
    new = {row["digest"]: row for one in kept for row in one.rows if row["digest"] not in found}
    # a key for each unit: two with the same one would collide by it, which no upsert sees; in
    # one order: no two units wait for each other
    rows = [{**new[digest], "id": turn.world.key()} for digest in sorted(new)]
    found.update((digest, key) for key, digest in turn.fetched_all(_upsert(dialect), rows).raw)
    return found


@prepared
def _upsert(dialect: str) -> Any:
    new = insert_or(dialect, Blob)
    return new.on_conflict_do_update(
        index_elements=["tenant_id", "digest"],
        set_={"created_at": new.excluded.created_at},  # the collector sees that it is wanted
    ).returning(col(Blob.id), col(Blob.digest))


def referred(message_id: int, ids: Sequence[int]) -> list[Sent]:
    """What writes that this message needs these blobs."""
    return [(_REFERRED, {"message_id": message_id, "blob_id": blob_id}) for blob_id in ids]
