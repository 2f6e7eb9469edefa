"""Reading of upload and download requests, with limits on time, size and concurrency."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from starlette.requests import Request

from graph.http import graphql_request
from graph.http.graphql_request import Rejected
from graph.http.http_errors import client_address
from mail.smtp.spool_file import Budget, NoRoom, Spool, room
from models.errors import RateLimited
from models.runtime.concurrency_limits import Crowd
from models.runtime.environment import World
from models.runtime.options import MIB
from models.store.outages import RETRY_AFTER, DiskFull, unavailable
from models.users.roles import Role, Scope
from resolvers.context import Context, Needs, Viewer
from resolvers.files import signed_urls, uploads
from resolvers.files.uploads import Received

SignIn = Callable[[Mapping[str, str], str | None], Awaitable[Viewer]]  # headers, address

CHECKPOINTS = 8  # of uploads; each part is in memory
TOGETHER = 2
DIGITS = 20  # longer numbers count as 2**64
CLOSED = {"Connection": "close"}  # otherwise the rest of the body would have to be read


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of uploads. Times are in seconds."""

    idle: float = 30  # between two chunks
    longest: float = 3600  # of the whole body
    yields: float = 3  # idle time after which another request can take the upload over
    at_once: int = 8  # concurrent uploads
    budget: int = 1024 * MIB  # bytes of all uploads in progress
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool
    checkpoint: int = 4 * MIB  # received bytes that a crash can lose


@dataclass(slots=True)
class Flow:
    """The state of a body that is being received."""

    heard: float = 0  # time of the last chunk, by the event loop's clock
    waiting: asyncio.Timeout | None = None

    def hurry(self, patience: float) -> None:
        """Shorten the idle timeout, counted from the last chunk, since another request waits."""
        ends = self.waiting.when() if self.waiting else None
        if self.waiting and ends and not self.waiting.expired():
            self.waiting.reschedule(min(ends, self.heard + patience))


@dataclass(frozen=True, slots=True)
class Desk:
    """The limits, folders and limiters that all upload and download requests share."""

    world: World
    sign_in: SignIn
    spool: Path
    limits: Limits
    budget: Budget
    sending: Crowd
    # a large message that is parsed is in memory more than once
    apart: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TOGETHER))
    checkpoints: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKPOINTS))
    flows: dict[int, Flow] = field(default_factory=dict)  # of resumable uploads, by ID


async def admitted(desk: Desk, request: Request) -> Context:
    """Authenticate the request and return its context.

    Raises Unauthenticated or Forbidden if no user is signed in.
    """
    viewer = await desk.sign_in(request.headers, client_address(request))
    viewer.require(Needs(role=Role.USER))
    return Context(desk.world, viewer, client_ip=client_address(request))


def declared(headers: Mapping[str, str]) -> int:
    """Return the announced size of the body in bytes, 0 without Content-Length.

    Raises RequestRejected for a compressed body or a multipart form.
    """
    if graphql_request.compressed(headers):
        more = {"Accept-Encoding": "identity", **CLOSED}
        raise Rejected(415, "BAD_USER_INPUT", "The body must not be compressed.", more)
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        message = "The body is the file itself: a form of several parts is not taken."
        raise Rejected(415, "BAD_USER_INPUT", message, CLOSED)
    return number(headers, "content-length") or 0


def number(headers: Mapping[str, str], name: str) -> int | None:
    """Return the integer of a header, None without the header; 2**64 if it has many digits.

    Raises RequestRejected if it is not a number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise graphql_request.bad(f"{name.title()} is not a number.")
    return int(text) if len(text) < DIGITS else 1 << 64


def check_size(size: int, most: int) -> None:
    """Raise RequestRejected with status 413 if a file is too large."""
    if size > most:
        raise Rejected(413, "TOO_LARGE", f"A body has at most {most} bytes here.", CLOSED)


async def pieces(desk: Desk, request: Request, flow: Flow) -> AsyncGenerator[bytes]:
    """Yield the chunks of a body. Raises TimeoutError if no chunk comes in time."""
    loop = asyncio.get_running_loop()
    async with aclosing(request.stream()) as stream:
        while True:
            flow.heard = loop.time()
            async with asyncio.timeout(desk.limits.idle) as flow.waiting:
                piece = await anext(stream, None)
            flow.waiting = None
            if piece is None:
                return
            yield piece


async def filled(desk: Desk, request: Request, spool: Spool, most: int) -> str:
    """Write the whole body to the spool file and return its SHA-256 in hex.

    Raises RequestRejected if the body is too large or too slow.
    """
    digest = hashlib.sha256()
    try:
        async with (
            asyncio.timeout(desk.limits.longest),
            aclosing(pieces(desk, request, Flow())) as body,
        ):
            async for piece in body:
                check_size(spool.size + len(piece), most)
                digest.update(piece)
                await spool.add(piece)
    except TimeoutError:
        message = "The body did not come in time."
        raise Rejected(408, "DEADLINE_EXCEEDED", message, CLOSED) from None
    return digest.hexdigest()


@contextmanager
def sending(desk: Desk, user_id: int) -> Generator[None]:
    """Count an upload of a user. Raises RateLimited if the user has too many at once."""
    if (seat := desk.sending.enter(user_id)) is None:
        text = f"{desk.limits.at_once} uploads are under way"
        raise RateLimited(text, retry_after=timedelta(seconds=1))
    try:
        yield
    finally:
        seat.leave()


@contextmanager
def roomy(desk: Desk, size: int) -> Generator[None]:
    """Raise RequestRejected with status 507 if the disk can't store `size` bytes or is full."""
    try:
        if room(desk.spool) < size + desk.limits.disk_reserve:
            raise NoRoom
        yield
    except NoRoom:
        raise _no_room() from None
    except OSError as problem:
        if isinstance(unavailable(problem), DiskFull):
            raise _no_room() from problem
        raise


def _no_room() -> Rejected:
    seconds = round(RETRY_AFTER.total_seconds())
    headers = {**CLOSED, "Retry-After": str(seconds)}
    made = Rejected(507, "UNAVAILABLE", "There is no room for it now: try again later.", headers)
    made.extensions |= {"retryAfter": f"PT{seconds}S", "retryAfterSeconds": seconds}
    return made


async def reader(desk: Desk, request: Request, path: str) -> tuple[Context, str]:
    """Authenticate a download; return its context and the value of Cache-Control.

    A signed URL replaces a credential. `path` is the path that was signed, without the prefix that
    the app is mounted at. Raises Unauthenticated or Forbidden.
    """
    if "sig" in request.query_params:
        viewer = await signed_urls.viewer(desk.world, path, request.query_params)
        caching = "private, max-age=300"  # the signed URL is secret and lives longer
    else:
        viewer = await desk.sign_in(request.headers, client_address(request))
        caching = "private, no-cache"  # the next request may have another credential
    viewer.require(Needs(role=Role.USER, scope=Scope.MAIL_READ))
    return Context(desk.world, viewer, client_ip=client_address(request)), caching


async def received(desk: Desk, request: Request, spool: Spool) -> Received:
    """Read the whole body as a file, which exists until the spool is closed."""
    digest = await filled(desk, request, spool, desk.world.options.upload_max)
    kind, name = uploads.described(request.headers)
    return Received(await spool.source(), spool.size, digest, kind, name)
