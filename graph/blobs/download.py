"""Download of the content of objects of the object stores, by administrators."""

import hashlib
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls
from graph.http.byte_responses import DEFAULT_MEDIA_TYPE, FileBytes, ServedFile, serve_file
from graph.http.http_errors import client_ip_address
from graph.http.upload_body import UploadService
from mail.storage.blobs.object_names import digest_in_name_or_none
from models.errors import require_found
from models.users.roles import Role, Scope
from resolvers.blobs import content
from resolvers.blobs.content import URL_FIELD, BlobAccess
from resolvers.blobs.loaders import StoredBlob, find_blob, load_blob_facts
from resolvers.blobs.validation import require_blob_path
from resolvers.context import Context
from resolvers.files import signed_urls
from resolvers.viewer import GuardRule


async def authorize_and_serve_blob_logging_access(
    service: UploadService, request: Request
) -> Response:
    """Serve the content of an object and log the access; HEAD returns no bytes and is not logged.

    A signed URL stands for its signer, with the present rights. Raises Unauthenticated, Forbidden,
    InvalidInput for an invalid path, and NotFound.
    """
    store_name, path = request.path_params["store"], request.path_params["path"]
    client_ip = client_ip_address(request)
    if "sig" in request.query_params:
        viewer = await signed_urls.signer_of_signed_path(
            service.environment,
            download_urls.blob_path(store_name, path),
            request.query_params,
            ip=client_ip,
        )
    else:
        viewer = await service.authenticate_request(request.headers, client_ip)
    viewer.require(GuardRule(role=Role.ROOT, scope=Scope.READ))
    ctx = Context(service.environment, viewer, client_ip=client_ip)
    require_blob_path(path)
    blob = require_found(await find_blob(ctx, store_name, path), path, noun="Blob")

    async def open_blob() -> FileBytes:
        if request.method == "HEAD":
            (facts,) = await load_blob_facts(ctx, [blob])
        else:
            (facts,) = await content.log_blob_accesses_and_load_facts(
                ctx, [BlobAccess(blob, URL_FIELD)]
            )

        def stream(start: int, end: int) -> AsyncGenerator[bytes]:
            return content.stream_content(ctx, blob, facts, start, end)

        async def check(_start: int, _end: int) -> None:
            await content.require_intact_content(ctx, facts)

        return FileBytes(content.content_size(blob, facts), stream, check)

    served = ServedFile(
        _etag(blob),
        DEFAULT_MEDIA_TYPE,
        path.rpartition("/")[2],
        open_blob,
        cache_control="no-store",
        is_inline_allowed=False,
    )
    return await serve_file(request, served)


def _etag(blob: StoredBlob) -> str:
    """Return a text that differs for different contents of an object."""
    text = digest_in_name_or_none(blob.path) or blob.version
    return hashlib.sha256(f"{blob.store}/{blob.path}/{text}".encode()).hexdigest()
