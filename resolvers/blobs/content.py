"""Read the bytes of objects. Each access is logged, since the bytes are mail of users."""

import codecs
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, null, select, union
from sqlmodel import col

from mail.storage.blobs import blob_reader
from mail.storage.blobs.damage_check import require_intact_blob
from mail.storage.blobs.object_names import digest_in_name_or_none
from models.errors import NotFound
from models.events.journal import PLATFORM
from models.files.blobs import MessageBlob, SubmissionBlob, Upload, UploadPart
from models.files.tables import File, FileShare
from models.messages.tables import Message
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.submission.tables import Submission
from models.transfer import Export, ExportPart, ImportArchive
from models.users.roles import Role
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.blobs.loaders import BlobFacts, StoredBlob, load_blob_facts
from resolvers.blobs.validation import require_store, require_text_limit
from resolvers.context import Context
from resolvers.messages.content_access import write_content_read_to_security_log
from resolvers.viewer import GuardRule

USERS_PER_TRANSACTION = 500  # users whose security logs one transaction writes
TARGET_KIND = "Blob"  # of entries in the audit log
TEXT_FIELD, URL_FIELD = "Blob.text", "Blob.url"  # names of the accesses in the audit log


@dataclass(frozen=True, slots=True)
class BlobAccess:
    """An access to the bytes of an object, and the field that returns them."""

    blob: StoredBlob
    field_name: str


async def log_blob_accesses_and_load_facts(
    ctx: Context, accesses: list[BlobAccess]
) -> list[BlobFacts]:
    """Log accesses before they happen, and return what the rows say about their objects.

    Each access is an entry of the audit log, and an event in the security logs of the owners.
    Raises Forbidden if the viewer is no ROOT.
    """
    facts = await log_reads_for_owners_and_load_facts(ctx, [access.blob for access in accesses])
    entries = [
        NewAuditLogEntry(access.field_name, TARGET_KIND, after=audit_values(access.blob))
        for access in accesses
    ]
    async with ctx.separate_or_nested_write_session(PLATFORM) as (separate_ctx, session):
        await audit_log.insert_audit_log_entries(separate_ctx, session, *entries)
    return facts


async def log_reads_for_owners_and_load_facts(
    ctx: Context, blobs: Sequence[StoredBlob]
) -> list[BlobFacts]:
    """Write reads of objects to the security logs of their owners; return what the rows say.

    Owners are the users whose messages, files, uploads and exports have the bytes. Owners of legal
    hold copies get no event, since a legal hold is secret. Raises Forbidden if the viewer is no
    ROOT.
    """
    ctx.viewer.require(GuardRule(role=Role.ROOT))
    facts = await load_blob_facts(ctx, list(blobs))
    user_ids = sorted(await _load_owner_ids(ctx, blobs, facts) - {ctx.viewer.user_id})
    for start in range(0, len(user_ids), USERS_PER_TRANSACTION):
        await write_content_read_to_security_log(
            ctx, user_ids[start : start + USERS_PER_TRANSACTION]
        )
    return facts


def audit_values(blob: StoredBlob) -> dict[str, Any]:
    """Return what the audit log says about an object."""
    return {"store": blob.store, "path": blob.path, "size": blob.size}


async def _load_owner_ids(
    ctx: Context, blobs: Sequence[StoredBlob], facts: Sequence[BlobFacts]
) -> set[int]:
    """Load the users who own messages, exports, uploads or other rows with one of these blobs."""
    blob_ids = [fact.row.id for fact in facts if fact.row is not None]
    upload_names = [
        blob.path
        for blob, fact in zip(blobs, facts, strict=True)
        if fact.row is None and fact.ref_count
    ]
    selects = selects_of_blob_owners(blob_ids) if blob_ids else []
    if upload_names:
        selects += [
            select(null().label("blob_id"), col(Upload.user_id).label("user_id")).where(
                col(Upload.blob_name).in_(upload_names)
            ),
            select(null().label("blob_id"), col(Upload.user_id).label("user_id"))
            .join(UploadPart, col(UploadPart.upload_id) == col(Upload.id))
            .where(col(UploadPart.name).in_(upload_names)),
        ]
    if not selects:
        return set()
    rows = await ctx.read(select(union(*selects).subquery()))
    return {int(row.user_id) for row in rows if row.user_id is not None}


