"""Bytes over HTTP: what is too large for GraphQL, behind the same rules."""

import asyncio
import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from graph import bodies, ids, parts
from graph.bodies import Rejected
from graph.policy import facts
from graph.serving import Bytes, Served, serve
from graph.telemetry import RESPONSES
from mail.contents import Stored
from mail.messages import Part
from mail.spool import Budget, NoRoom, Spool, room
from models.errors import Invalid, LimitReached, NotFound, RateLimited, Refused, found
from models.options import MIB
from models.roles import Role, Scope
from models.world import World
from resolvers import contents, links, uploads
from resolvers.context import Context, Needs, Viewer
from resolvers.uploads import Received

log = logging.getLogger(__name__)

SignIn = Callable[[Mapping[str, str]], Awaitable[Viewer]]

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
STATUSES = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "LIMIT_REACHED": 413,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
}
FULL = frozenset((ENOSPC, EDQUOT, EFBIG))
CLOSED = {"Connection": "close"}  # the rest of a body would have to be read otherwise
ENDINGS = {  # of files that have no name
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What uploads may take. Times are in seconds."""

    idle: float = 30  # until the next bytes
    longest: float = 3600  # until all are there
    at_once: int = 8  # of one user
    budget: int = 1024 * MIB  # bytes on their way in, of all users together
    disk_reserve: int = 64 * MIB  # bytes that stay free beside the spool


@dataclass(frozen=True, slots=True)
class Desk:
    """All that requests share."""

    world: World
    sign_in: SignIn
    spool: Path
    limits: Limits
    budget: Budget
    sending: Counter[int] = field(default_factory=Counter)  # uploads under way, by user


Answer = Callable[[Desk, Request], Awaitable[Response]]


def routes(
    world: World, sign_in: SignIn, spool: Path | None = None, limits: Limits | None = None
) -> list[Route]:
    """The routes under /rest. `sign_in` is given the headers; `spool` is a folder for uploads.

    `sign_in` raises Unauthenticated where a credential is wrong, and answers `Viewer()` where
    there is none.
    """
    limits = limits or Limits()
    folder = spool or Path(tempfile.gettempdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    desk = Desk(world, sign_in, folder, limits, Budget(limits.budget))
    message = "/rest/messages/{id}"
    return [
        Route(f"{message}/message.eml", _endpoint(desk, _message)),
        Route(f"{message}/attachments/{{attachment}}", _endpoint(desk, _attachment)),
        Route(f"{message}/parts/{{section}}", _endpoint(desk, _part)),
        Route("/rest/uploads", _endpoint(desk, _upload), methods=["POST"]),
    ]


def base_url(request: Request) -> str:
    """Where a request came to, for `links.absolute`: the path of the app is part of it."""
    return str(request.base_url).rstrip("/")


def _endpoint(desk: Desk, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        asked = request.headers.get("x-request-id", "")
        name = asked if PLAIN.fullmatch(asked) else desk.world.random(12).hex()
        try:
            response = await answer(desk, request)
        except Rejected as refusal:
            response = _refused(refusal)
        except Refused as refusal:
            response = _refused(_rejected(refusal))
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception:  # the edge of a listener: a bug is answered in JSON, and logged once
            log.exception("a request broke", extra={"request_id": name})
            broken = Rejected(500, "INTERNAL_SERVER_ERROR", "Something broke on our side.")
            broken.extensions["requestId"] = name
            response = _refused(broken)
        response.headers.update({**ALWAYS, "X-Request-Id": name})
        RESPONSES.add("rest", str(response.status_code))
        return response

    return endpoint


def _rejected(refusal: Refused) -> Rejected:
    extensions = facts(refusal)
    code = str(extensions["code"])
    made = Rejected(STATUSES.get(code, 400), code, refusal.message)
    made.extensions |= extensions
    if isinstance(refusal, LimitReached):
        made.extensions |= {"limit": refusal.limit, "used": refusal.used}
    if code == "UNAUTHENTICATED":
        made.headers["WWW-Authenticate"] = "Bearer"
    if code == "RATE_LIMITED":
        made.headers["Retry-After"] = str(extensions["retryAfterSeconds"])
    return made


def _refused(refusal: Rejected) -> Response:
    error = {"message": refusal.message, "extensions": refusal.extensions}
    headers = {"Cache-Control": "no-store", **refusal.headers}
    body = bodies.encode({"errors": [error]})
    return refusal.answer(body, refusal.status, headers, "application/json")


def _message_key(request: Request) -> int:
    """The key of the message in the path; whatever is no id names nothing."""
    text = request.path_params["id"]
    try:
        return ids.decode("Message", text)
    except Invalid:
        raise NotFound(text) from None


async def _message(desk: Desk, request: Request) -> Response:
    """Serve a whole message, byte for byte."""
    key = _message_key(request)
    message, caching = await _reached(desk, request, key, parts.source_path(key))

    async def opened() -> Bytes:
        return Bytes(message.size, message.whole)

    name = f"{message.row.subject.strip() or 'message'}.eml"
    served = Served(message.row.digest, "message/rfc822", name, opened, caching=caching)
    return await serve(request, served)


async def _attachment(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of an attachment."""
    key, text = _message_key(request), request.path_params["attachment"]
    try:
        theirs, index = parts.attachment_of(text)
    except Invalid:
        raise NotFound(text) from None
    if theirs != key:
        raise NotFound(text)
    message, caching = await _reached(desk, request, key, parts.attachment_path(key, index))
    part = found(contents.attached(message, index))
    attachment = message.row.attachments[index]
    name, tag = attachment["filename"] or _name(part), attachment["hash"]
    return await serve(request, _decoded(message, part, name=name, tag=tag, caching=caching))


async def _part(desk: Desk, request: Request) -> Response:
    """Serve the decoded content of any part."""
    key, section = _message_key(request), request.path_params["section"]
    message, caching = await _reached(desk, request, key, parts.part_path(key, section))
    part = found(contents.part_at(message, section))
    tag = f"{message.row.digest}.{contents.section_of(part)}"
    name = part.filename or _name(part)
    return await serve(request, _decoded(message, part, name=name, tag=tag, caching=caching))


def _decoded(message: Stored, part: Part, *, name: str, tag: str, caching: str) -> Served:
    async def opened() -> Bytes:
        content = await message.opened(part)
        return Bytes(content.size, content.stream)

    charset = part.params.get("charset")
    return Served(tag, part.content_type, name, opened, charset, caching)


def _name(part: Part) -> str:
    """A name for a part that has none."""
    ending = ENDINGS.get(part.content_type, "bin")
    return f"part-{contents.section_of(part)}.{ending}"


async def _reached(desk: Desk, request: Request, key: int, path: str) -> tuple[Stored, str]:
    """The message, as far as whoever asks may read it, and how the answer may be cached.

    The path is made anew from what it says: so the app may lie anywhere.
    """
    if "sig" in request.query_params:
        viewer = await links.viewer(desk.world, path, request.query_params)
        caching = "private, max-age=300"  # no longer than the address, which nobody else has
    else:
        viewer = await desk.sign_in(request.headers)
        caching = "private, no-cache"  # the next to ask may be somebody else
    viewer.require(Needs(role=Role.USER, scope=Scope.MAIL_READ))
    (message,) = await contents.stored(Context(desk.world, viewer), [key])
    return found(message), caching


async def _upload(desk: Desk, request: Request) -> Response:
    """Take bytes for a later mutation. Whoever leaves early leaves nothing."""
    viewer = await desk.sign_in(request.headers)
    viewer.require(Needs(role=Role.USER))
    ctx = Context(desk.world, viewer)
    size = _declared(request.headers, desk.world.options.upload_max)
    await uploads.begin(ctx, size)
    try:
        if room(desk.spool) < size + desk.limits.disk_reserve:
            raise NoRoom
        with _sending(desk, viewer.user_id), Spool(desk.spool, desk.budget) as spool:
            row = await uploads.finish(ctx, await _received(desk, request, spool))
    except NoRoom:
        raise _no_room() from None
    except OSError as problem:
        if problem.errno in FULL:
            raise _no_room() from problem
        raise
    answer = {
        "id": ids.encode("Upload", row.id),
        "size": row.size,
        "sha256": row.digest,
        "expiresAt": row.expires_at.isoformat().replace("+00:00", "Z"),
    }
    headers = {"Cache-Control": "no-store"}
    return Response(bodies.encode(answer), 201, headers, "application/json")


def _declared(headers: Mapping[str, str], most: int) -> int:
    """The size of the body as announced, 0 where it is not."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        message = "The body must not be compressed."
        raise Rejected(415, "BAD_USER_INPUT", message, {"Accept-Encoding": "identity"})
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise bodies.bad("Content-Length is not a number.")
    if len(length) > len(str(most)) or int(length) > most:
        raise _too_large(most)
    return int(length)


async def _received(desk: Desk, request: Request, spool: Spool) -> Received:
    digest, most = hashlib.sha256(), desk.world.options.upload_max
    try:
        async with asyncio.timeout(desk.limits.longest), aclosing(_pieces(desk, request)) as body:
            async for piece in body:
                if spool.size + len(piece) > most:
                    raise _too_large(most)
                digest.update(piece)
                await spool.add(piece)
    except TimeoutError:
        message = "The body did not come in time."
        raise Rejected(408, "DEADLINE_EXCEEDED", message, CLOSED) from None
    kind, name = uploads.described(request.headers)
    return Received(await spool.source(), spool.size, digest.hexdigest(), kind, name)


async def _pieces(desk: Desk, request: Request) -> AsyncGenerator[bytes]:
    """The body as it comes; TimeoutError where nothing comes for too long."""
    async with aclosing(request.stream()) as stream:
        while True:
            async with asyncio.timeout(desk.limits.idle):
                piece = await anext(stream, None)
            if piece is None:
                return
            yield piece


@contextmanager
def _sending(desk: Desk, user_id: int) -> Generator[None]:
    """Count the uploads of a user that are under way: no more than a few at once."""
    if desk.sending[user_id] >= desk.limits.at_once:
        text = f"{desk.limits.at_once} uploads are under way"
        raise RateLimited(text, retry_after=timedelta(seconds=1))
    desk.sending[user_id] += 1
    try:
        yield
    finally:
        desk.sending[user_id] -= 1
        if not desk.sending[user_id]:
            del desk.sending[user_id]


def _too_large(most: int) -> Rejected:
    return Rejected(413, "TOO_LARGE", f"An upload has at most {most} bytes.", CLOSED)


def _no_room() -> Rejected:
    return Rejected(507, "UNAVAILABLE", "There is no room for it now: try again later.", CLOSED)
