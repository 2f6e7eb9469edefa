"""Resumable uploads by the tus protocol 1.0.0 (https://tus.io).

Core and the extensions creation, creation-with-upload, expiration and termination.
"""

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import Response

from graph.http import graphql_request
from graph.http.graphql_request import RequestRejected
from graph.http.upload_body import (  # fmt: skip
    CONNECTION_CLOSE,
    BodyFlow,
    UploadService,
    acquire_user_upload_slot,
    authenticated_context,
    integer_header_or_none,
    require_raw_body_and_return_size,
    require_upload_disk_space,
    require_upload_size_within,
    stream_body_with_idle_timeout,
)
from graph.types import global_ids
from mail.files import resumable_file, upload_parts
from mail.files.resumable_file import FileInUseError, ResumableFile, UploadBytesLostError
from mail.mime.header_parameters import first_filename
from mail.smtp.spool_file import MAX_IN_MEMORY, OutOfSpoolSpace, free_disk_bytes
from mail.storage.blobs.compression import content_digest
from models.errors import NotFound
from models.store.columns import ColumnRow
from models.store.outages import StorageUnavailable
from resolvers.context import Context
from resolvers.files import resumable_uploads, signed_urls, uploads
from resolvers.files.resumable_uploads import (
    AnnouncedUpload,
    OffsetMoved,
    UploadProgress,
    WholeUpload,
)

log = logging.getLogger(__name__)

TUS_VERSION = "1.0.0"
TUS_HEADERS = {"Tus-Resumable": TUS_VERSION}
TUS_EXTENSIONS = "creation,creation-with-upload,expiration,termination"
OFFSET_MEDIA_TYPE = "application/offset+octet-stream"
METHOD_OVERRIDE_HEADER = "x-http-method-override"  # for clients that can only send GET and POST
MAX_METADATA_LENGTH = 4096  # characters
METHODS = "HEAD, PATCH, DELETE, OPTIONS"

_METADATA_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,100}", re.ASCII)


def is_tus_request(headers: Mapping[str, str]) -> bool:
    """True if a POST announces a resumable upload and doesn't contain the whole file."""
    return "tus-resumable" in headers or "upload-length" in headers


def upload_url(service: UploadService, request: Request, upload_id: int) -> str:
    """Return the URL of an upload; only its path if no public URL is configured."""
    path = f"/rest/uploads/{global_ids.encode('Upload', upload_id)}"
    return signed_urls.absolute_url(service.environment, path, request.scope.get("root_path", ""))


