"""Upload and download of stored files, and of files shared by a link."""

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls, graphql_request
from graph.http.byte_responses import FileBytes, ServedFile, serve_file
from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import client_ip_address
from graph.http.upload_body import (  # fmt: skip
    UploadService,
    acquire_user_upload_slot,
    authenticate_download_and_choose_caching,
    authenticated_context,
    receive_file_into_spool,
    require_raw_body_and_return_size,
    require_upload_disk_space,
    require_upload_size_within,
)
from graph.types import global_ids
from mail.smtp.spool_file import SpoolFile
from mail.storage.blobs import blob_reader
from mail.storage.blobs.damage_check import require_intact_blob
from models.errors import StaleObject, require_found
from models.store.columns import ColumnRow
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.files import shares, signed_urls, stored_files
from resolvers.files.uploads import ReceivedFile
from resolvers.messages.content_access import require_readable_row
from resolvers.viewer import Viewer

_STRONG_ETAG = re.compile(r'"([0-9a-f]{64})"')
BASIC_CHALLENGE = {"WWW-Authenticate": 'Basic realm="share", charset="UTF-8"'}


async def serve_or_store_file(service: UploadService, request: Request) -> Response:
    """Answer GET with a file of the viewer (any file for ROOT), POST by storing a new file."""
    return await (
        _authorize_and_store_body_as_file
        if request.method == "POST"
        else _authorize_and_serve_stored_file
    )(service, request)


async def _authorize_and_serve_stored_file(service: UploadService, request: Request) -> Response:
    key = global_ids.decode_path_id("File", request.path_params["name"])
    ctx, caching = await authenticate_download_and_choose_caching(
        service, request, download_urls.file_path(key)
    )
    row: ColumnRow = require_found(
        await ctx.load(stored_files.load_visible_files_or_withhold_content, key), str(key)
    )
    require_readable_row(ctx, row)

    async def open_file() -> FileBytes:
        return _file_bytes_of_blob(ctx, await stored_files.touch_file_and_read_blob(ctx, row))

    return await serve_file(request, _file_served_as_attachment(row, open_file, caching))


async def _authorize_and_store_body_as_file(service: UploadService, request: Request) -> Response:
    ctx = await authenticated_context(service, request)
    content_type = request.headers.get("content-type", "")
    name, kind = stored_files.name_and_type_from_headers(
        service.environment, request.path_params["name"], content_type
    )
    async with _request_body_received_into_file(
        service, request, stored_files.require_writing_owner_id(ctx)
    ) as received:
        key = await stored_files.store_received_file(
            ctx, replace(received, filename=name, content_type=kind)
        )
    path = download_urls.file_path(key)
    url = signed_urls.absolute_url(service.environment, path, str(request.base_url))
    facts = {"id": global_ids.encode("File", key), "filename": name, "contentType": kind}
    headers = {"Cache-Control": "no-store", "Location": url}
    return Response(graphql_request.encode_json(facts), 201, headers, "application/json")


@asynccontextmanager
async def _request_body_received_into_file(
    service: UploadService, request: Request, user_id: int
) -> AsyncGenerator[ReceivedFile]:
    """Receive the body of a request into a file that exists inside the block."""
    size = require_raw_body_and_return_size(request.headers)
    require_upload_size_within(size, service.environment.options.upload_max_size)
    with (
        require_upload_disk_space(service, size),
        acquire_user_upload_slot(service, user_id),
        SpoolFile(service.spool, service.budget) as spool,
    ):
        yield await receive_file_into_spool(service, request, spool)


async def serve_or_replace_shared_file(service: UploadService, request: Request) -> Response:
    """Answer GET with the shared file of a link, PUT by replacing its content. No sign-in.

    Raises RequestRejected with status 401 for a missing or wrong password of the link.
    """
    ctx = Context(service.environment, Viewer(), client_ip=client_ip_address(request))
    row = await shares.require_share_by_token_and_count_forgery(ctx, request.path_params["token"])
    if not await shares.check_share_password_and_count_failure(
        ctx, row, _password_from_basic(request)
    ):
        message = "This link has a password: send it by Basic, under any name."
        raise RequestRejected(401, "UNAUTHENTICATED", message, BASIC_CHALLENGE)
    if request.method == "PUT":
        return await _replace_shared_file(service, request, row)

    async def open_shared_file() -> FileBytes:
        return _file_bytes_of_blob(ctx, await stored_files.read_blob_row(ctx, row.blob_id))

    served = _file_served_as_attachment(row, open_shared_file, "private, no-cache")
    return await serve_file(
        request, replace(served, count_access=partial(shares.count_access, ctx, row))
    )


async def _replace_shared_file(
    service: UploadService, request: Request, file_row: ColumnRow
) -> Response:
    shares.require_writable(file_row)
    if_match, expected_digest = request.headers.get("if-match"), None
    if if_match is not None and if_match.strip() != "*":
        tag = _STRONG_ETAG.fullmatch(if_match.strip())
        expected_digest = tag[1] if tag else ""
    owner = Viewer(file_row.user_id, Role.USER, frozenset({Scope.MAIL}))
    async with _request_body_received_into_file(service, request, file_row.user_id) as received:
        try:
            ctx = Context(service.environment, owner, client_ip=client_ip_address(request))
            await shares.replace_shared_file(
                ctx, file_row, received, expected_digest=expected_digest
            )
        except StaleObject:
            raise RequestRejected(412, "STALE", "The ETag differs from If-Match.") from None
    return Response(status_code=204, headers={"ETag": f'"{received.digest}"'})


def _password_from_basic(request: Request) -> str | None:
    """Return the password of Basic authentication (RFC 7617), with any username; None without."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None


def _file_bytes_of_blob(ctx: Context, blob: ColumnRow) -> FileBytes:
    def stream(start: int, end: int) -> AsyncGenerator[bytes]:
        return blob_reader.stream_content(ctx.environment.object_store, blob, start, end)

    async def check(_start: int, _end: int) -> None:
        await require_intact_blob(ctx.environment.object_store, blob)

    return FileBytes(blob.size, stream, check)


def _file_served_as_attachment(
    file_row: ColumnRow, open_body: Callable[[], Awaitable[FileBytes]], cache_control: str
) -> ServedFile:
    """Describe a file to serve: always as an attachment, never inline."""
    return ServedFile(
        file_row.digest,
        file_row.content_type,
        file_row.filename,
        open_body,
        cache_control=cache_control,
        is_inline_allowed=False,
    )
