"""The routes under /rest and /share: uploads, downloads and change streams."""

import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from graph.execution.telemetry import HTTP_RESPONSES
from graph.http import (
    download_urls,
    file_download,
    graphql_request,
    message_upload,
    tus,
    zip_download,
)
from graph.http.byte_responses import FileBytes, ServedFile, serve_file, stream_file
from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import (
    client_ip_address,
    log_request_failure,
    rejection_of_error,
    rejection_of_exception,
    request_id_from_headers,
)
from graph.http.upload_body import (  # fmt: skip
    AuthenticateRequest,
    UploadLimits,
    UploadService,
    announced_size_of_raw_body,
    authenticated_context,
    check_size,
    checked_disk_space,
    download_context_and_cache_control,
    limited_per_user,
    receive_file_into_spool,
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
from resolvers.context import Context, GuardRule
from resolvers.files import signed_urls, uploads
from resolvers.messages import content as message_content
from resolvers.messages import deleted_messages
from resolvers.spam import quarantine
from resolvers.transfer import exports

UPLOADS_PATH = "/rest/uploads"
UPDATES_PATH = "/rest/users/{id}/updates"
QUARANTINE_PATH = "/rest/quarantine/{id}"
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
NO_STORE = "no-store"  # of quarantined content, which may be harmful
STATUS_BY_CODE = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "LIMIT_REACHED": 413,
    "QUOTA_EXCEEDED": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
}
EXTENSION_BY_MEDIA_TYPE = {  # of files without a filename
    "text/plain": "txt",
    "text/html": "html",
    "text/calendar": "ics",
    "text/csv": "csv",
    "message/rfc822": "eml",
    "application/pdf": "pdf",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
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
    service = _create_upload_service(
        environment, authenticate_request, spool, limits or UploadLimits()
    )
    return [
        *_change_stream_routes(service, subscription_server),
        *_message_routes(service),
        *_quarantine_routes(service),
        *_export_routes(service),
        *_file_routes(service),
        *_upload_routes(service),
    ]


def _create_upload_service(
    environment: Environment,
    authenticate_request: AuthenticateRequest,
    spool: Path | None,
    limits: UploadLimits,
) -> UploadService:
    """Create the service that the routes share, and the folder for uploads."""
    folder = spool or Path(tempfile.gettempdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    limiter = ConcurrencyLimiter(
        sys.maxsize, limits.max_per_user
    )  # the memory budget limits all users together
    return UploadService(
        environment, authenticate_request, folder, limits, ByteBudget(limits.memory_budget), limiter
    )


def _change_stream_routes(
    service: UploadService, subscription_server: sse_changes.SubscriptionServer | None
) -> list[Route]:
    if subscription_server is None:
        return []
    stream_changes = partial(sse_changes.stream_changes, subscription_server)
    return [Route(UPDATES_PATH, _route_endpoint(service, stream_changes))]


def _message_routes(service: UploadService) -> list[Route]:
    """Routes that serve messages and deleted messages, and the one that stores a message."""
    message = "/rest/messages/{id}"
    endpoint = partial(_route_endpoint, service)
    return [
        Route(f"{message}/message.eml", endpoint(_serve_message)),
        Route("/rest/archive/{id}/message.eml", endpoint(_serve_deleted_message)),
        Route(f"{message}/attachments/{{attachment}}", endpoint(_serve_attachment)),
        Route(f"{message}/attachments.zip", endpoint(_serve_attachments_zip)),
        Route(f"{message}/parts/{{section}}", endpoint(_serve_part)),
        Route(
            "/rest/mailboxes/{id}/messages",
            endpoint(message_upload.store_posted_message),
            methods=["POST"],
        ),
    ]


def _quarantine_routes(service: UploadService) -> list[Route]:
    endpoint = partial(_route_endpoint, service)
    return [
        Route(f"{QUARANTINE_PATH}/message.eml", endpoint(_serve_quarantined_message)),
        Route(
            f"{QUARANTINE_PATH}/attachments/{{attachment}}", endpoint(_serve_quarantined_attachment)
        ),
        Route(f"{QUARANTINE_PATH}/parts/{{section}}", endpoint(_serve_quarantined_part)),
    ]


def _export_routes(service: UploadService) -> list[Route]:
    endpoint = partial(_route_endpoint, service)
    return [
        Route("/rest/users/{id}/export/{export}", endpoint(_serve_user_export)),
        Route("/rest/legal-holds/{id}/export.mbox", endpoint(_serve_legal_hold_export)),
    ]


def _file_routes(service: UploadService) -> list[Route]:
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
            endpoint(file_download.serve_or_store_shared_file),
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
            endpoint(tus.answer_upload_request),
            methods=["HEAD", "PATCH", "DELETE", "POST", "OPTIONS"],
        ),
    ]