def upload_as_json_members(upload_row: ColumnRow) -> dict[str, object]:
    """Return the JSON members that describe an upload."""
    facts = {
        "id": global_ids.encode("Upload", upload_row.id),
        "size": upload_row.size,
        "sha256": upload_row.digest,
        "expiresAt": upload_row.expires_at.isoformat().replace("+00:00", "Z"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def serve_capabilities(service: UploadService) -> Response:
    """Answer OPTIONS with the protocol version, extensions and size limit, without sign-in."""
    headers = {
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": TUS_EXTENSIONS,
        "Tus-Max-Size": str(service.environment.options.upload_max_size),
    }
    return Response(status_code=204, headers=headers)


async def create_upload_and_append_body(service: UploadService, request: Request) -> Response:
    """Answer POST: create an upload with its URL and store the bytes in the body, if any."""
    _require_tus_version(request.headers)
    ctx = await authenticated_context(service, request)
    uploads.require_upload_scope_and_owner_id(ctx)
    announced = _parse_announced_upload(
        request.headers, service.environment.options.upload_max_size
    )
    has_body = _media_type(request.headers) == OFFSET_MEDIA_TYPE
    if require_raw_body_and_return_size(request.headers) and not has_body:
        raise _unsupported_media_type()
    with require_upload_disk_space(service, announced.size):
        row = await resumable_uploads.create_upload(ctx, announced)
        try:
            if not row.size:
                row = await resumable_uploads.complete_upload(
                    ctx, row.id, WholeUpload(b"", content_digest(b""))
                )
            elif has_body:
                row = await _append_body_and_complete_if_whole(service, ctx, request, row.id, 0)
        except BaseException:  # the client doesn't know its URL
            with suppress(NotFound):
                await _delete_upload_and_file(service, ctx, row.id)
            raise
    headers = {**_tus_headers_of_upload(row), "Location": upload_url(service, request, row.id)}
    return Response(
        graphql_request.encode_json(upload_as_json_members(row)), 201, headers, "application/json"
    )


async def answer_request_to_existing_upload(service: UploadService, request: Request) -> Response:
    """Answer HEAD, PATCH, DELETE and OPTIONS for one upload."""
    method = request.headers.get(METHOD_OVERRIDE_HEADER, request.method).upper()
    if method == "OPTIONS":
        return serve_capabilities(service)
    answer = UPLOAD_METHODS.get(method)
    if answer is None:
        message = f"Only {METHODS} are answered here."
        raise RequestRejected(
            405, "BAD_USER_INPUT", message, {"Allow": METHODS, **CONNECTION_CLOSE}
        )
    _require_tus_version(request.headers)
    ctx = await authenticated_context(service, request)
    key = global_ids.decode_path_id("Upload", request.path_params["id"])
    return await answer(
        service, ctx, request, await _require_upload_with_all_bytes(service, ctx, key)
    )


async def _require_upload_with_all_bytes(
    service: UploadService, ctx: Context, upload_id: int
) -> ColumnRow:
    """Return the upload's row. Raises NotFound if acknowledged bytes are missing."""
    row = await resumable_uploads.read_own_upload_row(ctx, upload_id)
    if _lacks_bytes(service, row):
        # another request may have completed it
        row = await resumable_uploads.read_own_upload_row(ctx, upload_id)
        if _lacks_bytes(service, row):
            raise _lost_bytes_error(row.id, "The file is shorter.")
    return row


def _lacks_bytes(service: UploadService, upload_row: ColumnRow) -> bool:
    if upload_row.blob_name is not None or upload_parts.are_parts_shared(service.environment):
        return False
    return bool(resumable_file.file_size(service.spool, upload_row.id) < upload_row.received)


async def _serve_head(
    _service: UploadService, _ctx: Context, _request: Request, upload_row: ColumnRow
) -> Response:
    return Response(headers=_tus_headers_of_upload(upload_row))


async def _append_to_upload(
    service: UploadService, ctx: Context, request: Request, upload_row: ColumnRow
) -> Response:
    if _media_type(request.headers) != OFFSET_MEDIA_TYPE:
        raise _unsupported_media_type()
    offset = integer_header_or_none(request.headers, "upload-offset")
    if offset is None:
        raise graphql_request.bad_request("Upload-Offset is missing.")
    require_raw_body_and_return_size(request.headers)
    with require_upload_disk_space(service, _missing_disk_bytes(service, upload_row)):
        upload_row = await _append_body_and_complete_if_whole(
            service, ctx, request, upload_row.id, offset
        )
    return Response(status_code=204, headers=_tus_headers_of_upload(upload_row))


def _missing_disk_bytes(service: UploadService, upload_row: ColumnRow) -> int:
    """Return the bytes of disk space that the rest of an upload needs."""
    if upload_row.blob_name is not None:
        return 0
    return max(int(upload_row.size) - resumable_file.disk_use(service.spool, upload_row.id), 0)


async def _cancel_upload(
    service: UploadService, ctx: Context, _request: Request, upload_row: ColumnRow
) -> Response:
    await _delete_upload_and_file(service, ctx, upload_row.id)
    return Response(status_code=204)


UploadMethod = Callable[[UploadService, Context, Request, ColumnRow], Awaitable[Response]]
UPLOAD_METHODS: dict[str, UploadMethod] = {
    "HEAD": _serve_head,
    "PATCH": _append_to_upload,
    "DELETE": _cancel_upload,
}


async def _delete_upload_and_file(service: UploadService, ctx: Context, upload_id: int) -> None:
    """Delete an upload and its file. A request that still sends to it gets NotFound."""
    await resumable_uploads.delete_upload(ctx, upload_id)
    await asyncio.to_thread(resumable_file.remove_file, service.spool, upload_id)


async def _append_body_and_complete_if_whole(
    service: UploadService, ctx: Context, request: Request, upload_id: int, offset: int
) -> ColumnRow:
    """Append the body at this offset and return the upload's row.

    Bytes of a body that breaks off are kept; HEAD returns the offset. Raises RequestRejected if
    the offset is wrong, the body is too long or another request sends to the upload.
    """
    with (
        acquire_user_upload_slot(service, ctx.viewer.user_id),
        _lock_upload_file_or_hurry_holder(service, upload_id) as (file, flow),
    ):
        # again, since it can't change from here on
        row = await resumable_uploads.read_own_upload_row(ctx, upload_id)
        is_complete = row.blob_name is not None
        if is_complete:
            resumable_file.remove_file(service.spool, upload_id)  # the lock has created it
        if offset != resumable_uploads.next_offset(row):
            raise _wrong_offset(resumable_uploads.next_offset(row))
        bytes_left = row.size - offset
        if require_raw_body_and_return_size(request.headers) > bytes_left:
            raise _body_too_long(bytes_left)
        await _resume_upload_file_at_received_offset(service, file, row)
        taking = UploadTransfer(
            service, ctx, file, row.id, 0 if is_complete else row.size, offset, offset
        )
        try:
            await _receive_and_acknowledge_body(taking, request, flow)
            if is_complete or file.size < row.size:
                return await resumable_uploads.read_own_upload_row(ctx, upload_id)
            return await _complete_upload(taking)
        except OffsetMoved as moved:  # by another server
            raise _wrong_offset(moved.offset) from None


async def _resume_upload_file_at_received_offset(
    service: UploadService, file: ResumableFile, upload_row: ColumnRow
) -> None:
    """Continue the file at the upload's offset. Raises NotFound if its bytes are lost."""
    received = 0 if upload_row.blob_name is not None else upload_row.received
    if upload_parts.are_parts_shared(service.environment):
        await asyncio.to_thread(file.resume_at_allowing_missing_bytes, received)
        return
    try:
        await asyncio.to_thread(file.truncate_and_resume_at, received)
    except UploadBytesLostError as problem:
        raise _lost_bytes_error(upload_row.id, str(problem)) from None


async def _complete_upload(transfer: "UploadTransfer") -> ColumnRow:
    """Store the whole upload. If that fails, only the last byte has to be sent again."""
    environment, file = transfer.service.environment, transfer.file
    try:
        digest = await upload_parts.fetch_missing_bytes_and_hash(
            environment, file, transfer.upload_id, size=transfer.size, request_start=transfer.start
        )
        complete_upload = WholeUpload(file.path, digest, transfer.acknowledged)
        row = await resumable_uploads.complete_upload(
            transfer.ctx, transfer.upload_id, complete_upload
        )
    except UploadBytesLostError as problem:
        await resumable_uploads.require_offset(
            transfer.ctx, transfer.upload_id, transfer.acknowledged
        )
        raise _lost_bytes_error(transfer.upload_id, str(problem)) from None
    except (NotFound, OffsetMoved, StorageUnavailable):
        raise
    except Exception:
        await transfer.write_and_acknowledge_except_final_byte()
        raise
    await asyncio.to_thread(resumable_file.remove_file, transfer.service.spool, transfer.upload_id)
    return row


@contextmanager
def _lock_upload_file_or_hurry_holder(
    service: UploadService, upload_id: int
) -> Generator[tuple[ResumableFile, BodyFlow]]:
    """Lock the upload's file and yield it with the state of the body.

    Raises RequestRejected with status 423 if another request holds the lock. That request's idle
    timeout is then shortened.
    """
    try:
        with ResumableFile(service.spool, upload_id) as file:
            flow = service.flows[upload_id] = BodyFlow()
            try:
                yield file, flow
            except NotFound:  # it was deleted in the meantime
                resumable_file.remove_file(service.spool, upload_id)
                raise
            finally:
                del service.flows[upload_id]
    except FileInUseError:
        if holder := service.flows.get(upload_id):
            holder.shorten_idle_timeout(service.limits.yield_timeout)
        message = "Another request sends to this upload."
        raise RequestRejected(
            423, "CONFLICT", message, {"Retry-After": "1", **CONNECTION_CLOSE}
        ) from None


async def _receive_and_acknowledge_body(
    transfer: "UploadTransfer", request: Request, body_flow: BodyFlow
) -> None:
    desk, is_ended = transfer.service, False
    try:
        async with (
            asyncio.timeout(desk.limits.body_timeout),
            aclosing(stream_body_with_idle_timeout(desk, request, body_flow)) as body,
        ):
            async for chunk in body:
                await transfer.buffer_bytes_and_write_if_full(chunk)
        is_ended = True
    except TimeoutError:  # after a 4xx clients would give up
        message = "The body was not received in time: continue at the offset that HEAD returns."
        headers = {"Retry-After": "1", **CONNECTION_CLOSE}
        raise RequestRejected(503, "DEADLINE_EXCEEDED", message, headers) from None
    finally:
        if is_ended and transfer.is_whole and upload_parts.are_parts_shared(desk.environment):
            await transfer.write_to_file()  # no part is needed: the whole file is stored next
        else:
            await transfer.write_and_acknowledge_except_final_byte()


@dataclass(slots=True)
class UploadTransfer:
    """The transfer of a body into an upload's file, with the acknowledged offset."""

    service: UploadService
    ctx: Context
    file: ResumableFile
    upload_id: int
    size: int  # of the whole upload
    start: int  # offset of this request's first byte
    acknowledged: int  # offset that is stored durably
    unwritten: bytearray = field(default_factory=bytearray)
    has_failed: bool = False  # an acknowledgement failed and is not repeated

    @property
    def is_whole(self) -> bool:
        """True if all bytes of an unfinished upload are received."""
        return self.file.size + len(self.unwritten) == self.size > 0

    async def buffer_bytes_and_write_if_full(self, chunk: bytes) -> None:
        """Add received bytes.

        Raises OutOfSpoolSpace if the disk is full, RequestRejected for more bytes than announced.
        """
        bytes_left = self.size - self.file.size - len(self.unwritten)
        if len(chunk) > bytes_left:
            raise _body_too_long(bytes_left)
        self.service.budget.reserve(len(chunk))
        self.unwritten += chunk
        if len(self.unwritten) >= MAX_IN_MEMORY:
            await self.write_to_file()
        if self.file.size - self.acknowledged >= self.service.limits.checkpoint_bytes:
            await self.write_and_acknowledge_except_final_byte()
            if free_disk_bytes(self.service.spool) < self.service.limits.disk_reserve:
                raise OutOfSpoolSpace

    async def write_and_acknowledge_except_final_byte(self) -> None:
        """Write all bytes durably, then acknowledge them.

        The last byte is only acknowledged when the whole upload is stored, since a client sends
        no more requests after it.
        """
        await self.write_to_file()
        stored_size = min(self.file.size, self.size - 1)
        if stored_size > self.acknowledged and not self.has_failed:
            self.has_failed = True
            await self._persist_bytes_and_acknowledge(stored_size)
            self.acknowledged, self.has_failed = stored_size, False

    async def _persist_bytes_and_acknowledge(self, offset: int) -> None:
        environment = self.service.environment
        if upload_parts.are_parts_shared(environment):
            async with self.service.part_slots:
                part = await upload_parts.store_part(
                    environment, self.file, self.acknowledged, offset
                )
            await resumable_uploads.store_part_or_delete_object(self.ctx, self.upload_id, part)
        else:
            await asyncio.to_thread(self.file.sync)
            progress = UploadProgress(self.acknowledged, offset)
            await resumable_uploads.advance_upload_offset(self.ctx, self.upload_id, progress)

    async def write_to_file(self) -> None:
        """Write the buffered bytes to the file."""
        part, self.unwritten = self.unwritten, bytearray()
        try:
            await asyncio.to_thread(self.file.append, part)
        finally:
            self.service.budget.release(len(part))


def _tus_headers_of_upload(upload_row: ColumnRow) -> dict[str, str]:
    headers = {
        "Cache-Control": "no-store",
        "Upload-Offset": str(resumable_uploads.next_offset(upload_row)),
        "Upload-Length": str(upload_row.size),
        "Upload-Expires": _http_date(upload_row.expires_at),
    }
    if upload_row.client_metadata:
        headers["Upload-Metadata"] = upload_row.client_metadata
    if upload_row.digest:  # RFC 9530
        digest = base64.b64encode(bytes.fromhex(upload_row.digest)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    return headers


def _http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def _require_tus_version(headers: Mapping[str, str]) -> None:
    if headers.get("tus-resumable") != TUS_VERSION:
        message = f"Tus-Resumable must be {TUS_VERSION}."
        raise RequestRejected(
            412, "BAD_USER_INPUT", message, {"Tus-Version": TUS_VERSION, **CONNECTION_CLOSE}
        )


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse_announced_upload(headers: Mapping[str, str], max_size: int) -> AnnouncedUpload:
    size = integer_header_or_none(headers, "upload-length")
    if size is None or "upload-defer-length" in headers:
        raise graphql_request.bad_request("Upload-Length must say how many bytes will come.")
    if "upload-concat" in headers:
        raise graphql_request.bad_request("Upload-Concat is not supported.")
    require_upload_size_within(size, max_size)
    metadata_header = headers.get("upload-metadata", "").strip()
    meta = parse_metadata(metadata_header)
    kind = uploads.media_type_or_default(meta.get("filetype") or meta.get("type") or "")
    name = uploads.filename_from_path_or_none(
        first_filename(meta.get("filename"), meta.get("name")) or ""
    )
    return AnnouncedUpload(size, kind, name, metadata_header or None)


def parse_metadata(text: str) -> dict[str, str]:
    """Parse Upload-Metadata: pairs of a key and, after a space, a value in base64.

    Raises RequestRejected if it is too long or malformed.
    """
    if len(text) > MAX_METADATA_LENGTH:
        raise graphql_request.bad_request(
            f"Upload-Metadata has at most {MAX_METADATA_LENGTH} characters."
        )
    metadata: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.strip().partition(" ")
        if not _METADATA_KEY.fullmatch(key) or key in metadata:
            raise graphql_request.bad_request("Upload-Metadata has a key that is none, or twice.")
        try:
            metadata[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            message = f"In Upload-Metadata, {key} has a value that is not UTF-8 in base64."
            raise graphql_request.bad_request(message) from None
    return metadata


def _unsupported_media_type() -> RequestRejected:
    headers = {"Accept-Patch": OFFSET_MEDIA_TYPE, **CONNECTION_CLOSE}
    return RequestRejected(415, "BAD_USER_INPUT", f"The body must be {OFFSET_MEDIA_TYPE}.", headers)


def _wrong_offset(offset: int) -> RequestRejected:
    headers = {"Upload-Offset": str(offset), "Cache-Control": "no-store", **CONNECTION_CLOSE}
    return RequestRejected(409, "STALE", f"The offset of the upload is {offset}.", headers)


def _body_too_long(missing_bytes: int) -> RequestRejected:
    return RequestRejected(
        413, "TOO_LARGE", f"The rest of the upload has {missing_bytes} bytes.", CONNECTION_CLOSE
    )


def _lost_bytes_error(upload_id: int, problem: str) -> NotFound:
    log.warning("Uploaded bytes are lost", extra={"upload": upload_id, "problem": problem})
    return NotFound(str(upload_id))
