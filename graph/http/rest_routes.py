"""The routes under /rest and /share: uploads, downloads and change streams."""

import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from graph.blobs import download as blob_download
from graph.http import (
    download_urls,
    file_download,
    graphql_request,
    message_upload,
    tus,
    zip_download,
)
from graph.http.byte_responses import FileBytes, ServedFile, serve_file, stream_file
from graph.http.discovery import user_route
from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import (
    client_ip_address,
    rejection_of_error,
    run_handler_and_convert_errors,
)
from graph.http.upload_body import (  # fmt: skip
    AuthenticateRequest,
    UploadLimits,
    UploadService,
    acquire_user_upload_slot,
    authenticate_download_and_choose_caching,
    authenticated_context,
    receive_file_into_spool,
    require_raw_body_and_return_size,
    require_upload_disk_space,
    require_upload_size_within,
)
from graph.subscriptions import sse_changes
from graph.types import global_ids
from mail.archives.archive_writer import ExportFormat, media_type
from mail.mime import ParsedPart
from mail.smtp.spool_file import ByteBudget, SpoolFile
from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, NotFound, RequestError, require_found
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from models.users.roles import Role, Scope, UserPermission
from resolvers.admin import legal_holds
from resolvers.context import Context
from resolvers.files import signed_urls, uploads
from resolvers.messages import content as message_content
from resolvers.messages import deleted_messages, message_bytes
from resolvers.spam import quarantine
from resolvers.transfer import exports
from resolvers.viewer import GuardRule

UPLOADS_PATH = "/rest/uploads"
ROUTE_PATH = "/rest/route"
UPDATES_PATH = "/rest/users/{id}/updates"
QUARANTINE_PATH = "/rest/quarantine/{id}"
NO_STORE = "no-store"  # of quarantined content, which may be harmful
STATUS_BY_CODE = {
    "UNAUTHENTICATED": 401,
    "SECOND_FACTOR_REQUIRED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "LIMIT_REACHED": 413,
    "QUOTA_EXCEEDED": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
}

RouteHandler = Callable[[UploadService, Request], Awaitable[Response]]


def rest_routes(
    environment: Environment,
    authenticate_request: AuthenticateRequest,
    spool: Path | None = None,
    limits: UploadLimits | None = None,
    subscription_server: sse_changes.SubscriptionServer | None = None,
) -> list[Route]:
    """Create the routes under /rest and /share. `spool` is the folder for uploads.

    `authenticate_request` gets headers and IP address. It raises Unauthenticated for a wrong
    credential and returns `Viewer()` without one. `subscription_server` serves change streams.
    """
    service = _create_upload_service_and_folder(
        environment, authenticate_request, spool, limits or UploadLimits()
    )
    return [
        Route(ROUTE_PATH, _route_endpoint(service, user_route.authorize_and_serve_node_of_user)),
        *_change_stream_routes(service, subscription_server),
        *_message_routes(service),
        *_quarantine_routes(service),
        *_export_and_blob_routes(service),
        *_stored_file_and_share_routes(service),
        *_upload_routes(service),
    ]


