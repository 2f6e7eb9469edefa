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

from graph.execution.telemetry import RESPONSES
from graph.http import (
    download_urls,
    file_download,
    graphql_request,
    message_upload,
    tus,
    zip_download,
)
from graph.http.byte_responses import Bytes, Served, serve, streamed
from graph.http.graphql_request import Rejected
from graph.http.http_errors import answer_to, client_address, log_failure, request_id, turned_away
from graph.http.upload_body import (  # fmt: skip
    Desk,
    Limits,
    SignIn,
    admitted,
    check_size,
    declared,
    reader,
    received,
    roomy,
    sending,
)
from graph.subscriptions import sse_changes
from graph.types import global_ids
from mail.archives.archive_writer import ExportFormat, kind_of
from mail.mime import Part
from mail.smtp.spool_file import Budget, Spool
from mail.storage.message_content import Stored
from models.errors import Invalid, NotFound, Refused, found
from models.runtime.concurrency_limits import Crowd
from models.runtime.environment import World
from models.users.roles import Role, Scope, UserPermission
from resolvers.admin import audits
from resolvers.context import Context, Needs
from resolvers.files import signed_urls, uploads
from resolvers.messages import content as message_content
from resolvers.messages import deleted_messages
from resolvers.spam import quarantine
from resolvers.transfer import exports