def base_url(request: Request) -> str:
    """Return the base URL of a request, including the path that the app is mounted at."""
    return str(request.base_url).rstrip("/")


def _route_endpoint(
    service: UploadService,
    handler: RouteHandler,
    extra_headers: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        name = request_id_from_headers(request.headers, service.environment)
        try:
            response = await handler(service, request)
        except RequestRejected as refusal:
            response = _rejection_response(refusal)
        except RequestError as refusal:
            response = _rejection_response(rejection_of_error(refusal, STATUS_BY_CODE))
        except ClientDisconnect:
            response = Response(status_code=400)  # the client has disconnected
        except Exception as problem:  # noqa: BLE001 - the edge of a listener: logged once
            log_request_failure(problem, name, request.url.path)
            response = _rejection_response(rejection_of_exception(problem, name))
        response.headers.update({**SECURITY_HEADERS, **extra_headers, "X-Request-Id": name})
        HTTP_RESPONSES.add("rest", str(response.status_code))
        return response

    return endpoint


def _rejection_response(rejection: RequestRejected) -> Response:
    headers = {"Cache-Control": "no-store", **rejection.headers}
    body = graphql_request.encode_json(rejection.graphql_payload)
    return rejection.response_class(body, rejection.status, headers, graphql_request.JSON)


def _message_id_of_path(request: Request) -> int:
    return global_ids.decode_path_id("Message", request.path_params["id"])


async def _serve_message(service: UploadService, request: Request) -> Response:
    """Serve a whole message, byte for byte."""
    key = _message_id_of_path(request)
    message, caching = await _load_readable_message(
        service, request, key, download_urls.message_source_path(key)
    )
    return await _serve_whole_message(request, message, caching)


async def _serve_deleted_message(service: UploadService, request: Request) -> Response:
    """Serve a whole deleted message, byte for byte, while it can be restored."""
    key = global_ids.decode_path_id("DeletedMessage", request.path_params["id"])
    ctx, caching = await download_context_and_cache_control(
        service, request, download_urls.deleted_message_path(key)
    )
    require_found(await ctx.load(deleted_messages.load_visible_by_ids, key))
    return await _serve_whole_message(
        request, require_found(await message_content.load_stored_message(ctx, key)), caching
    )


async def _serve_quarantined_message(service: UploadService, request: Request) -> Response:
    """Serve a whole quarantined message, byte for byte."""
    return await _serve_whole_message(
        request,
        await _load_quarantined_message(service, request),
        NO_STORE,
        is_inline_allowed=False,
    )


async def _serve_quarantined_attachment(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of an attachment of a quarantined message."""
    text = request.path_params["attachment"]
    message = await _load_quarantined_message(service, request, "attachments", text)
    try:
        message_id, index = download_urls.parse_attachment_id(text)
    except InvalidInput:
        raise NotFound(text) from None
    if message_id != message.row.id:
        raise NotFound(text)
    part = require_found(message_content.attachment_part(message, index))
    attachment = message.row.attachments[index]
    name, tag = attachment["filename"] or _default_part_filename(part), attachment["sha256"]
    served = _served_part(message, part, name=name, tag=tag, caching=NO_STORE)
    return await serve_file(request, replace(served, is_inline_allowed=False))


async def _serve_quarantined_part(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of a MIME part of a quarantined message."""
    section = request.path_params["section"]
    message = await _load_quarantined_message(service, request, "parts", section)
    part = require_found(message_content.part_by_section(message, section))
    tag = f"{message.row.digest}.{message_content.section_of_part(part)}"
    served = _served_part(
        message, part, name=part.filename or _default_part_filename(part), tag=tag, caching=NO_STORE
    )
    return await serve_file(request, replace(served, is_inline_allowed=False))


async def _load_quarantined_message(
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
            service.environment, path, request.query_params
        )
    else:
        viewer = await service.authenticate_request(request.headers, client_ip)
    permission = UserPermission.QUARANTINE_ATTACHMENTS
    viewer.require(GuardRule(scope=Scope.READ, user_permission=permission))
    ctx = Context(service.environment, viewer, client_ip=client_ip)
    return require_found(await ctx.load(quarantine.load_stored_messages, key))


async def _serve_legal_hold_export(service: UploadService, request: Request) -> Response:
    """Serve the copies of a legal hold as an mbox file and record the access."""
    key = global_ids.decode_path_id("LegalHold", request.path_params["id"])
    path, client_ip = download_urls.legal_hold_path(key), client_ip_address(request)
    if "sig" in request.query_params:
        viewer = await signed_urls.signer_of_signed_path(
            service.environment, path, request.query_params
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


async def _serve_user_export(service: UploadService, request: Request) -> Response:
    """Serve a finished account export as a file."""
    user = global_ids.decode_path_id("User", request.path_params["id"])
    key = global_ids.decode_path_id("UserExport", request.path_params["export"])
    ctx, caching = await download_context_and_cache_control(
        service, request, download_urls.export_path(user, key)
    )
    if "sig" in request.query_params:  # the signer was allowed to read the export
        scopes = ctx.viewer.scopes | {Scope.READ}
        ctx = replace(ctx, viewer=replace(ctx.viewer, scopes=scopes))
    export = await exports.open_export(ctx, user, key)
    kind = media_type(ExportFormat(export.export.format))

    async def open_export() -> FileBytes:
        return FileBytes(export.size, export.stream_bytes, export.require_undamaged)

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
    request: Request, message: StoredMessage, caching: str, *, is_inline_allowed: bool = True
) -> Response:
    async def open_message() -> FileBytes:
        return FileBytes(message.size, message.stream_raw, message.check_intact)

    name = f"{message.row.subject.strip() or 'message'}.eml"
    kind, tag = "message/rfc822", message.row.digest
    served = ServedFile(
        tag, kind, name, open_message, cache_control=caching, is_inline_allowed=is_inline_allowed
    )
    return await serve_file(request, served)


async def _serve_attachment(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of an attachment."""
    key, text = _message_id_of_path(request), request.path_params["attachment"]
    try:
        message_id, index = download_urls.parse_attachment_id(text)
    except InvalidInput:
        raise NotFound(text) from None
    if message_id != key:
        raise NotFound(text)
    message, caching = await _load_readable_message(
        service, request, key, download_urls.attachment_download_path(key, index)
    )
    part = require_found(message_content.attachment_part(message, index))
    attachment = message.row.attachments[index]
    name, tag = attachment["filename"] or _default_part_filename(part), attachment["sha256"]
    return await serve_file(
        request, _served_part(message, part, name=name, tag=tag, caching=caching)
    )


async def _serve_attachments_zip(service: UploadService, request: Request) -> Response:
    """Serve all attachments of a message as one ZIP."""
    return await zip_download.serve_attachments_zip(service, request, _default_part_filename)


async def _serve_part(service: UploadService, request: Request) -> Response:
    """Serve the decoded content of any part."""
    key, section = _message_id_of_path(request), request.path_params["section"]
    message, caching = await _load_readable_message(
        service, request, key, download_urls.mime_part_path(key, section)
    )
    part = require_found(message_content.part_by_section(message, section))
    tag = f"{message.row.digest}.{message_content.section_of_part(part)}"
    name = part.filename or _default_part_filename(part)
    return await serve_file(
        request, _served_part(message, part, name=name, tag=tag, caching=caching)
    )


def _served_part(
    message: StoredMessage, part: ParsedPart, *, name: str, tag: str, caching: str
) -> ServedFile:
    async def open_part() -> FileBytes:
        content = await message.open_part(part)
        return FileBytes(content.size, content.stream, content.check)

    charset = part.params.get("charset")
    return ServedFile(tag, part.content_type, name, open_part, charset, caching)


def _default_part_filename(part: ParsedPart) -> str:
    """Return the file name of a MIME part without a filename, such as part-1.2.pdf."""
    ending = EXTENSION_BY_MEDIA_TYPE.get(part.content_type, "bin")
    return f"part-{message_content.section_of_part(part)}.{ending}"


async def _load_readable_message(
    service: UploadService, request: Request, message_id: int, path: str
) -> tuple[StoredMessage, str]:
    """Load a message that the viewer may read; return it with the value of Cache-Control.

    Raises NotFound, Unauthenticated or Forbidden.
    """
    ctx, caching = await download_context_and_cache_control(service, request, path)
    return require_found(await message_content.load_stored_message(ctx, message_id)), caching


async def _store_upload_or_begin_tus(service: UploadService, request: Request) -> Response:
    if request.method == "OPTIONS":
        return tus.serve_capabilities(service)
    return await (tus.create_upload if tus.is_tus_request(request.headers) else _store_upload)(
        service, request
    )


async def _store_upload(service: UploadService, request: Request) -> Response:
    """Store the body as an upload for a later mutation, or nothing if the client disconnects."""
    ctx = await authenticated_context(service, request)
    size = announced_size_of_raw_body(request.headers)
    check_size(size, service.environment.options.upload_max_size)
    await uploads.require_upload_allowed(ctx, size)
    with (
        checked_disk_space(service, size),
        limited_per_user(service, ctx.viewer.user_id),
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