def _create_upload_service_and_folder(
    environment: Environment,
    authenticate_request: AuthenticateRequest,
    spool: Path | None,
    limits: UploadLimits,
) -> UploadService:
    """Create the service that the routes share, and the folder for uploads."""
    folder = spool or Path(tempfile.gettempdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # the memory budget limits all users together
    limiter = ConcurrencyLimiter(sys.maxsize, limits.max_per_user)
    return UploadService(
        environment, authenticate_request, folder, limits, ByteBudget(limits.memory_budget), limiter
    )


def _change_stream_routes(
    service: UploadService, subscription_server: sse_changes.SubscriptionServer | None
) -> list[Route]:
    if subscription_server is None:
        return []
    stream_changes = partial(sse_changes.authorize_and_stream_user_changes, subscription_server)
    return [Route(UPDATES_PATH, _route_endpoint(service, stream_changes))]


def _message_routes(service: UploadService) -> list[Route]:
    """Routes that serve messages and deleted messages, and the one that stores a message."""
    message = "/rest/messages/{id}"
    endpoint = partial(_route_endpoint, service)
    return [
        Route(f"{message}/message.eml", endpoint(_authorize_and_serve_message_source)),
        Route("/rest/archive/{id}/message.eml", endpoint(_serve_deleted_message)),
        Route(f"{message}/attachments/{{attachment}}", endpoint(_authorize_and_serve_attachment)),
        Route(
            f"{message}/attachments.zip", endpoint(zip_download.authorize_and_serve_attachments_zip)
        ),
        Route(f"{message}/parts/{{section}}", endpoint(_authorize_and_serve_mime_part)),
        Route(
            "/rest/mailboxes/{id}/messages",
            endpoint(message_upload.authorize_and_store_posted_message),
            methods=["POST"],
        ),
    ]


def _quarantine_routes(service: UploadService) -> list[Route]:
    endpoint = partial(_route_endpoint, service)
    return [
        Route(f"{QUARANTINE_PATH}/message.eml", endpoint(_serve_quarantined_message)),
        Route(
            f"{QUARANTINE_PATH}/attachments/{{attachment}}",
            endpoint(_serve_quarantined_attachment),
        ),
        Route(f"{QUARANTINE_PATH}/parts/{{section}}", endpoint(_serve_quarantined_part)),
    ]


def _export_and_blob_routes(service: UploadService) -> list[Route]:
    endpoint = partial(_route_endpoint, service)
    return [
        Route("/rest/users/{id}/export/{export}", endpoint(_authorize_serve_and_log_user_export)),
        Route(
            "/rest/legal-holds/{id}/export.mbox",
            endpoint(_authorize_serve_and_log_legal_hold_export),
        ),
        Route(
            "/rest/blobs/{store}/{path:path}",
            endpoint(blob_download.authorize_and_serve_blob_logging_access),
        ),
    ]


def _stored_file_and_share_routes(service: UploadService) -> list[Route]:
    """Routes that serve and store the files of a user, also by the URL of a share."""
    endpoint = partial(_route_endpoint, service)
    return [
        Route(
            "/rest/files/{name}",
            endpoint(file_download.serve_or_store_file),
            methods=["GET", "POST"],
        ),
        Route(
            "/share/{token}",
            endpoint(file_download.serve_or_replace_shared_file),
            methods=["GET", "PUT"],
        ),
    ]


def _upload_routes(service: UploadService) -> list[Route]:
    """Routes for uploads in one request and in parts (tus)."""
    endpoint = partial(_route_endpoint, service, extra_headers=tus.TUS_HEADERS)
    return [
        Route(UPLOADS_PATH, endpoint(_store_upload_or_begin_tus), methods=["POST", "OPTIONS"]),
        Route(
            f"{UPLOADS_PATH}/{{id}}",
            endpoint(tus.answer_request_to_existing_upload),
            methods=["HEAD", "PATCH", "DELETE", "POST", "OPTIONS"],
        ),
    ]


def _route_endpoint(
    service: UploadService,
    handler: RouteHandler,
    extra_headers: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        response = await run_handler_and_convert_errors(
            request,
            service.environment,
            partial(handler, service),
            endpoint="rest",
            error_response=_response_of_expected_error,
            rejection_response=_rejection_response,
        )
        response.headers.update(extra_headers)
        return response

    return endpoint


def _response_of_expected_error(error: Exception) -> Response | None:
    if isinstance(error, RequestError):
        return _rejection_response(rejection_of_error(error, STATUS_BY_CODE))
    return None


def _rejection_response(rejection: RequestRejected) -> Response:
    headers = {"Cache-Control": "no-store", **rejection.headers}
    body = graphql_request.encode_json(rejection.graphql_payload)
    return rejection.response_class(body, rejection.status, headers, graphql_request.JSON)


def _message_id_of_path(request: Request) -> int:
    return global_ids.decode_path_id("Message", request.path_params["id"])


async def _authorize_and_serve_message_source(service: UploadService, request: Request) -> Response:
    """Serve a whole message, byte for byte."""
    key = _message_id_of_path(request)
    message, caching = await _authorize_and_load_message_download(
        service, request, key, download_urls.message_source_path(key)
    )
    return await _serve_whole_message(request, message, caching)


async def _serve_deleted_message(service: UploadService, request: Request) -> Response:
    """Serve a whole deleted message, byte for byte, while it can be restored."""
    key = global_ids.decode_path_id("DeletedMessage", request.path_params["id"])
    ctx, caching = await authenticate_download_and_choose_caching(
        service, request, download_urls.deleted_message_path(key)
    )
    require_found(await ctx.load(deleted_messages.load_visible_by_ids, key))
    return await _serve_whole_message(
        request, require_found(await message_content.load_stored_message(ctx, key)), caching
    )


async def _serve_quarantined_message(service: UploadService, request: Request) -> Response:
    """Serve a whole quarantined message, byte for byte, and log the read."""
    return await _serve_whole_message(
        request,
        await _authorize_load_and_log_quarantined_message(service, request),
        NO_STORE,
        is_inline_allowed=False,
    )


async def _serve_quarantined_attachment(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of an attachment of a quarantined message, and log the read."""
    text = request.path_params["attachment"]
    message = await _authorize_load_and_log_quarantined_message(
        service, request, "attachments", text
    )
    try:
        message_id, index = download_urls.parse_message_id_and_attachment_number(text)
    except InvalidInput:
        raise NotFound(text) from None
    if message_id != message.row.id:
        raise NotFound(text)
    part = require_found(message_bytes.find_attachment_part(message, index))
    attachment = message.row.attachments[index]
    name = attachment["filename"] or zip_download.default_part_filename(part)
    tag = attachment["sha256"]
    served = _served_mime_part(message, part, name=name, etag=tag, cache_control=NO_STORE)
    return await serve_file(request, replace(served, is_inline_allowed=False))


async def _serve_quarantined_part(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of a MIME part of a quarantined message, and log the read."""
    section = request.path_params["section"]
    message = await _authorize_load_and_log_quarantined_message(service, request, "parts", section)
    part = require_found(message_bytes.find_part_by_section(message, section))
    tag = f"{message.row.sha256}.{message_bytes.section_of_part(part)}"
    name = part.filename or zip_download.default_part_filename(part)
    served = _served_mime_part(message, part, name=name, etag=tag, cache_control=NO_STORE)
    return await serve_file(request, replace(served, is_inline_allowed=False))


async def _authorize_load_and_log_quarantined_message(
    service: UploadService, request: Request, *subpath: str
) -> StoredMessage:
    """Load a quarantined message if the viewer, or the signer of the URL, may read it.

    Raises NotFound, Unauthenticated or Forbidden.
    """
    key = global_ids.decode_path_id("QuarantineItem", request.path_params["id"])
    client_ip = client_ip_address(request)
    if "sig" in request.query_params:
        path = download_urls.quarantined_message_path(key, *subpath)
        viewer = await signed_urls.signer_of_signed_path(
            service.environment, path, request.query_params, ip=client_ip
        )
    else:
        viewer = await service.authenticate_request(request.headers, client_ip)
    permission = UserPermission.QUARANTINE_ATTACHMENTS
    viewer.require(GuardRule(scope=Scope.READ, user_permission=permission))
    ctx = Context(service.environment, viewer, client_ip=client_ip)
    return require_found(await ctx.load(quarantine.load_visible_messages_and_log_reads, key))


async def _authorize_serve_and_log_legal_hold_export(
    service: UploadService, request: Request
) -> Response:
    """Serve the copies of a legal hold as an mbox file and record the access."""
    key = global_ids.decode_path_id("LegalHold", request.path_params["id"])
    path, client_ip = download_urls.legal_hold_path(key), client_ip_address(request)
    if "sig" in request.query_params:
        viewer = await signed_urls.signer_of_signed_path(
            service.environment, path, request.query_params, ip=client_ip
        )
    else:
        viewer = await service.authenticate_request(request.headers, client_ip)
    viewer.require(GuardRule(role=Role.ADMIN, scope=Scope.READ))
    ctx = Context(service.environment, viewer, client_ip=client_ip)
    chunks = await legal_holds.export_mbox_and_log_access(
        ctx, key, verifies_copies=request.method != "HEAD"
    )
    return stream_file(
        request, "application/mbox", f"{global_ids.encode('LegalHold', key)}.mbox", chunks
    )


async def _authorize_serve_and_log_user_export(
    service: UploadService, request: Request
) -> Response:
    """Serve a finished account export as a file."""
    user = global_ids.decode_path_id("User", request.path_params["id"])
    key = global_ids.decode_path_id("UserExport", request.path_params["export"])
    ctx, caching = await authenticate_download_and_choose_caching(
        service, request, download_urls.export_path(user, key)
    )
    if "sig" in request.query_params:  # the signer was allowed to read the export
        scopes = ctx.viewer.scopes | {Scope.READ}
        ctx = replace(ctx, viewer=replace(ctx.viewer, scopes=scopes))
    export = await exports.open_finished_export_and_log_access(ctx, user, key)
    kind = media_type(ExportFormat(export.export.format))

    async def open_export() -> FileBytes:
        return FileBytes(export.size, export.stream_bytes, export.require_undamaged_within_budget)

    tag = f"{global_ids.encode('UserExport', key)}.{export.size}"
    served = ServedFile(
        tag,
        kind,
        export.export.filename,
        open_export,
        cache_control=caching,
        is_inline_allowed=False,
    )
    return await serve_file(request, served)


async def _serve_whole_message(
    request: Request, message: StoredMessage, cache_control: str, *, is_inline_allowed: bool = True
) -> Response:
    async def open_message() -> FileBytes:
        return FileBytes(message.size, message.stream_raw, message.require_intact)

    name = f"{message.row.subject.strip() or 'message'}.eml"
    kind, tag = "message/rfc822", message.row.sha256
    served = ServedFile(
        tag,
        kind,
        name,
        open_message,
        cache_control=cache_control,
        is_inline_allowed=is_inline_allowed,
    )
    return await serve_file(request, served)


async def _authorize_and_serve_attachment(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of an attachment."""
    key, text = _message_id_of_path(request), request.path_params["attachment"]
    try:
        message_id, index = download_urls.parse_message_id_and_attachment_number(text)
    except InvalidInput:
        raise NotFound(text) from None
    if message_id != key:
        raise NotFound(text)
    message, caching = await _authorize_and_load_message_download(
        service, request, key, download_urls.attachment_download_path(key, index)
    )
    part = require_found(message_bytes.find_attachment_part(message, index))
    attachment = message.row.attachments[index]
    name = attachment["filename"] or zip_download.default_part_filename(part)
    tag = attachment["sha256"]
    served = _served_mime_part(message, part, name=name, etag=tag, cache_control=caching)
    return await serve_file(request, served)


async def _authorize_and_serve_mime_part(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of any part."""
    key, section = _message_id_of_path(request), request.path_params["section"]
    message, caching = await _authorize_and_load_message_download(
        service, request, key, download_urls.mime_part_path(key, section)
    )
    part = require_found(message_bytes.find_part_by_section(message, section))
    tag = f"{message.row.sha256}.{message_bytes.section_of_part(part)}"
    name = part.filename or zip_download.default_part_filename(part)
    served = _served_mime_part(message, part, name=name, etag=tag, cache_control=caching)
    return await serve_file(request, served)


def _served_mime_part(
    message: StoredMessage, part: ParsedPart, *, name: str, etag: str, cache_control: str
) -> ServedFile:
    async def open_part() -> FileBytes:
        content = await message.open_part(part)
        return FileBytes(content.size, content.stream, content.check)

    charset = part.params.get("charset")
    return ServedFile(etag, part.content_type, name, open_part, charset, cache_control)


class _MessageDownload(NamedTuple):
    """A message that the caller may read, and the Cache-Control value of the response."""

    message: StoredMessage
    cache_control: str


async def _authorize_and_load_message_download(
    service: UploadService, request: Request, message_id: int, path: str
) -> _MessageDownload:
    """Authenticate the request, and load a message that the viewer may read.

    Raises NotFound, also for a deleted message, Unauthenticated or Forbidden.
    """
    ctx, caching = await authenticate_download_and_choose_caching(service, request, path)
    message = await message_content.load_stored_message_unless_deleted(ctx, message_id)
    return _MessageDownload(require_found(message), caching)


async def _store_upload_or_begin_tus(service: UploadService, request: Request) -> Response:
    if request.method == "OPTIONS":
        return tus.serve_capabilities(service)
    return await (
        tus.create_upload_and_append_body
        if tus.is_tus_request(request.headers)
        else _authorize_and_store_upload
    )(service, request)


async def _authorize_and_store_upload(service: UploadService, request: Request) -> Response:
    """Store the body as an upload for a later mutation, or nothing if the client disconnects."""
    ctx = await authenticated_context(service, request)
    size = require_raw_body_and_return_size(request.headers)
    require_upload_size_within(size, service.environment.options.upload_max_size)
    await uploads.require_upload_allowed(ctx, size)
    with (
        require_upload_disk_space(service, size),
        acquire_user_upload_slot(service, ctx.viewer.user_id),
        SpoolFile(service.spool, service.budget) as spool,
    ):
        row = await uploads.store_upload(
            ctx, await receive_file_into_spool(service, request, spool)
        )
    headers = {"Cache-Control": "no-store", "Location": tus.upload_url(service, request, row.id)}
    return Response(
        graphql_request.encode_json(tus.upload_as_json_members(row)),
        201,
        headers,
        "application/json",
    )
