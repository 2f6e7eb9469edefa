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
from graph.http.graphql_request import Rejected
from graph.http.upload_body import (  # fmt: skip
    CLOSED,
    Desk,
    Flow,
    admitted,
    check_size,
    declared,
    number,
    pieces,
    roomy,
    sending,
)
from graph.types import global_ids
from mail.files import resumable_file, upload_parts
from mail.files.resumable_file import Arriving, Busy, Lost
from mail.mime.header_parameters import filename_of
from mail.smtp.spool_file import MEMORY, NoRoom, room
from mail.storage.blobs.compression import digest_of
from models.errors import NotFound
from models.store.columns import Picked
from models.store.outages import StoreUnavailable
from resolvers.context import Context
from resolvers.files import resumable_uploads, signed_urls, uploads
from resolvers.files.resumable_uploads import Announced, OffsetMoved, Progress, WholeUpload

log = logging.getLogger(__name__)

VERSION = "1.0.0"
ALWAYS = {"Tus-Resumable": VERSION}
EXTENSIONS = "creation,creation-with-upload,expiration,termination"
KIND = "application/offset+octet-stream"
OVERRIDE = "x-http-method-override"  # for clients that can only send GET and POST
TOLD_MAX = 4096  # characters
METHODS = "HEAD, PATCH, DELETE, OPTIONS"

_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,100}", re.ASCII)


def wanted(headers: Mapping[str, str]) -> bool:
    """True if a POST announces a resumable upload and doesn't contain the whole file."""
    return "tus-resumable" in headers or "upload-length" in headers


def location(desk: Desk, request: Request, upload_id: int) -> str:
    """Return the URL of an upload; only its path if no public URL is configured."""
    path = f"/rest/uploads/{global_ids.encode('Upload', upload_id)}"
    return signed_urls.absolute(desk.world, path, request.scope.get("root_path", ""))


def facts(row: Picked) -> dict[str, object]:
    """Return the JSON members that describe an upload."""
    told = {
        "id": global_ids.encode("Upload", row.id),
        "size": row.size,
        "sha256": row.digest,
        "expiresAt": row.expires_at.isoformat().replace("+00:00", "Z"),
    }
    return {name: value for name, value in told.items() if value is not None}


def abilities(desk: Desk) -> Response:
    """Answer OPTIONS with the protocol version, extensions and size limit, without sign-in."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(desk.world.options.upload_max),
    }
    return Response(status_code=204, headers=headers)


async def create(desk: Desk, request: Request) -> Response:
    """Answer POST: create an upload with its URL and store the bytes in the body, if any."""
    _check_version(request.headers)
    ctx = await admitted(desk, request)
    uploads.permit(ctx)
    coming = _announced(request.headers, desk.world.options.upload_max)
    brings = _kind(request.headers) == KIND
    if declared(request.headers) and not brings:
        raise _unsupported()
    with roomy(desk, coming.size):
        row = await resumable_uploads.create(ctx, coming)
        try:
            if not row.size:
                row = await resumable_uploads.complete(
                    ctx, row.id, WholeUpload(b"", digest_of(b""))
                )
            elif brings:
                row = await _take(desk, ctx, request, row.id, 0)
        except BaseException:  # the client doesn't know its URL
            with suppress(NotFound):
                await _end(desk, ctx, row.id)
            raise
    headers = {**_state(row), "Location": location(desk, request, row.id)}
    return Response(graphql_request.encode(facts(row)), 201, headers, "application/json")


async def resource(desk: Desk, request: Request) -> Response:
    """Answer HEAD, PATCH, DELETE and OPTIONS for one upload."""
    method = request.headers.get(OVERRIDE, request.method).upper()
    if method == "OPTIONS":
        return abilities(desk)
    answer = ANSWERS.get(method)
    if answer is None:
        message = f"Only {METHODS} are answered here."
        raise Rejected(405, "BAD_USER_INPUT", message, {"Allow": METHODS, **CLOSED})
    _check_version(request.headers)
    ctx = await admitted(desk, request)
    key = global_ids.named("Upload", request.path_params["id"])
    return await answer(desk, ctx, request, await _found(desk, ctx, key))


async def _found(desk: Desk, ctx: Context, upload_id: int) -> Picked:
    """Return the upload's row. Raises NotFound if acknowledged bytes are missing."""
    row = await resumable_uploads.find(ctx, upload_id)
    if _lacks(desk, row):
        row = await resumable_uploads.find(ctx, upload_id)  # it may have been completed meanwhile
        if _lacks(desk, row):
            raise _lost(row.id, "the file is shorter")
    return row