def selects_of_blob_owners(blob_ids: Sequence[int]) -> list[Select[*tuple[Any, ...]]]:
    """SQL for the users whose rows refer to these blobs, a select for each table.

    The columns are `blob_id` and `user_id`, which is null for submissions of the platform.
    """
    references = (
        (Message, MessageBlob, col(MessageBlob.message_id)),
        (Submission, SubmissionBlob, col(SubmissionBlob.submission_id)),
        (QuarantineItem, QuarantineBlob, col(QuarantineBlob.item_id)),
        (Export, ExportPart, col(ExportPart.export_id)),
    )
    return [
        *(
            select(col(reference.blob_id).label("blob_id"), col(owner.user_id).label("user_id"))
            .select_from(reference)
            .join(owner, owner_id == col(owner.id))
            .where(col(reference.blob_id).in_(blob_ids))
            for owner, reference, owner_id in references
        ),
        *(
            select(col(owner.blob_id).label("blob_id"), col(owner.user_id).label("user_id")).where(
                col(owner.blob_id).in_(blob_ids)
            )
            for owner in (File, FileShare, ImportArchive)
        ),
    ]


async def read_utf8_beginning_and_log_access(
    ctx: Context, blob: StoredBlob, max_bytes: int
) -> str | None:
    """Return the first bytes of the content as text; None if they are no UTF-8 text.

    Raises Forbidden if the viewer is no ROOT, and CorruptBlob if the bytes are damaged.
    """
    require_text_limit(max_bytes)
    facts = await ctx.load(log_blob_accesses_and_load_facts, BlobAccess(blob, TEXT_FIELD))
    size = content_size(blob, facts)
    end = min(size, max_bytes)
    ctx.charge_bytes(end)
    content = b""
    async with aclosing(stream_content(ctx, blob, facts, 0, end)) as chunks:
        async for chunk in chunks:
            content += chunk
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=end == size)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def content_size(blob: StoredBlob, facts: BlobFacts) -> int:
    """Return the number of bytes that can be read of an object."""
    return blob.size if facts.content_size is None else facts.content_size


async def stream_content(
    ctx: Context, blob: StoredBlob, facts: BlobFacts, start: int, end: int
) -> AsyncGenerator[bytes]:
    """Yield the content of an object from `start` to `end`, decompressed if a row names it.

    Raises NotFound if the object was deleted, and CorruptBlob if the bytes of a row are damaged.
    """
    if facts.row is not None:
        store = ctx.environment.object_store
        async with aclosing(blob_reader.stream_content(store, facts.row, start, end)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    try:
        async with aclosing(require_store(ctx, blob.store).stream(blob.path, start, end)) as chunks:
            async for chunk in chunks:
                yield chunk
    except KeyError:
        raise NotFound(blob.path, path=["path"], noun="Blob") from None


async def require_intact_content(ctx: Context, facts: BlobFacts) -> None:
    """Raise CorruptBlob if the bytes of a row are lost or damaged."""
    if facts.row is not None:
        await require_intact_blob(ctx.environment.object_store, facts.row)


async def read_content_digest_if_known(ctx: Context, blob: StoredBlob) -> str | None:
    """Return the SHA-256 of the content in hex; None if it is unknown.

    The name of an object contains it. Of an object below `admin/` the bytes are read.
    """
    if not blob.is_written_by_administrators:
        return digest_in_name_or_none(blob.path)
    ctx.charge_bytes(blob.size)
    digest = hashlib.sha256()
    async with aclosing(stream_content(ctx, blob, BlobFacts(), 0, blob.size)) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()
