"""Read objects of the object stores, and what rows of the database say about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import func, select, union_all
from sqlmodel import col

from mail.storage.blobs import blob_reader
from mail.storage.blobs.garbage_collector import REFERENCE_COLUMNS
from mail.storage.blobs.object_names import ADMIN_PREFIX, is_visible_folder, is_visible_name
from mail.storage.blobs.tiered_store import COLD_NAME, HOT_NAME, is_name_of_store
from models.files.blobs import Blob, StorageTier, Upload, UploadPart
from models.store.columns import ColumnRow
from models.store.keyset_pages import Page, PageRequest
from models.store.object_store import ObjectRange, StoredObject
from resolvers.blobs.validation import require_prefix, require_store
from resolvers.context import Context
from resolvers.pagination import page_from_rows

MAX_COUNTED_BLOBS = 10_000  # `totalCount` of a longer list is this number
OBJECTS_PER_REQUEST = 1000  # when they are counted


class BlobOrder(StrEnum):
    """The order of a list of objects. Paths are unique in a store."""

    PATH_ASC = "PATH_ASC"
    PATH_DESC = "PATH_DESC"


class BlobCompression(StrEnum):
    """How the content of an object is compressed."""

    NONE = "NONE"
    ZSTD = "ZSTD"


COMPRESSION_BY_CODEC = {"raw": BlobCompression.NONE, "zstd": BlobCompression.ZSTD}


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """An object of a store. `size` is in stored bytes."""

    store: str
    path: str
    size: int
    modified_at: datetime
    version: str = ""  # only of an object that was looked up

    @classmethod
    def of_object(cls, store_name: str, stored: StoredObject) -> "StoredBlob":
        """Return an entry of the list of a store."""
        return cls(store_name, stored.name, stored.size, stored.modified_at, stored.version)

    @property
    def tier(self) -> StorageTier:
        """The tier that the store is used for."""
        return StorageTier.COLD if self.store == COLD_NAME else StorageTier.HOT

    @property
    def is_written_by_administrators(self) -> bool:
        """True if no row can name the object, and its content is not compressed."""
        return self.path.startswith(ADMIN_PREFIX)


@dataclass(frozen=True, slots=True)
class BlobFolder:
    """A folder of a store; the path ends with a slash."""

    store: str
    path: str


@dataclass(frozen=True, slots=True)
class BlobConditions:
    """Conditions of a list of objects."""

    store: str = HOT_NAME
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class BlobFacts:
    """What the rows say that name an object.

    `content_size` is the number of bytes before compression. It and `compression` are None if no
    row names the object. `row` is its row in the table of blobs.
    """

    content_size: int | None = None
    compression: BlobCompression | None = None
    ref_count: int = 0
    row: ColumnRow | None = None


async def find_blob(ctx: Context, store_name: str, path: str) -> StoredBlob | None:
    """Return an object by its valid path, or None. The caller checks access.

    Raises InvalidInput for an unknown store.
    """
    stored = await require_store(ctx, store_name).find(path)
    return None if stored is None else StoredBlob.of_object(store_name, stored)


async def read_blob_page(
    ctx: Context, conditions: BlobConditions, page_request: PageRequest, order: BlobOrder
) -> Page[StoredBlob]:
    """Read a page of the objects of a store. The caller checks access.

    Raises InvalidInput for a wrong store or prefix.
    """
    store = require_store(ctx, conditions.store, ("filter", "store"))
    require_prefix(conditions.prefix)
    object_range = _range_of_page(conditions.prefix, page_request, order, is_visible_name)
    found = await store.list_page(object_range)
    return page_from_rows(
        [StoredBlob.of_object(conditions.store, stored) for stored in found], page_request
    )


async def read_folder_page(
    ctx: Context, conditions: BlobConditions, page_request: PageRequest, order: BlobOrder
) -> Page[BlobFolder]:
    """Read a page of the folders directly below a prefix, which may lack its last slash.

    The caller checks access. Raises InvalidInput for a wrong store or prefix.
    """
    store = require_store(ctx, conditions.store, ("filter", "store"))
    require_prefix(conditions.prefix)
    prefix = _folder_prefix(conditions.prefix)
    object_range = _range_of_page(prefix, page_request, order, is_visible_folder)
    folders = await store.list_folders(object_range)
    return page_from_rows(
        [BlobFolder(conditions.store, folder) for folder in folders], page_request
    )


def _folder_prefix(prefix: str) -> str:
    return f"{prefix}/" if prefix and not prefix.endswith("/") else prefix


def _range_of_page(
    prefix: str, page_request: PageRequest, order: BlobOrder, is_valid: Callable[[str], bool]
) -> ObjectRange:
    """Return the range to read for a page. Raises InvalidInput if its cursor is no valid path."""
    path = page_request.cursor_sort_value(str)
    if path is not None and not is_valid(path):
        raise page_request.cursor_refusal()
    is_descending = (order is BlobOrder.PATH_DESC) is not page_request.is_backward
    return ObjectRange(prefix, page_request.count + 1, path, is_descending)


async def count_blobs(ctx: Context, conditions: BlobConditions) -> int:
    """Count the objects of a list, at most MAX_COUNTED_BLOBS."""
    store = require_store(ctx, conditions.store, ("filter", "store"))
    count, cursor = 0, None
    while count < MAX_COUNTED_BLOBS:
        object_range = ObjectRange(conditions.prefix, OBJECTS_PER_REQUEST, cursor)
        found = await store.list_page(object_range)
        count += len(found)
        if len(found) < OBJECTS_PER_REQUEST:
            break
        cursor = found[-1].name
    return count


async def count_folders(ctx: Context, conditions: BlobConditions) -> int:
    """Count the folders of a list, at most MAX_COUNTED_BLOBS."""
    store = require_store(ctx, conditions.store, ("filter", "store"))
    prefix = _folder_prefix(conditions.prefix)
    return len(await store.list_folders(ObjectRange(prefix, MAX_COUNTED_BLOBS)))


async def load_blob_facts(ctx: Context, blobs: list[StoredBlob]) -> list[BlobFacts]:
    """Load what the rows say about objects, in the order of the objects."""
    names = [blob.path for blob in blobs if _can_have_row(ctx, blob)]
    blob_rows, upload_sizes = (
        await _load_blob_rows_and_upload_sizes(ctx, names) if names else ({}, {})
    )
    counts = await _count_references(ctx, [row.id for row in blob_rows.values()])
    return [
        _facts_of_blob(blob, blob_rows, upload_sizes, counts)
        if _can_have_row(ctx, blob)
        else BlobFacts(blob.size, BlobCompression.NONE)
        if blob.is_written_by_administrators
        else BlobFacts()
        for blob in blobs
    ]


def _can_have_row(ctx: Context, blob: StoredBlob) -> bool:
    return not blob.is_written_by_administrators and is_name_of_store(
        ctx.environment.object_store, blob.store, blob.path
    )


def _facts_of_blob(
    blob: StoredBlob,
    blob_rows: dict[str, ColumnRow],
    upload_sizes: dict[str, int],
    counts: dict[int, int],
) -> BlobFacts:
    """Return size, compression and number of references; no facts if nothing refers to the blob."""
    if (row := blob_rows.get(blob.path)) is not None:
        compression = COMPRESSION_BY_CODEC.get(row.codec)
        return BlobFacts(row.size, compression, counts.get(row.id, 0), row)
    if (size := upload_sizes.get(blob.path)) is not None:
        return BlobFacts(size, BlobCompression.NONE, 1)
    return BlobFacts()


async def _load_blob_rows_and_upload_sizes(
    ctx: Context, names: Sequence[str]
) -> tuple[dict[str, ColumnRow], dict[str, int]]:
    """Return the rows of blobs, and the sizes of uploads and of their parts, by object name."""
    uploads = union_all(
        select(col(Upload.blob_name).label("name"), col(Upload.size).label("size")).where(
            col(Upload.blob_name).in_(names)
        ),
        select(col(UploadPart.name).label("name"), col(UploadPart.size).label("size")).where(
            col(UploadPart.name).in_(names)
        ),
    ).subquery()
    # Uploads first: an upload can become a blob between two reads, but not the reverse.
    upload_sizes = {row.name: int(row.size) for row in await ctx.read(select(uploads))}
    statement = select(*blob_reader.COLUMNS).where(col(Blob.name).in_(names))
    return {row.name: row for row in await ctx.read(statement)}, upload_sizes


async def _count_references(ctx: Context, blob_ids: Sequence[int]) -> dict[int, int]:
    """Count the reference rows of each blob."""
    if not blob_ids:
        return {}
    references = union_all(
        *(
            select(blob_id.label("blob_id"), func.count().label("many"))
            .where(blob_id.in_(blob_ids))
            .group_by(blob_id)
            for blob_id in REFERENCE_COLUMNS
        )
    ).subquery()
    statement = select(references.c.blob_id, func.sum(references.c.many).label("many")).group_by(
        references.c.blob_id
    )
    return {row.blob_id: int(row.many) for row in await ctx.read(statement)}