def _lacks(desk: Desk, row: Picked) -> bool:
    if row.blob_name is not None or upload_parts.is_shared(desk.world):
        return False
    return bool(resumable_file.size_of(desk.spool, row.id) < row.received)


async def _head(_desk: Desk, _ctx: Context, _request: Request, row: Picked) -> Response:
    return Response(headers=_state(row))


async def _patch(desk: Desk, ctx: Context, request: Request, row: Picked) -> Response:
    if _kind(request.headers) != KIND:
        raise _unsupported()
    offset = number(request.headers, "upload-offset")
    if offset is None:
        raise graphql_request.bad("Upload-Offset is missing.")
    declared(request.headers)
    with roomy(desk, _disk_need(desk, row)):
        row = await _take(desk, ctx, request, row.id, offset)
    return Response(status_code=204, headers=_state(row))


def _disk_need(desk: Desk, row: Picked) -> int:
    """Return the bytes of disk space that the rest of an upload needs."""
    if row.blob_name is not None:
        return 0
    return max(int(row.size) - resumable_file.disk_use(desk.spool, row.id), 0)


async def _delete(desk: Desk, ctx: Context, _request: Request, row: Picked) -> Response:
    await _end(desk, ctx, row.id)
    return Response(status_code=204)


Answer = Callable[[Desk, Context, Request, Picked], Awaitable[Response]]
ANSWERS: dict[str, Answer] = {"HEAD": _head, "PATCH": _patch, "DELETE": _delete}


async def _end(desk: Desk, ctx: Context, upload_id: int) -> None:
    """Delete an upload and its file. A request that still sends to it gets NotFound."""
    await resumable_uploads.end(ctx, upload_id)
    await asyncio.to_thread(resumable_file.remove, desk.spool, upload_id)


async def _take(desk: Desk, ctx: Context, request: Request, upload_id: int, offset: int) -> Picked:
    """Append the body at this offset and return the upload's row.

    Bytes of a body that breaks off are kept; HEAD returns the offset. Raises RequestRejected if
    the offset is wrong, the body is too long or another request sends to the upload.
    """
    with sending(desk, ctx.viewer.user_id), _held(desk, upload_id) as (file, flow):
        row = await resumable_uploads.find(
            ctx, upload_id
        )  # again, since it can't change from here on
        whole = row.blob_name is not None
        if whole:
            resumable_file.remove(desk.spool, upload_id)  # the lock has created it
        if offset != resumable_uploads.offset(row):
            raise _elsewhere(resumable_uploads.offset(row))
        left = row.size - offset
        if declared(request.headers) > left:
            raise _too_long(left)
        await _open_at(desk, file, row)
        taking = Taking(desk, ctx, file, row.id, 0 if whole else row.size, offset, offset)
        try:
            await _receive(taking, request, flow)
            if whole or file.size < row.size:
                return await resumable_uploads.find(ctx, upload_id)
            return await _complete(taking)
        except OffsetMoved as moved:  # by another server
            raise _elsewhere(moved.offset) from None


