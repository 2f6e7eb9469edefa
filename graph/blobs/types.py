"""GraphQL types and queries of the objects of the object stores."""

from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.http import download_urls
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import View
from graph.types.scalars import URL, ByteSize
from mail.storage.blobs.tiered_store import HOT_NAME
from models.files.blobs import StorageTier
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.blobs import content, loaders
from resolvers.blobs.loaders import BlobCompression, BlobConditions, BlobOrder, StoredBlob
from resolvers.blobs.validation import require_blob_path

DEFAULT_TEXT_BYTES = 65_536
STORE_DESCRIPTION = (
    "Name of the object store: `hot`, or `cold` if a second one is configured. Default: `hot`."
)


@strawberry.type(
    description="Object of an object store: the content of messages or files, or an object below "
    "`admin/` that an administrator wrote. Small contents are in the database and are no objects.",
    directives=[Auth(role=Role.ADMIN)],
)
class Blob(View):
    row_type = StoredBlob

    store: str = attribute_field("Name of the object store: `hot` or `cold`.")
    path: str = attribute_field("Path of the object in its object store.")
    size: ByteSize = attribute_field("Number of stored bytes of the object, after compression.")
    modified_at: datetime = attribute_field("Time when the object was last stored.")
    tier: StorageTier = attribute_field(
        "Storage tier that the object's store is used for: COLD for `cold`, else HOT."
    )

    @field(
        "Number of bytes of the object's content before compression. Null: no row of the database "
        "names the object, and it is not below `admin/`."
    )
    async def content_size(self, info: Info) -> ByteSize | None:
        size = (await info.context.load(loaders.load_blob_facts, self.row)).content_size
        return None if size is None else ByteSize(size)

    @field(
        "Compression of the stored bytes of the object. NONE for an object below `admin/`. Null: "
        "unknown, since no row of the database names the object."
    )
    async def compression(self, info: Info) -> BlobCompression | None:
        return (await info.context.load(loaders.load_blob_facts, self.row)).compression

    @field(
        "Number of messages, submissions, files and other records that use the object. 0 for an "
        "object below `admin/`. Another object that none uses is removed by the garbage collector "
        "after a day."
    )
    async def ref_count(self, info: Info) -> int:
        return (await info.context.load(loaders.load_blob_facts, self.row)).ref_count

    @field(
        "SHA-256 of the object's content before compression, in hex. For an object below `admin/` "
        "the whole object is read. Null: the name of another object doesn't contain it.",
        cost=10,
        can_fail=True,
    )
    async def sha256(self, info: Info) -> str | None:
        return await content.read_content_digest_if_known(info.context, self.row)

    @field(
        "Signed URL that downloads the object's content (GET /rest/blobs/{store}/{path}). It is "
        "valid for 15 to 20 minutes, and ends earlier with the caller's credential. Content that "
        "a row of the database names is decompressed. Each download is in the audit log, and in "
        "the security logs of other users whose messages or files have the content.",
        role=Role.ROOT,
        scope=Scope.READ,
    )
    def url(self, info: Info) -> URL:
        path = download_urls.blob_path(self.row.store, self.row.path)
        return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)

    @field(
        "Content of the object from its beginning, as text. Content that a row of the database "
        "names is decompressed. Null: it is not UTF-8 text, or has a NUL character. Each access "
        "is in the audit log, and in the security logs of other users whose messages or files "
        "have the content.",
        role=Role.ROOT,
        scope=Scope.READ,
        cost=10,
    )
    async def text(
        self,
        info: Info,
        max_bytes: Annotated[
            int,
            strawberry.argument(
                description=(
                    "Largest number of bytes that are read, 1 to 1,048,576; another number is an "
                    "error. Default: 65,536."
                )
            ),
        ] = DEFAULT_TEXT_BYTES,
    ) -> str | None:
        return await content.read_utf8_beginning_and_log_access(info.context, self.row, max_bytes)


@strawberry.type(
    description="Folder of an object store, which contains objects or other folders.",
    directives=[Auth(role=Role.ADMIN)],
)
class BlobPrefix(View):
    store: str = attribute_field("Name of the object store: `hot` or `cold`.")
    path: str = attribute_field("Path of the folder, with a slash at its end.")


@strawberry.input(description="Conditions on the objects of one object store. All must hold.")
class BlobFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"prefix"})
    store: str | None = attribute_field(STORE_DESCRIPTION, default=UNSET)
    prefix: str | None = attribute_field(
        "Returns only objects whose path begins with this text, at most 512 characters. In "
        "`blobPrefixes` it is the folder whose folders are returned, with or without a slash at "
        "its end. Default: all objects, or the folders of the first level.",
        default=UNSET,
    )

    def to_conditions(self) -> BlobConditions:
        """Convert the filter to conditions of the resolvers."""
        return BlobConditions(self.store or HOT_NAME, self.prefix or "")


@strawberry.type
class BlobQuery:
    @query(
        "Returns an object of an object store by its path. Null if it does not exist. An unknown "
        "store, or a text that can't be the path of an object, is an error.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def blob(
        self,
        info: Info,
        path: Annotated[
            str,
            strawberry.argument(
                description="Path of the object in its store, at most 512 characters. Case matters."
            ),
        ],
        store: Annotated[str, strawberry.argument(description=STORE_DESCRIPTION)] = HOT_NAME,
    ) -> Blob | None:
        require_blob_path(path)
        return Blob.from_row_or_none(await loaders.find_blob(info.context, store, path))

    @query(
        "Returns the objects of one object store (`filter.store`, by default `hot`), sorted by "
        "path in byte order. A bucket (S3) lists objects only in ascending order. `first` with "
        "PATH_DESC, and `last` with PATH_ASC, need the descending order, and are slower there. The "
        "server then reads whole top folders until the page is full. A top folder has about 1/256 "
        "of the stored objects, and `admin/` has all objects of administrators. `totalCount` "
        "counts at most 10,000 objects.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def blobs(
        self,
        info: Info,
        filter: BlobFilter | None = UNSET,
        order_by: BlobOrder = BlobOrder.PATH_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Blob]:
        ctx, conditions = info.context, (filter or BlobFilter()).to_conditions()
        list_ordering = ordering_name(f"blobs-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Blob,
            await loaders.read_blob_page(ctx, conditions, requested_page, order_by),
            lambda row: Cursor(list_ordering, row.path, 0),
            lambda: loaders.count_blobs(ctx, conditions),
        )

    @query(
        "Returns the folders of one level of an object store (`filter.store`, by default `hot`) "
        "that contain objects, sorted by path in byte order. `totalCount` counts at most 10,000 "
        "folders. An unknown store is an error.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def blob_prefixes(
        self,
        info: Info,
        filter: BlobFilter | None = UNSET,
        order_by: BlobOrder = BlobOrder.PATH_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[BlobPrefix]:
        ctx, conditions = info.context, (filter or BlobFilter()).to_conditions()
        list_ordering = ordering_name(f"blobprefixes-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            BlobPrefix,
            await loaders.read_folder_page(ctx, conditions, requested_page, order_by),
            lambda row: Cursor(list_ordering, row.path, 0),
            lambda: loaders.count_folders(ctx, conditions),
        )
