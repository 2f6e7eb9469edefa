"""Bodies of uploads as they come: how long, how much, how many at once."""

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

CHECKPOINTS = 8  # parts of uploads that are stored at once: each is in memory
TOGETHER = 2  # large messages that are taken apart
DIGITS = 20  # of a number that is absurd
CLOSED = {"Connection": "close"}  # the rest of a body would have to be read otherwise


@dataclass(frozen=True, slots=True)
class Limits:
    """What uploads may take. Times are in seconds."""

    idle: float = 30  # until the next bytes
    longest: float = 3600  # until all are there
    yields: float = 3  # silence after which an upload is left to another request for it
    at_once: int = 8  # of one user
    budget: int = 1024 * MIB  # bytes on their way in, of all users together
    disk_reserve: int = 64 * MIB  # bytes that stay free beside the spool
    checkpoint: int = 4 * MIB  # bytes that a crash of ours may take from a body that comes


@dataclass(slots=True)
class Flow:
    """A body that is being taken, and the patience that is left with it."""

    heard: float = 0  # by the loop's clock
    waiting: asyncio.Timeout | None = None

    def hurry(self, patience: float) -> None:
        """Wait no longer than this, from the last bytes on: somebody else is there."""
        ends = self.waiting.when() if self.waiting else None
        if self.waiting and ends and not self.waiting.expired():
            self.waiting.reschedule(min(ends, self.heard + patience))


@dataclass(frozen=True, slots=True)
class Desk:
    """All that requests share."""

    world: World
    sign_in: SignIn
    spool: Path
    limits: Limits
    budget: Budget
    sending: Crowd  # users with uploads under way
    # large messages that are taken apart: each is in memory whole, and more than once
    apart: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TOGETHER))
    checkpoints: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKPOINTS))
    flows: dict[int, Flow] = field(default_factory=dict)  # of uploads in pieces, by their keys


async def admitted(desk: Desk, request: Request) -> Context:
    """The context of a user that has signed in. Unauthenticated, Forbidden."""
    viewer = await desk.sign_in(request.headers, client_address(request))
    viewer.require(Needs(role=Role.USER))
    return Context(desk.world, viewer, client_ip=client_address(request))


def declared(headers: Mapping[str, str]) -> int:
    """The size of the body as announced, 0 where it is not; the body is no form, and plain."""
    if graphql_request.compressed(headers):
        more = {"Accept-Encoding": "identity", **CLOSED}
        raise Rejected(415, "BAD_USER_INPUT", "The body must not be compressed.", more)
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        message = "The body is the file itself: a form of several parts is not taken."
        raise Rejected(415, "BAD_USER_INPUT", message, CLOSED)
    return number(headers, "content-length") or 0


def number(headers: Mapping[str, str], name: str) -> int | None:
    """The number that a header holds, None where there is none. It may be absurdly large."""
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise graphql_request.bad(f"{name.title()} is not a number.")
    return int(text) if len(text) < DIGITS else 1 << 64


def check_size(size: int, most: int) -> None:
    """Refuse a file that is too large."""
    if size > most:
        raise Rejected(413, "TOO_LARGE", f"A body has at most {most} bytes here.", CLOSED)


async def pieces(desk: Desk, request: Request, flow: Flow) -> AsyncGenerator[bytes]:
    """The body as it comes; TimeoutError where nothing comes for too long."""
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
    """Put the whole body into the spool; its SHA-256, hex. Refused above so many bytes."""
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
    """Count the uploads of a user that are under way: no more than a few at once."""
    if (seat := desk.sending.enter(user_id)) is None:
        text = f"{desk.limits.at_once} uploads are under way"
        raise RateLimited(text, retry_after=timedelta(seconds=1))
    try:
        yield
    finally:
        seat.leave()


@contextmanager
def roomy(desk: Desk, size: int) -> Generator[None]:
    """Refuse where the disk has no room for so many bytes, or turns out to be full."""
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
    """Who asks for the bytes at a path, and how the answer may be cached.

    The path is made anew from what it says: so the app may lie anywhere.
    """
    if "sig" in request.query_params:
        viewer = await signed_urls.viewer(desk.world, path, request.query_params)
        caching = "private, max-age=300"  # no longer than the address, which nobody else has
    else:
        viewer = await desk.sign_in(request.headers, client_address(request))
        caching = "private, no-cache"  # the next to ask may be somebody else
    viewer.require(Needs(role=Role.USER, scope=Scope.MAIL_READ))
    return Context(desk.world, viewer, client_ip=client_address(request)), caching


async def received(desk: Desk, request: Request, spool: Spool) -> Received:
    """The whole body, as it was announced; it stays as long as the spool does."""
    digest = await filled(desk, request, spool, desk.world.options.upload_max)
    kind, name = uploads.described(request.headers)
    return Received(await spool.source(), spool.size, digest, kind, name)
