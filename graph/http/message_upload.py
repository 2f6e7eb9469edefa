"""POST of a raw message into a mailbox: `messageUpload` without GraphQL."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls, graphql_request
from graph.http.graphql_request import Rejected
from graph.http.upload_body import (
    CLOSED,
    Desk,
    admitted,
    check_size,
    declared,
    filled,
    roomy,
    sending,
)
from graph.types import global_ids
from mail.smtp.spool_file import Spool
from models.errors import found
from resolvers.files import signed_urls
from resolvers.mailboxes.loaders import Named
from resolvers.messages import upload
from resolvers.messages.upload import NewMessage

KINDS = ("message/rfc822", "message/global")  # RFC 5322, and with SMTPUTF8 RFC 6532
FLAGS = ("unseen", "flagged", "draft")
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


async def post(desk: Desk, request: Request) -> Response:
    """Store the posted message in a mailbox of the viewer and answer 201 with its ID and UID.

    Nothing is stored if the client disconnects early. Raises RequestRejected, or a typed error if
    the mailbox is not found or the quota is exceeded.
    """
    ctx = await admitted(desk, request)
    box = Named(id=global_ids.named("Mailbox", request.path_params["id"]))
    _check_kind(request.headers)
    flags, size = _flags(request), declared(request.headers)
    most = desk.world.options.message_max
    check_size(size, most)
    await upload.permit(ctx, box, size)
    with (
        roomy(desk, size),
        sending(desk, ctx.viewer.user_id),
        Spool(desk.spool, desk.budget) as spool,
    ):
        await filled(desk, request, spool, most)
        source = await spool.source()
        if isinstance(source, bytes) and not source.strip():
            raise graphql_request.bad("The message is empty.")
        new = NewMessage(
            mailbox=box,
            received=source,
            seen=not flags["unseen"],
            flagged=flags["flagged"],
            draft=flags["draft"],
        )
        async with desk.apart if isinstance(source, Path) else nullcontext():
            row = found((await upload.store(ctx, new)).message)
    told = {
        "id": global_ids.encode("Message", row.id),
        "uid": row.uid,
        "mailbox": global_ids.encode("Mailbox", row.mailbox_id),
    }
    path = download_urls.source_path(row.id)
    location = signed_urls.absolute(desk.world, path, request.scope.get("root_path", ""))
    headers = {"Cache-Control": "no-store", "Location": location}
    return Response(graphql_request.encode(told), 201, headers, "application/json")


def _check_kind(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        message = f"The body is a message: its Content-Type is {KINDS[0]}."
        more = {"Accept-Post": KINDS[0], **CLOSED}
        raise Rejected(415, "BAD_USER_INPUT", message, more)


def _flags(request: Request) -> dict[str, bool]:
    """Parse the flags in the query string; missing flags are false. Raises RequestRejected."""
    flags = dict.fromkeys(FLAGS, False)
    for name, text in request.query_params.multi_items():
        if name not in flags:
            raise graphql_request.bad(f"Only {', '.join(FLAGS)} can be said in the address.")
        if text.lower() not in WORDS:
            raise graphql_request.bad(f"{name} is true or false.")
        flags[name] = WORDS[text.lower()]
    return flags
