"""POST of a raw message into a mailbox: `messageImport` without GraphQL."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls, graphql_request
from graph.http.graphql_request import RequestRejected
from graph.http.upload_body import (
    CONNECTION_CLOSE,
    UploadService,
    acquire_user_upload_slot,
    authenticated_context,
    require_raw_body_and_return_size,
    require_upload_disk_space,
    require_upload_size_within,
    write_body_to_spool_and_hash,
)
from graph.types import global_ids
from mail.smtp.spool_file import SpoolFile
from models.errors import require_found
from resolvers.files import signed_urls
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import message_import
from resolvers.messages.message_import import NewMessage

MESSAGE_MEDIA_TYPES = ("message/rfc822", "message/global")  # RFC 5322, and with SMTPUTF8 RFC 6532
DEFAULT_FLAGS = {"seen": True, "flagged": False, "draft": False}
BOOLEAN_BY_TEXT = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


async def authorize_and_store_posted_message(service: UploadService, request: Request) -> Response:
    """Store the posted message in a mailbox of the viewer and answer 201 with its ID and UID.

    Nothing is stored if the client disconnects early. Raises RequestRejected, or a typed error if
    the mailbox is not found or the quota is exceeded.
    """
    ctx = await authenticated_context(service, request)
    mailbox = MailboxSelector(id=global_ids.decode_path_id("Mailbox", request.path_params["id"]))
    _require_message_content_type(request.headers)
    flags = _parse_flags_from_query(request)
    size = require_raw_body_and_return_size(request.headers)
    max_bytes = service.environment.options.message_max_size
    require_upload_size_within(size, max_bytes)
    await message_import.require_message_storable_in_mailbox(ctx, mailbox, size)
    with (
        require_upload_disk_space(service, size),
        acquire_user_upload_slot(service, ctx.viewer.user_id),
        SpoolFile(service.spool, service.budget) as spool,
    ):
        await write_body_to_spool_and_hash(service, request, spool, max_bytes)
        source = await spool.raw_message()
        if isinstance(source, bytes) and not source.strip():
            raise graphql_request.bad_request("The message is empty.")
        new = NewMessage(
            mailbox=mailbox,
            received_source=source,
            is_seen=flags["seen"],
            is_flagged=flags["flagged"],
            is_draft=flags["draft"],
        )
        async with service.large_message_slots if isinstance(source, Path) else nullcontext():
            row = require_found(
                await message_import.store_imported_message_and_load_if_readable(ctx, new)
            )
    response_body = {
        "id": global_ids.encode("Message", row.id),
        "uid": row.uid,
        "mailbox": global_ids.encode("Mailbox", row.mailbox_id),
    }
    path = download_urls.message_source_path(row.id)
    location = signed_urls.absolute_url(
        service.environment, path, request.scope.get("root_path", "")
    )
    headers = {"Cache-Control": "no-store", "Location": location}
    return Response(graphql_request.encode_json(response_body), 201, headers, "application/json")


def _require_message_content_type(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MESSAGE_MEDIA_TYPES:
        message = f"The body is a message: its Content-Type is {MESSAGE_MEDIA_TYPES[0]}."
        error_headers = {"Accept-Post": MESSAGE_MEDIA_TYPES[0], **CONNECTION_CLOSE}
        raise RequestRejected(415, "BAD_USER_INPUT", message, error_headers)


def _parse_flags_from_query(request: Request) -> dict[str, bool]:
    """Parse the flags in the query string. Raises RequestRejected."""
    flags = dict(DEFAULT_FLAGS)
    for name, text in request.query_params.multi_items():
        if name not in flags:
            raise graphql_request.bad_request(
                f"Only {', '.join(DEFAULT_FLAGS)} can be said in the address."
            )
        if text.lower() not in BOOLEAN_BY_TEXT:
            raise graphql_request.bad_request(f"{name} is true or false.")
        flags[name] = BOOLEAN_BY_TEXT[text.lower()]
    return flags