UPLOADS = "/rest/uploads"
UPDATES = "/rest/users/{id}/updates"
HELD = "/rest/quarantine/{id}"
ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
UNKEPT = "no-store"  # of quarantined content, which may be harmful
STATUSES = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "LIMIT_REACHED": 413,
    "QUOTA_EXCEEDED": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
}
ENDINGS = {  # of files without a filename
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


Answer = Callable[[Desk, Request], Awaitable[Response]]


def routes(
    world: World,
    sign_in: SignIn,
    spool: Path | None = None,
    limits: Limits | None = None,
    live: sse_changes.Live | None = None,
) -> list[Route]:
    """Create the routes under /rest and /share. `spool` is the folder for uploads.

    `authenticate_request` gets headers and IP address. It raises Unauthenticated for a wrong
    credential and returns `Viewer()` without one. `subscription_server` serves change streams.
    """
    limits = limits or Limits()
    folder = spool or Path(tempfile.gettempdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    crowd = Crowd(sys.maxsize, limits.at_once)  # the memory budget limits all users together
    desk = Desk(world, sign_in, folder, limits, Budget(limits.budget), crowd)
    message = "/rest/messages/{id}"
    followed = [Route(UPDATES, _endpoint(desk, partial(sse_changes.answer, live)))] if live else []
    return [
        *followed,
        Route(f"{message}/message.eml", _endpoint(desk, _message)),
        Route("/rest/archive/{id}/message.eml", _endpoint(desk, _archived)),
        Route(f"{HELD}/message.eml", _endpoint(desk, _held)),
        Route(f"{HELD}/attachments/{{attachment}}", _endpoint(desk, _held_attachment)),
        Route(f"{HELD}/parts/{{section}}", _endpoint(desk, _held_part)),
        Route(f"{message}/attachments/{{attachment}}", _endpoint(desk, _attachment)),
        Route(f"{message}/attachments.zip", _endpoint(desk, _attachments)),
        Route(f"{message}/parts/{{section}}", _endpoint(desk, _part)),
        Route(
            "/rest/mailboxes/{id}/messages", _endpoint(desk, message_upload.post), methods=["POST"]
        ),
        Route("/rest/files/{name}", _endpoint(desk, file_download.file), methods=["GET", "POST"]),
        Route("/share/{token}", _endpoint(desk, file_download.share), methods=["GET", "PUT"]),
        Route("/rest/users/{id}/export/{export}", _endpoint(desk, _export)),
        Route("/rest/audits/{id}/export.mbox", _endpoint(desk, _audit)),
        Route(UPLOADS, _endpoint(desk, _uploads, tus.ALWAYS), methods=["POST", "OPTIONS"]),
        Route(
            f"{UPLOADS}/{{id}}",
            _endpoint(desk, tus.resource, tus.ALWAYS),
            methods=["HEAD", "PATCH", "DELETE", "POST", "OPTIONS"],
        ),
    ]


def base_url(request: Request) -> str:
    """Return the base URL of a request, including the path that the app is mounted at."""
    return str(request.base_url).rstrip("/")


def _endpoint(
    desk: Desk, answer: Answer, more: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        name = request_id(request.headers, desk.world)
        try:
            response = await answer(desk, request)
        except Rejected as refusal:
            response = _refused(refusal)
        except Refused as refusal:
            response = _refused(turned_away(refusal, STATUSES))
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as problem:  # noqa: BLE001 - the edge of a listener: logged once
            log_failure(problem, name, request.url.path)
            response = _refused(answer_to(problem, name))
        response.headers.update({**ALWAYS, **more, "X-Request-Id": name})
        RESPONSES.add("rest", str(response.status_code))
        return response

    return endpoint


def _refused(refusal: Rejected) -> Response:
    headers = {"Cache-Control": "no-store", **refusal.headers}
    body = graphql_request.encode(refusal.payload)
    return refusal.answer(body, refusal.status, headers, graphql_request.JSON)


def _message_key(request: Request) -> int:
    return global_ids.named("Message", request.path_params["id"])


async def _message(desk: Desk, request: Request) -> Response:
    """Serve a whole message, byte for byte."""
    key = _message_key(request)
    message, caching = await _reached(desk, request, key, download_urls.source_path(key))
    return await _whole(request, message, caching)


async def _archived(desk: Desk, request: Request) -> Response:
    """Serve a whole deleted message, byte for byte, while it can be restored."""
    key = global_ids.named("ArchivedMessage", request.path_params["id"])
    ctx, caching = await reader(desk, request, download_urls.archived_path(key))
    found(await ctx.load(deleted_messages.by_ids, key))
    return await _whole(request, found(await message_content.one(ctx, key)), caching)


async def _held(desk: Desk, request: Request) -> Response:
    """Serve a whole quarantined message, byte for byte."""
    return await _whole(request, await _of_quarantine(desk, request), UNKEPT, shown=False)


async def _held_attachment(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of an attachment of a quarantined message."""
    text = request.path_params["attachment"]
    message = await _of_quarantine(desk, request, "attachments", text)
    try:
        theirs, index = download_urls.attachment_of(text)
    except Invalid:
        raise NotFound(text) from None
    if theirs != message.row.id:
        raise NotFound(text)
    part = found(message_content.attached(message, index))
    attachment = message.row.attachments[index]
    name, tag = attachment["filename"] or _name(part), attachment["hash"]
    served = _decoded(message, part, name=name, tag=tag, caching=UNKEPT)
    return await serve(request, replace(served, shown=False))


async def _held_part(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of a MIME part of a quarantined message."""
    section = request.path_params["section"]
    message = await _of_quarantine(desk, request, "parts", section)
    part = found(message_content.part_at(message, section))
    tag = f"{message.row.digest}.{message_content.section_of(part)}"
    served = _decoded(message, part, name=part.filename or _name(part), tag=tag, caching=UNKEPT)
    return await serve(request, replace(served, shown=False))


async def _of_quarantine(desk: Desk, request: Request, *more: str) -> Stored:
    """Load a quarantined message if the viewer, or the signer of the URL, may read it.

    Raises NotFound, Unauthenticated or Forbidden.
    """
    key = global_ids.named("QuarantineItem", request.path_params["id"])
    where = client_address(request)
    if "sig" in request.query_params:
        path = download_urls.held_path(key, *more)
        viewer = await signed_urls.caller(desk.world, path, request.query_params)
    else:
        viewer = await desk.sign_in(request.headers, where)
    permission = UserPermission.QUARANTINE_ATTACHMENTS
    viewer.require(Needs(scope=Scope.READ, user_permission=permission))
    ctx = Context(desk.world, viewer, client_ip=where)
    return found(await ctx.load(quarantine.stored, key))


async def _audit(desk: Desk, request: Request) -> Response:
    """Serve the copies of an audit as an mbox file and record the access."""
    key = global_ids.named("Audit", request.path_params["id"])
    path, where = download_urls.audit_path(key), client_address(request)
    if "sig" in request.query_params:
        viewer = await signed_urls.caller(desk.world, path, request.query_params)
    else:
        viewer = await desk.sign_in(request.headers, where)
    viewer.require(Needs(role=Role.ADMIN, scope=Scope.READ))
    ctx = Context(desk.world, viewer, client_ip=where)
    chunks = await audits.exported(ctx, key, check=request.method != "HEAD")
    return streamed(request, "application/mbox", f"{global_ids.encode('Audit', key)}.mbox", chunks)


async def _export(desk: Desk, request: Request) -> Response:
    """Serve a finished account export as a file."""
    user = global_ids.named("User", request.path_params["id"])
    key = global_ids.named("AccountExport", request.path_params["export"])
    ctx, caching = await reader(desk, request, download_urls.export_path(user, key))
    if "sig" in request.query_params:  # the signer was allowed to read the export
        scopes = ctx.viewer.scopes | {Scope.READ}
        ctx = replace(ctx, viewer=replace(ctx.viewer, scopes=scopes))
    export = await exports.whole(ctx, user, key)
    kind = kind_of(ExportFormat(export.row.format))

    async def opened() -> Bytes:
        return Bytes(export.size, export.stream, export.check)

    tag = f"{global_ids.encode('AccountExport', key)}.{export.size}"
    served = Served(tag, kind, export.row.filename, opened, caching=caching, shown=False)
    return await serve(request, served)


async def _whole(
    request: Request, message: Stored, caching: str, *, shown: bool = True
) -> Response:
    async def opened() -> Bytes:
        return Bytes(message.size, message.whole, message.check)

    name = f"{message.row.subject.strip() or 'message'}.eml"
    kind, tag = "message/rfc822", message.row.digest
    served = Served(tag, kind, name, opened, caching=caching, shown=shown)
    return await serve(request, served)


async def _attachment(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of an attachment."""
    key, text = _message_key(request), request.path_params["attachment"]
    try:
        theirs, index = download_urls.attachment_of(text)
    except Invalid:
        raise NotFound(text) from None
    if theirs != key:
        raise NotFound(text)
    message, caching = await _reached(desk, request, key, download_urls.attachment_path(key, index))
    part = found(message_content.attached(message, index))
    attachment = message.row.attachments[index]
    name, tag = attachment["filename"] or _name(part), attachment["hash"]
    return await serve(request, _decoded(message, part, name=name, tag=tag, caching=caching))


async def _attachments(desk: Desk, request: Request) -> Response:
    """Serve all attachments of a message as one ZIP."""
    return await zip_download.attachments(desk, request, _name)


async def _part(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of any part."""
    key, section = _message_key(request), request.path_params["section"]
    message, caching = await _reached(desk, request, key, download_urls.part_path(key, section))
    part = found(message_content.part_at(message, section))
    tag = f"{message.row.digest}.{message_content.section_of(part)}"
    name = part.filename or _name(part)
    return await serve(request, _decoded(message, part, name=name, tag=tag, caching=caching))


def _decoded(message: Stored, part: Part, *, name: str, tag: str, caching: str) -> Served:
    async def opened() -> Bytes:
        content = await message.opened(part)
        return Bytes(content.size, content.stream, content.check)

    charset = part.params.get("charset")
    return Served(tag, part.content_type, name, opened, charset, caching)


def _name(part: Part) -> str:
    """Return the file name of a MIME part without a filename, such as part-1.2.pdf."""
    ending = ENDINGS.get(part.content_type, "bin")
    return f"part-{message_content.section_of(part)}.{ending}"


async def _reached(desk: Desk, request: Request, key: int, path: str) -> tuple[Stored, str]:
    """Load a message that the viewer may read; return it with the value of Cache-Control.

    Raises NotFound, Unauthenticated or Forbidden.
    """
    ctx, caching = await reader(desk, request, path)
    return found(await message_content.one(ctx, key)), caching


async def _uploads(desk: Desk, request: Request) -> Response:
    if request.method == "OPTIONS":
        return tus.abilities(desk)
    return await (tus.create if tus.wanted(request.headers) else _upload)(desk, request)


async def _upload(desk: Desk, request: Request) -> Response:
    """Store the body as an upload for a later mutation, or nothing if the client disconnects."""
    ctx = await admitted(desk, request)
    size = declared(request.headers)
    check_size(size, desk.world.options.upload_max)
    await uploads.begin(ctx, size)
    with (
        roomy(desk, size),
        sending(desk, ctx.viewer.user_id),
        Spool(desk.spool, desk.budget) as spool,
    ):
        row = await uploads.finish(ctx, await received(desk, request, spool))
    headers = {"Cache-Control": "no-store", "Location": tus.location(desk, request, row.id)}
    return Response(graphql_request.encode(tus.facts(row)), 201, headers, "application/json")