async def _open_at(desk: Desk, file: Arriving, row: Picked) -> None:
    """Continue the file at the upload's offset. Raises NotFound if its bytes are lost."""
    received = 0 if row.blob_name is not None else row.received
    if upload_parts.is_shared(desk.world):
        await asyncio.to_thread(file.go_on_without, received)
        return
    try:
        await asyncio.to_thread(file.go_on, received)
    except Lost as problem:
        raise _lost(row.id, str(problem)) from None


async def _complete(taking: "Taking") -> Picked:
    """Store the whole upload. If that fails, only the last byte has to be sent again."""
    world, file = taking.desk.world, taking.file
    try:
        digest = await upload_parts.complete_file(
            world, file, taking.upload_id, size=taking.size, own_from=taking.start
        )
        whole = WholeUpload(file.path, digest, taking.promised)
        row = await resumable_uploads.complete(taking.ctx, taking.upload_id, whole)
    except Lost as problem:
        await resumable_uploads.raise_if_moved(taking.ctx, taking.upload_id, taking.promised)
        raise _lost(taking.upload_id, str(problem)) from None
    except (NotFound, OffsetMoved, StoreUnavailable):
        raise
    except Exception:
        await taking.settle()
        raise
    await asyncio.to_thread(resumable_file.remove, taking.desk.spool, taking.upload_id)
    return row


@contextmanager
def _held(desk: Desk, upload_id: int) -> Generator[tuple[Arriving, Flow]]:
    """Lock the upload's file and yield it with the state of the body.

    Raises RequestRejected with status 423 if another request holds the lock. That request's idle
    timeout is then shortened.
    """
    try:
        with Arriving(desk.spool, upload_id) as file:
            flow = desk.flows[upload_id] = Flow()
            try:
                yield file, flow
            except NotFound:  # it was deleted in the meantime
                resumable_file.remove(desk.spool, upload_id)
                raise
            finally:
                del desk.flows[upload_id]
    except Busy:
        if holder := desk.flows.get(upload_id):
            holder.hurry(desk.limits.yields)
        message = "Another request sends to this upload."
        raise Rejected(423, "CONFLICT", message, {"Retry-After": "1", **CLOSED}) from None


async def _receive(taking: "Taking", request: Request, flow: Flow) -> None:
    desk, is_ended = taking.desk, False
    try:
        async with (
            asyncio.timeout(desk.limits.longest),
            aclosing(pieces(desk, request, flow)) as body,
        ):
            async for piece in body:
                await taking.add(piece)
        is_ended = True
    except TimeoutError:  # after a 4xx clients would give up
        message = "The body did not come in time: go on where HEAD says."
        more = {"Retry-After": "1", **CLOSED}
        raise Rejected(503, "DEADLINE_EXCEEDED", message, more) from None
    finally:
        if is_ended and taking.is_whole and upload_parts.is_shared(desk.world):
            await taking.spill()  # no part is needed: the whole file is stored next
        else:
            await taking.settle()


@dataclass(slots=True)
class Taking:
    """The transfer of a body into an upload's file, with the acknowledged offset."""

    desk: Desk
    ctx: Context
    file: Arriving
    upload_id: int
    size: int  # of the whole upload
    start: int  # offset of this request's first byte
    promised: int  # offset that is stored durably
    part: bytearray = field(default_factory=bytearray)
    failed: bool = False  # an acknowledgement failed and is not repeated

    @property
    def is_whole(self) -> bool:
        """True if all bytes of an unfinished upload are received."""
        return self.file.size + len(self.part) == self.size > 0

    async def add(self, piece: bytes) -> None:
        """Add received bytes.

        Raises NoRoom if the disk is full, RequestRejected for more bytes than announced.
        """
        left = self.size - self.file.size - len(self.part)
        if len(piece) > left:
            raise _too_long(left)
        self.desk.budget.take(len(piece))
        self.part += piece
        if len(self.part) >= MEMORY:
            await self.spill()
        if self.file.size - self.promised >= self.desk.limits.checkpoint:
            await self.settle()
            if room(self.desk.spool) < self.desk.limits.disk_reserve:
                raise NoRoom

    async def settle(self) -> None:
        """Write all bytes durably, then acknowledge them.

        The last byte is only acknowledged when the whole upload is stored, since a client sends
        no more requests after it.
        """
        await self.spill()
        safe = min(self.file.size, self.size - 1)
        if safe > self.promised and not self.failed:
            self.failed = True
            await self._promise(safe)
            self.promised, self.failed = safe, False

    async def _promise(self, safe: int) -> None:
        world = self.desk.world
        if upload_parts.is_shared(world):
            async with self.desk.checkpoints:
                part = await upload_parts.store(world, self.file, self.promised, safe)
            await resumable_uploads.add_part(self.ctx, self.upload_id, part)
        else:
            await asyncio.to_thread(self.file.sync)
            progress = Progress(self.promised, safe)
            await resumable_uploads.note(self.ctx, self.upload_id, progress)

    async def spill(self) -> None:
        """Write the buffered bytes to the file."""
        part, self.part = self.part, bytearray()
        try:
            await asyncio.to_thread(self.file.append, part)
        finally:
            self.desk.budget.give(len(part))


