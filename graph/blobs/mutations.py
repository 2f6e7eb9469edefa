"""Mutations of the objects of the object stores."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.admin.tasks import BulkDeletePayload, Task, TaskPayload
from graph.blobs.types import STORE_DESCRIPTION, Blob
from graph.files.types import FileContent
from graph.submission.compose_inputs import ContentEncoding, decode_attachment_content
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import LONG_MUTATION_COST, AtomicExclusion, mutation
from graph.types.references import value_or_none
from graph.types.scalars import BigInt
from mail.storage.blobs.tiered_store import HOT_NAME
from models.users.roles import Role, Scope
from resolvers.blobs import mutations
from resolvers.blobs.mutations import BlobTarget

WRITE_GUARD: dict[str, Any] = {"role": Role.ROOT, "scope": Scope.FULL}
NOT_ATOMIC = AtomicExclusion("A change of an object store")
# a stored payload needs an open transaction, in which a copy would take long
COPY_NOT_ATOMIC = AtomicExclusion("A copy of a blob", forbids_idempotency_key=True)
ADMIN_PATH_DESCRIPTION = (
    "`admin/` and then 1 to 15 parts with `/` between them, together at most 512 characters. A "
    "part has 1 to 255 characters and does not begin with a dot. Its characters are A-Z, a-z, 0-9 "
    "and `._@+=,-`. An existing object is replaced."
)


@strawberry.input(description="Input of blobPut.")
class BlobPutInput(Options):
    store: str = attribute_field(STORE_DESCRIPTION, default=HOT_NAME)
    path: str = attribute_field(f"Path of the object: {ADMIN_PATH_DESCRIPTION}")
    content: FileContent = attribute_field(
        "Content to store: an upload, or text in the given encoding."
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `content.text`.", default=ContentEncoding.UTF8
    )
    sha256: str | None = attribute_field(
        "SHA-256 of the content, 64 hexadecimal digits (case is ignored). If the content has "
        "another one, the error is VALIDATION, and nothing is stored. Default: it is not compared.",
        default=UNSET,
    )


@strawberry.input(description="Input of blobCopy.")
class BlobCopyInput(Options):
    store: str = attribute_field(STORE_DESCRIPTION, default=HOT_NAME)
    from_: str = attribute_field(
        (
            "Path of the object to copy, in the object store `store`. Without an object the error "
            "is NOT_FOUND. It must differ from the target."
        ),
        name="from",
    )
    to: str = attribute_field(f"Path of the new object: {ADMIN_PATH_DESCRIPTION}")
    to_store: str | None = attribute_field(
        "Name of the object store of the new object: `hot`, or `cold` if a second one is "
        "configured. Default: the one of the copied object.",
        default=UNSET,
    )
    sha256: str | None = attribute_field(
        "Expected SHA-256 of the content before compression, 64 hexadecimal digits (case is "
        "ignored). If the content has a different one, the error is VALIDATION, and nothing is "
        "stored. Default: the content is not checked.",
        default=UNSET,
    )


@strawberry.input(description="Input of blobDelete.")
class BlobDeleteInput(Options):
    store: str = attribute_field(STORE_DESCRIPTION, default=HOT_NAME)
    paths: list[str] = attribute_field(
        "Paths of the objects to delete, at least one, and at most 1,000 by default. With "
        "`recursive` also paths of folders."
    )
    recursive: bool = attribute_field(
        "True also deletes all objects below the paths, by a task. A path without an object is "
        "then no error. Objects stay if they are in use, less than a day old, or kept for a "
        "restored database. The task counts them as `refusedCount`. Objects below `admin/` never "
        "stay.",
        default=False,
    )


@strawberry.input(description="Input of blobCollect.")
class BlobCollectInput(Options):
    pass


@strawberry.type(description="Payload of blobPut and blobCopy.")
class BlobPayload(MutationPayload):
    blob: Blob | None = attribute_field(
        "Stored object. Null if the mutation failed, or with `validateOnly`.", default=None
    )


@strawberry.type
class BlobMutation:
    @mutation(
        "Stores an object below `admin/` of an object store. An existing object with the path is "
        "replaced. The garbage collector never deletes objects below `admin/`. If `content` is an "
        "upload, it must be a complete one of the caller, else NOT_FOUND. The upload is deleted "
        "afterwards. LIMIT_REACHED if the content has more than 50 MiB (by default). CONFLICT if "
        "the path is that of a folder, or if a parent folder of the path is already the path of "
        "an object. The audit log records the change.",
        atomic_exclusion=NOT_ATOMIC,
        **WRITE_GUARD,
    )
    async def blob_put(self, info: Info, input: BlobPutInput) -> BlobPayload:
        target = BlobTarget(input.store, input.path, value_or_none(input.sha256))
        data, upload_id = None, None
        if input.content.upload:
            upload_id = global_ids.decode("Upload", input.content.upload.value, path="content")
        else:
            text = input.content.text.value if input.content.text else ""
            data = decode_attachment_content(text, ContentEncoding(input.encoding), ["content"])
        stored = await mutations.put_blob_unless_dry_run(info.context, target, data, upload_id)
        return BlobPayload(blob=Blob.from_row_or_none(stored))

    @mutation(
        "Copies the content of an object of an object store to a path below `admin/`, also of "
        "another object store. An existing object with the new path is replaced. If messages or "
        "files of the database use the object, the copy has its decompressed and verified "
        "content. Other users who have them find the access in their security logs. CONFLICT if "
        "the new path is that of a folder, or is below an object. With `validateOnly` the content "
        "is not read.",
        atomic_exclusion=COPY_NOT_ATOMIC,
        **WRITE_GUARD,
    )
    async def blob_copy(self, info: Info, input: BlobCopyInput) -> BlobPayload:
        to_store = value_or_none(input.to_store) or input.store
        target = BlobTarget(to_store, input.to, value_or_none(input.sha256))
        stored = await mutations.copy_blob_unless_dry_run(
            info.context, input.store, input.from_, target
        )
        return BlobPayload(blob=Blob.from_row_or_none(stored))

    @mutation(
        "Deletes objects of an object store. Without `recursive`, all given objects are deleted, "
        "or none. NOT_FOUND for a path without an object. CONFLICT if a record of the database "
        "uses an object, or if an object is kept for a restored database. CONFLICT also if an "
        "object is less than a day old, since a running delivery can use it. Objects below "
        "`admin/` can always be deleted. With an idempotency key, the mutation checks the objects "
        "at once, and a task deletes them. With `recursive`, a task deletes the objects, and "
        "counts as `refusedCount` those that can't be deleted. The result of a task has "
        "`deletedCount`, `freedBytes` and `refusedCount`. LIMIT_REACHED for more than 1,000 paths "
        "(by default).",
        atomic_exclusion=NOT_ATOMIC,
        **WRITE_GUARD,
    )
    async def blob_delete(self, info: Info, input: BlobDeleteInput) -> BulkDeletePayload:
        deletion = await mutations.delete_blobs_or_queue_deletion_task(
            info.context, input.store, input.paths, recursive=input.recursive
        )
        return BulkDeletePayload(
            deleted_count=BigInt(deletion.deleted_count), task=Task.from_row_or_none(deletion.task)
        )

    @mutation(
        "Runs the garbage collector of the object stores now, as a task, which can't be "
        "cancelled. It removes blobs and objects that no record uses and that were last stored "
        "more than a day ago, except below `admin/`. Objects that a restored database can need "
        "are kept until `MERGANSER_BACKUP_RESTORE_WINDOW` is over, but `freedBytes` of the task's "
        "result counts their bytes at once. The result also has `deletedCount`.",
        cost=2 * LONG_MUTATION_COST,
        **WRITE_GUARD,
    )
    async def blob_collect(self, info: Info, input: BlobCollectInput) -> TaskPayload:
        return TaskPayload(task=Task.from_row(await mutations.queue_collection(info.context)))
