"""Writers of the blobs of a message: bytes before the transaction, rows in it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import LargeBinary, Select, String, UpdateBase, bindparam, insert, select, update
from sqlmodel import col

from mail.storage.blobs.compression import compress_if_smaller
from mail.storage.blobs.message_layout import ContentFile, NewBlob
from mail.storage.blobs.object_stores import new_object_name
from models.files.blobs import Blob, MessageBlob
from models.files.damage_marks import is_object_known_damaged
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import core_table, insert_with_conflict
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)

MAX_INLINE_LAYOUT = 256 * 1024  # compressed bytes; most reads then need no object store
MAX_INLINE_BLOB = 4 * 1024
THREAD_THRESHOLD = 64 * 1024  # bytes; from this size on a thread compresses

_INSERT_REFERENCE = PreparedStatement(insert(MessageBlob).inline())
_REPLACE_BYTES = PreparedStatement(
    update(core_table(Blob))
    .where(
        col(Blob.id) == integer_parameter("key"),
        col(Blob.name).is_not_distinct_from(bindparam("old", type_=String)),
    )
    .values(
        stored_size=integer_parameter("stored_size"),
        codec=bindparam("codec", type_=String),
        name=bindparam("name", type_=String),
        data=bindparam("data", type_=LargeBinary),
        damaged_at=None,
    )
)


@prepare_cached
def _select_stored_blobs(dialect: str, *, for_update: bool) -> Select[*tuple[Any, ...]]:
    columns = (Blob.id, Blob.digest, Blob.name, Blob.stored_size, Blob.damaged_at)
    statement = select(*map(col, columns)).where(
        col(Blob.tenant_id) == integer_parameter("tenant"),
        is_in_parameter(dialect, col(Blob.digest), "digests", String),
    )
    return statement.with_for_update(read=True, key_share=True) if for_update else statement


class BlobRowDeleted(Exception):
    """The row of a blob was deleted after its lookup: store the blobs of the message again."""


@dataclass(frozen=True, slots=True)
class StoredMessageBlobs:
    """The stored blobs of a message, and the rows to insert for them.

    A blob of `known_digests` was stored before and has no new row. `damaged_objects` holds
    names of objects that existing rows name and that are lost, have another size, or were
    marked as damaged. Their rows get the bytes of this message.
    """

    layout_digest: str
    new_rows: Sequence[Mapping[str, Any]]
    known_digests: Sequence[str]
    tenant_id: int
    damaged_objects: frozenset[str] = frozenset()

    @property
    def all_digests(self) -> Iterable[str]:
        """The digests of all blobs, each once."""
        return dict.fromkeys([*self.known_digests, *(row["digest"] for row in self.new_rows)])


@dataclass(frozen=True, slots=True)
class StoredPartBlobs:
    """The stored blobs of the parts of a message; the fields are those of StoredMessageBlobs."""

    new_rows: Sequence[Mapping[str, Any]]
    known_digests: Sequence[str]
    damaged_objects: frozenset[str]


@dataclass(frozen=True, slots=True)
class ExistingBlobs:
    """The blobs that a tenant already has.

    The bytes of `intact_digests` can be used; `damaged_objects` are the names of the objects of
    the others.
    """

    intact_digests: Sequence[str] = ()
    damaged_objects: frozenset[str] = field(default_factory=frozenset)


async def store_objects_and_prepare_blob_rows(  # noqa: PLR0913 - the blobs and how to store them
    environment: Environment,
    tenant_id: int,
    layout_blob: NewBlob,
    part_blobs: Sequence[NewBlob],
    *,
    store_again: bool = False,
    part_blobs_by_tenant: dict[int, asyncio.Future[StoredPartBlobs]] | None = None,
) -> StoredMessageBlobs:
    """Store the blobs of a message for a tenant. A blob that the tenant has is not stored again.

    The object of an existing blob must have the size in its row, and must not have been found
    damaged; otherwise the blob is stored again. With `store_again`, after BlobRowDeleted, all
    blobs are stored again. Messages that differ only in their layout share
    `part_blobs_by_tenant`, so that their part blobs are stored once.
    """
    part_blobs_by_tenant = {} if part_blobs_by_tenant is None else part_blobs_by_tenant
    if store_again or tenant_id not in part_blobs_by_tenant:
        part_blobs_by_tenant[tenant_id] = asyncio.ensure_future(
            _store_missing_objects_and_prepare_rows(
                environment, tenant_id, part_blobs, MAX_INLINE_BLOB, store_again=store_again
            )
        )
    message_parts = await asyncio.shield(part_blobs_by_tenant[tenant_id])
    top = await _store_missing_objects_and_prepare_rows(
        environment, tenant_id, [layout_blob], MAX_INLINE_LAYOUT, store_again=store_again
    )
    rows = [*top.new_rows, *message_parts.new_rows]
    known_digests = [*top.known_digests, *message_parts.known_digests]
    return StoredMessageBlobs(
        layout_blob.digest,
        rows,
        known_digests,
        tenant_id,
        top.damaged_objects | message_parts.damaged_objects,
    )


def inline_blobs_of_small_message(
    environment: Environment, tenant_id: int, layout_blob: NewBlob, part_blobs: Sequence[NewBlob]
) -> "asyncio.Future[StoredMessageBlobs] | None":
    """Compress a message without part blobs and return a future that is done.

    Most messages are small and need no wait. Returns None for a large message, or one with part
    blobs.
    """
    content = layout_blob.content
    if part_blobs or isinstance(content, ContentFile) or len(content) >= THREAD_THRESHOLD:
        return None
    codec, data = compress_if_smaller(content)
    stored = _BlobStorage(codec, data, len(data), None)
    row = _blob_row(environment, tenant_id, layout_blob, stored)
    future: asyncio.Future[StoredMessageBlobs] = asyncio.get_running_loop().create_future()
    future.set_result(StoredMessageBlobs(layout_blob.digest, [row], (), tenant_id))
    return future


async def _store_missing_objects_and_prepare_rows(
    environment: Environment,
    tenant_id: int,
    blobs: Sequence[NewBlob],
    max_inline: int,
    *,
    store_again: bool,
) -> StoredPartBlobs:
    large = [blob.digest for blob in blobs if blob.size > max_inline]
    before = (
        await find_intact_and_damaged_blobs(environment, tenant_id, large)
        if large
        else ExistingBlobs()
    )
    intact_digests = () if store_again else before.intact_digests
    new = [blob for blob in blobs if blob.digest not in intact_digests]
    rows = [
        await _store_object_if_large_and_return_row(environment, tenant_id, row, max_inline)
        for row in new
    ]
    return StoredPartBlobs(rows, intact_digests, before.damaged_objects)


async def find_intact_and_damaged_blobs(
    environment: Environment, tenant_id: int, digests: Sequence[str]
) -> ExistingBlobs:
    """Look up which blobs a tenant has, and check that their objects exist with their size.

    A blob that a read or `merganser check` has found damaged is not intact, whatever its size.
    This takes one statement, and one stat or HEAD request for each row that names an object.
    """
    parameters = {"tenant": tenant_id, "digests": digests}
    rows = await environment.database.read_prepared(
        _select_stored_blobs(environment.database.dialect, for_update=False), parameters
    )
    intact = await asyncio.gather(*(_is_intact(environment, row) for row in rows))
    intact_digests = [row.digest for row, is_intact in zip(rows, intact, strict=True) if is_intact]
    damaged = (row.name for row, is_intact in zip(rows, intact, strict=True) if not is_intact)
    return ExistingBlobs(intact_digests, frozenset(name for name in damaged if name is not None))


async def _is_intact(environment: Environment, blob_row: Any) -> bool:
    """True if the blob is not known to be damaged and its object has the stored size."""
    if blob_row.damaged_at is not None:
        return False
    store, name = environment.object_store, blob_row.name
    if name is None:
        return True
    return not is_object_known_damaged(store, name) and (
        await store.size(name) == blob_row.stored_size
    )


async def _store_object_if_large_and_return_row(
    environment: Environment, tenant_id: int, blob: NewBlob, max_inline: int
) -> dict[str, Any]:
    """Store the bytes of a blob, in an object if they are too large for a row; return the row."""
    codec, data = await _codec_and_content_to_store(blob)
    size = data.stored_size if isinstance(data, ContentFile) else len(data)
    name = None if size <= max_inline else new_object_name(blob.digest, environment.new_id())
    if isinstance(data, ContentFile):
        if name:
            await environment.object_store.put_file(name, data.path)
        else:
            data = await asyncio.to_thread(data.path.read_bytes)
    elif name:
        await environment.object_store.put(name, data)
    stored = _BlobStorage(codec, None if name else data, size, name)
    return _blob_row(environment, tenant_id, blob, stored)


@dataclass(frozen=True, slots=True)
class _BlobStorage:
    """How the bytes of a blob are stored: in its row or in an object."""

    codec: str
    row_data: Any  # None: in an object
    stored_size: int  # bytes
    object_name: str | None  # None: in the row


def _blob_row(
    environment: Environment, tenant_id: int, blob: NewBlob, storage: _BlobStorage
) -> dict[str, Any]:
    """The values of the row of a blob."""
    return {
        "tenant_id": tenant_id,
        "digest": blob.digest,
        "size": blob.size,
        "stored_size": storage.stored_size,
        "codec": storage.codec,
        "name": storage.object_name,
        "data": storage.row_data,
        "created_at": environment.now(),
    }


async def _codec_and_content_to_store(blob: NewBlob) -> tuple[str, bytes | ContentFile]:
    """The codec and the bytes or file to store."""
    content = blob.content
    if isinstance(content, ContentFile):
        return content.codec, content
    if len(content) < THREAD_THRESHOLD:
        return compress_if_smaller(content)
    return await asyncio.to_thread(compress_if_smaller, content)


def upsert_blob_rows(
    transaction: DatabaseTransaction, *stored_messages: StoredMessageBlobs
) -> dict[str, int]:
    """Insert the rows of the blobs and return the ids of all blobs by digest.

    All messages belong to one tenant. An existing row of a blob is used. It gets the new bytes
    if its old ones are damaged, or if the new bytes are stored in the row. Raises BlobRowDeleted
    if a row of `known_digests` was deleted.
    """
    dialect, tenant_id = transaction.connection.dialect.name, stored_messages[0].tenant_id
    ids_by_digest = dict[str, int]()
    if known_digests := sorted(
        {digest for message in stored_messages for digest in message.known_digests}
    ):
        statement = _select_stored_blobs(dialect, for_update=True)
        ids_by_digest = {
            row.digest: row.id
            for row in transaction.fetch_rows(statement, tenant=tenant_id, digests=known_digests)
        }
        if len(ids_by_digest) < len(known_digests):
            raise BlobRowDeleted
    new = {
        row["digest"]: row
        for message in stored_messages
        for row in message.new_rows
        if row["digest"] not in ids_by_digest
    }
    # each transaction makes its own keys: equal keys would collide, and the upsert ignores that; in
    # one order, so that two transactions never wait for each other
    rows = [{**new[digest], "id": transaction.environment.new_id()} for digest in sorted(new)]
    damaged = frozenset[str]().union(*(message.damaged_objects for message in stored_messages))
    replaced: list[StatementWithValues] = []
    for key, digest, name, damaged_at in transaction.fetch_rows_of_each(
        _upsert_blob(dialect), rows
    ).raw:
        ids_by_digest[digest] = key
        row = new[digest]
        has_worse_object = (
            name is not None and name != row["name"] and (row["name"] is None or name in damaged)
        )
        if damaged_at is not None or has_worse_object:
            lies = {field: row[field] for field in ("stored_size", "codec", "name", "data")}
            replaced.append((_REPLACE_BYTES, {"key": key, "old": name, **lies}))
    if replaced:
        transaction.execute_statements(replaced)
    return ids_by_digest


@prepare_cached
def _upsert_blob(dialect: str) -> UpdateBase:
    new = insert_with_conflict(dialect, Blob)
    return new.on_conflict_do_update(
        index_elements=["tenant_id", "digest"],
        set_={"created_at": new.excluded.created_at},  # the garbage collector sees a recent use
    ).returning(col(Blob.id), col(Blob.digest), col(Blob.name), col(Blob.damaged_at))


def blob_reference_insert_statements(
    message_id: int, blob_ids: Sequence[int]
) -> list[StatementWithValues]:
    """The statements that insert a reference row for each blob of a message."""
    return [
        (_INSERT_REFERENCE, {"message_id": message_id, "blob_id": blob_id}) for blob_id in blob_ids
    ]
