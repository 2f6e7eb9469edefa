"""Upload and download of stored files, and of files shared by a link."""

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls, graphql_request
from graph.http.byte_responses import Bytes, Served, serve
from graph.http.graphql_request import Rejected
from graph.http.http_errors import client_address
from graph.http.upload_body import (  # fmt: skip
    Desk,
    admitted,
    check_size,
    declared,
    reader,
    received,
    roomy,
    sending,
)
from graph.types import global_ids
from mail.smtp.spool_file import Spool
from mail.storage.blobs import blob_reader
from mail.storage.blobs.damage_check import check_piece
from models.errors import Stale, found
from models.store.columns import Picked
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.files import shares, signed_urls, stored_files
from resolvers.files.uploads import Received
from resolvers.messages.content_access import legible

_TAG = re.compile(r'"([0-9a-f]{64})"')
ASKS = {"WWW-Authenticate": 'Basic realm="share", charset="UTF-8"'}


async def file(desk: Desk, request: Request) -> Response:
    """Answer GET with a file of the viewer (any file for ROOT), POST by storing a new file."""
    return await (_upload if request.method == "POST" else _download)(desk, request)


async def _download(desk: Desk, request: Request) -> Response:
    key = global_ids.named("File", request.path_params["name"])
    ctx, caching = await reader(desk, request, download_urls.file_path(key))
    row: Picked = found(await ctx.load(stored_files.seen_by_ids, key), str(key))
    legible(ctx, row)

    async def opened() -> Bytes:
        return _bytes(ctx, await stored_files.fetched(ctx, row))

    return await serve(request, _served(row, opened, caching))


async def _upload(desk: Desk, request: Request) -> Response:
    ctx = await admitted(desk, request)
    told = request.headers.get("content-type", "")
    name, kind = stored_files.described(desk.world, request.path_params["name"], told)
    async with _body(desk, request, stored_files.permit(ctx)) as came:
        key = await stored_files.create(ctx, replace(came, filename=name, content_type=kind))
    path = download_urls.file_path(key)
    url = signed_urls.absolute(desk.world, path, str(request.base_url).rstrip("/"))
    facts = {"id": global_ids.encode("File", key), "filename": name, "contentType": kind}
    headers = {"Cache-Control": "no-store", "Location": url}
    return Response(graphql_request.encode(facts), 201, headers, "application/json")


@asynccontextmanager
async def _body(desk: Desk, request: Request, owner: int) -> AsyncGenerator[Received]:
    """Receive the body of a request into a file that exists inside the block."""
    size = declared(request.headers)
    check_size(size, desk.world.options.upload_max)
    with roomy(desk, size), sending(desk, owner), Spool(desk.spool, desk.budget) as spool:
        yield await received(desk, request, spool)


async def share(desk: Desk, request: Request) -> Response:
    """Answer GET with the shared file of a link, PUT by replacing its content. No sign-in.

    Raises RequestRejected with status 401 for a missing or wrong password of the link.
    """
    ctx = Context(desk.world, Viewer(), client_ip=client_address(request))
    row = await shares.reached(ctx, request.path_params["token"])
    if not await shares.admitted(ctx, row, _password(request)):
        message = "This link has a password: send it by Basic, under any name."
        raise Rejected(401, "UNAUTHENTICATED", message, ASKS)
    if request.method == "PUT":
        return await _put(desk, request, row)

    async def opened() -> Bytes:
        blob = await (stored_files.blob(ctx, row.blob_id) if _goes_on(request) else
                      shares.opened(ctx, row))  # fmt: skip
        return _bytes(ctx, blob)

    return await serve(request, _served(row, opened, "private, no-cache"))


async def _put(desk: Desk, request: Request, row: Picked) -> Response:
    shares.writable(row)
    known, seen = request.headers.get("if-match"), None
    if known is not None and known.strip() != "*":
        tag = _TAG.fullmatch(known.strip())
        seen = tag[1] if tag else ""
    owner = Viewer(row.user_id, Role.USER, frozenset({Scope.MAIL}))
    async with _body(desk, request, row.user_id) as came:
        try:
            ctx = Context(desk.world, owner, client_ip=client_address(request))
            await shares.write(ctx, row, came, seen=seen)
        except Stale:
            raise Rejected(412, "STALE", "It is not what If-Match says.") from None
    return Response(status_code=204, headers={"ETag": f'"{came.digest}"'})


def _goes_on(request: Request) -> bool:
    """True if the request must not count as a download: HEAD, or a later range."""
    begins = request.headers.get("range", "bytes=0-").replace(" ", "").startswith("bytes=0-")
    return request.method == "HEAD" or not begins


def _password(request: Request) -> str | None:
    """Return the password of Basic authentication (RFC 7617), with any username; None without."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(shown.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None


def _bytes(ctx: Context, blob: Picked) -> Bytes:
    def stream(start: int, end: int) -> AsyncGenerator[bytes]:
        return blob_reader.stream(ctx.world.blobs, blob, start, end)

    async def check(_start: int, _end: int) -> None:
        await check_piece(ctx.world.blobs, blob)

    return Bytes(blob.size, stream, check)


def _served(row: Picked, opened: Callable[[], Awaitable[Bytes]], caching: str) -> Served:
    """Describe a file to serve: always as an attachment, never inline."""
    return Served(row.digest, row.content_type, row.filename, opened, caching=caching, shown=False)