def _state(row: Picked) -> dict[str, str]:
    headers = {
        "Cache-Control": "no-store",
        "Upload-Offset": str(resumable_uploads.offset(row)),
        "Upload-Length": str(row.size),
        "Upload-Expires": _date(row.expires_at),
    }
    if row.told:
        headers["Upload-Metadata"] = row.told
    if row.digest:  # RFC 9530
        digest = base64.b64encode(bytes.fromhex(row.digest)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    return headers


def _date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def _check_version(headers: Mapping[str, str]) -> None:
    if headers.get("tus-resumable") != VERSION:
        message = f"Tus-Resumable must be {VERSION}."
        raise Rejected(412, "BAD_USER_INPUT", message, {"Tus-Version": VERSION, **CLOSED})


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _announced(headers: Mapping[str, str], most: int) -> Announced:
    size = number(headers, "upload-length")
    if size is None or "upload-defer-length" in headers:
        raise graphql_request.bad("Upload-Length must say how many bytes will come.")
    if "upload-concat" in headers:
        raise graphql_request.bad("Upload-Concat is not supported.")
    check_size(size, most)
    told = headers.get("upload-metadata", "").strip()
    meta = metadata(told)
    kind = uploads.kind_of(meta.get("filetype") or meta.get("type") or "")
    name = uploads.name_of(filename_of(meta.get("filename"), meta.get("name")) or "")
    return Announced(size, kind, name, told or None)


def metadata(text: str) -> dict[str, str]:
    """Parse Upload-Metadata: pairs of a key and, after a space, a value in base64.

    Raises RequestRejected if it is too long or malformed.
    """
    if len(text) > TOLD_MAX:
        raise graphql_request.bad(f"Upload-Metadata has at most {TOLD_MAX} characters.")
    found: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in found:
            raise graphql_request.bad("Upload-Metadata has a key that is none, or twice.")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            message = f"In Upload-Metadata, {key} has a value that is not UTF-8 in base64."
            raise graphql_request.bad(message) from None
    return found


def _unsupported() -> Rejected:
    headers = {"Accept-Patch": KIND, **CLOSED}
    return Rejected(415, "BAD_USER_INPUT", f"The body must be {KIND}.", headers)


def _elsewhere(offset: int) -> Rejected:
    headers = {"Upload-Offset": str(offset), "Cache-Control": "no-store", **CLOSED}
    return Rejected(409, "STALE", f"The upload goes on at {offset}.", headers)


def _too_long(left: int) -> Rejected:
    return Rejected(413, "TOO_LARGE", f"The upload lacks {left} bytes, not more.", CLOSED)


def _lost(upload_id: int, problem: str) -> NotFound:
    log.warning("bytes of an upload are lost", extra={"upload": upload_id, "problem": problem})
    return NotFound(str(upload_id))
