"""Writers of the blobs of a message: bytes before the transaction, rows in it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import LargeBinary, Select, String, bindparam, insert, select, update
from sqlmodel import col

from mail.storage.blobs.compression import compress
from mail.storage.blobs.message_layout import Filed, Piece
from mail.storage.blobs.object_stores import object_name
from models.files.blobs import Blob, MessageBlob
from models.runtime.environment import Turn, World
from models.store.columns import insert_or, table_of
from models.store.prepared_statements import Prepared, Sent, among, number, prepared

INLINE_ROOT = 256 * 1024  # compressed bytes; most reads then need no object store
INLINE = 4 * 1024
LARGE = 64 * 1024  # bytes; from this size on a thread compresses

_REFERRED = Prepared(insert(MessageBlob).inline())
_REPLACE = Prepared(
    update(table_of(Blob))
    .where(col(Blob.id) == number("key"), col(Blob.name) == bindparam("old", type_=String))
    .values(
        stored_size=number("stored_size"),
        codec=bindparam("codec", type_=String),
        name=bindparam("name", type_=String),
        data=bindparam("data", type_=LargeBinary),
        damaged_at=None,
    )
)


@prepared
def _known(dialect: str, *, held: bool) -> Select[*tuple[Any, ...]]:
    columns = (Blob.id, Blob.digest, Blob.name, Blob.stored_size, Blob.damaged_at)
    asked = select(*map(col, columns)).where(
        col(Blob.tenant_id) == number("tenant"), among(dialect, col(Blob.digest), "digests", String)
    )
    return asked.with_for_update(read=True, key_share=True) if held else asked


class Gone(Exception):
    """The row of a blob was deleted after its lookup: store the blobs of the message again."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The stored blobs of a message, and the rows to insert for them.

    A blob of `known_digests` was stored before and has no new row. `damaged_objects` holds
    names of objects that existing rows name and that are lost, have another size, or were
    marked as damaged. Their rows get the bytes of this message.
    """

    root: str
    rows: Sequence[Mapping[str, Any]]
    known: Sequence[str]
    tenant_id: int
    damaged: frozenset[str] = frozenset()

    @property
    def digests(self) -> Iterable[str]:
        """The digests of all blobs, each once."""
        return dict.fromkeys([*self.known, *(row["digest"] for row in self.rows)])


@dataclass(frozen=True, slots=True)
class Pieces:
    """The stored blobs of the parts of a message; the fields are those of StoredMessageBlobs."""

    rows: Sequence[Mapping[str, Any]]
    known: Sequence[str]
    damaged: frozenset[str]


@dataclass(frozen=True, slots=True)
class StoredBefore:
    """The blobs that a tenant already has.

    The bytes of `intact_digests` can be used; `damaged_objects` are the names of the objects of
    the others.
    """

    known: Sequence[str] = ()
    damaged: frozenset[str] = field(default_factory=frozenset)


async def keep(  # noqa: PLR0913 - the blobs and how to store them
    world: World,
    tenant_id: int,
    root: Piece,
    pieces: Sequence[Piece],
    *,
    again: bool = False,
    once: dict[int, asyncio.Future[Pieces]] | None = None,
) -> Kept:
    """Store the blobs of a message for a tenant. A blob that the tenant has is not stored again.

    The object of an existing blob must have the size in its row; otherwise the blob is stored
    again. With `store_again`, after BlobRowDeleted, all blobs are stored again. Messages that
    differ only in their layout share `part_blobs_by_tenant`, so that their part blobs are
    stored once.
    """
    once = {} if once is None else once
    if again or tenant_id not in once:
        once[tenant_id] = asyncio.ensure_future(
            _pieces(world, tenant_id, pieces, INLINE, again=again)
        )
    cut = await asyncio.shield(once[tenant_id])
    top = await _pieces(world, tenant_id, [root], INLINE_ROOT, again=again)
    rows, known = [*top.rows, *cut.rows], [*top.known, *cut.known]
    return Kept(root.digest, rows, known, tenant_id, top.damaged | cut.damaged)


def keep_small(
    world: World, tenant_id: int, root: Piece, pieces: Sequence[Piece]
) -> "asyncio.Future[Kept] | None":
    """Compress a message without part blobs and return a future that is done.

    Most messages are small and need no wait. Returns None for a large message, or one with part
    blobs.
    """
    content = root.content
    if pieces or isinstance(content, Filed) or len(content) >= LARGE:
        return None
    codec, data = compress(content)
    row = _row(world, tenant_id, root, (codec, data, len(data), None))
    done: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
    done.set_result(Kept(root.digest, [row], (), tenant_id))
    return done


async def _pieces(
    world: World, tenant_id: int, pieces: Sequence[Piece], inline: int, *, again: bool
) -> Pieces:
    large = [piece.digest for piece in pieces if piece.size > inline]
    before = await find_stored(world, tenant_id, large) if large else StoredBefore()
    known = () if again else before.known
    new = [piece for piece in pieces if piece.digest not in known]
    rows = [await _stored(world, tenant_id, piece, inline) for piece in new]
    return Pieces(rows, known, before.damaged)


async def find_stored(world: World, tenant_id: int, digests: Sequence[str]) -> StoredBefore:
    """Look up which blobs a tenant has, and check that their objects exist with their size.

    This takes one statement, and one stat or HEAD request for each row that names an object.
    """
    given = {"tenant": tenant_id, "digests": digests}
    rows = await world.database.find(_known(world.database.dialect, held=False), given)
    intact = await asyncio.gather(*(_is_intact(world, row) for row in rows))
    known = [row.digest for row, good in zip(rows, intact, strict=True) if good]
    damaged = (row.name for row, good in zip(rows, intact, strict=True) if not good)
    return StoredBefore(known, frozenset(damaged))


async def _is_intact(world: World, row: Any) -> bool:
    if row.name is None:
        return True
    return row.damaged_at is None and await world.blobs.size(row.name) == row.stored_size


async def _stored(world: World, tenant_id: int, piece: Piece, inline: int) -> dict[str, Any]:
    """Store the bytes of a blob, in an object if they are too large for a row; return the row."""
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
    """The values of the row of a blob.

    `storage` is the codec, the data of the row or None, the stored size and the object name or
    None.
    """
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
    """The codec and the bytes or file to store."""
    content = piece.content
    if isinstance(content, Filed):
        return content.codec, content
    if len(content) < LARGE:
        return compress(content)
    return await asyncio.to_thread(compress, content)


def blob_ids(turn: Turn, *kept: Kept) -> dict[str, int]:
    """Insert the rows of the blobs and return the ids of all blobs by digest.

    All messages belong to one tenant. An existing row of a blob is used. It gets the new bytes
    if its object is damaged, or if the new bytes are stored in the row. Raises BlobRowDeleted
    if a row of `known_digests` was deleted.
    """
    dialect, tenant_id = turn.connection.dialect.name, kept[0].tenant_id
    found = dict[str, int]()
    if known := sorted({digest for one in kept for digest in one.known}):
        asked = _known(dialect, held=True)
        found = {row.digest: row.id for row in turn.fetched(asked, tenant=tenant_id, digests=known)}
        if len(found) < len(known):
            raise Gone
    new = {row["digest"]: row for one in kept for row in one.rows if row["digest"] not in found}
    # each transaction makes its own keys: equal keys would collide, and the upsert ignores that; in
    # one order, so that two transactions never wait for each other
    rows = [{**new[digest], "id": turn.world.key()} for digest in sorted(new)]
    damaged = frozenset[str]().union(*(one.damaged for one in kept))
    replaced: list[Sent] = []
    for key, digest, name in turn.fetched_all(_upsert(dialect), rows).raw:
        found[digest] = key
        row = new[digest]
        if name is not None and name != row["name"] and (row["name"] is None or name in damaged):
            lies = {field: row[field] for field in ("stored_size", "codec", "name", "data")}
            replaced.append((_REPLACE, {"key": key, "old": name, **lies}))
    if replaced:
        turn.send(replaced)
    return found


@prepared
def _upsert(dialect: str) -> Any:
    new = insert_or(dialect, Blob)
    return new.on_conflict_do_update(
        index_elements=["tenant_id", "digest"],
        set_={"created_at": new.excluded.created_at},  # the garbage collector sees a recent use
    ).returning(col(Blob.id), col(Blob.digest), col(Blob.name))


def referred(message_id: int, ids: Sequence[int]) -> list[Sent]:
    """The statements that insert a reference row for each blob of a message."""
    return [(_REFERRED, {"message_id": message_id, "blob_id": blob_id}) for blob_id in ids]
