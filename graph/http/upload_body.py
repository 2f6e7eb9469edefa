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
from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import client_ip_address
from mail.smtp.spool_file import ByteBudget, OutOfSpoolSpace, SpoolFile, free_disk_bytes
from models.errors import RateLimited
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from models.runtime.options import MIB
from models.store.outages import RETRY_AFTER, DiskFull, storage_failure
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.files import signed_urls, uploads
from resolvers.files.uploads import ReceivedFile
from resolvers.viewer import GuardRule, Viewer

# headers, address
AuthenticateRequest = Callable[[Mapping[str, str], str | None], Awaitable[Viewer]]

MAX_CONCURRENT_PARTS = 8  # of uploads; each part is in memory
MAX_CONCURRENT_LARGE_MESSAGES = 2
MAX_DIGITS = 20  # longer numbers count as 2**64
CONNECTION_CLOSE = {"Connection": "close"}  # otherwise the rest of the body would have to be read


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """The limits of uploads. Times are in seconds."""

    idle_timeout: float = 30  # between two chunks
    body_timeout: float = 3600  # of the whole body
    yield_timeout: float = 3  # idle time after which another request can take the upload over
    max_per_user: int = 8  # concurrent uploads
    memory_budget: int = 1024 * MIB  # bytes of all uploads in progress
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool
    checkpoint_bytes: int = 4 * MIB  # received bytes that a crash can lose


@dataclass(slots=True)
class BodyFlow:
    """The state of a body that is being received."""

    received_at: float = 0  # time of the last chunk, by the event loop's clock
    idle_timeout: asyncio.Timeout | None = None

    def shorten_idle_timeout(self, seconds: float) -> None:
        """Shorten the idle timeout, counted from the last chunk, since another request waits."""
        idle_ends_at = self.idle_timeout.when() if self.idle_timeout else None
        if self.idle_timeout and idle_ends_at and not self.idle_timeout.expired():
            self.idle_timeout.reschedule(min(idle_ends_at, self.received_at + seconds))


@dataclass(frozen=True, slots=True)
class UploadService:
    """The limits, folders and limiters that all upload and download requests share."""

    environment: Environment
    authenticate_request: AuthenticateRequest
    spool: Path
    limits: UploadLimits
    budget: ByteBudget
    user_limiter: ConcurrencyLimiter
    # a large message that is parsed is in memory more than once
    large_message_slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_LARGE_MESSAGES)
    )
    part_slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_PARTS)
    )
    flows: dict[int, BodyFlow] = field(default_factory=dict)  # of resumable uploads, by ID


async def authenticated_context(service: UploadService, request: Request) -> Context:
    """Authenticate the request and return its context.

    Raises Unauthenticated or Forbidden if no user is signed in.
    """
    viewer = await service.authenticate_request(request.headers, client_ip_address(request))
    viewer.require(GuardRule(role=Role.USER))
    return Context(service.environment, viewer, client_ip=client_ip_address(request))


def require_raw_body_and_return_size(headers: Mapping[str, str]) -> int:
    """Return the announced size of the body in bytes, 0 without Content-Length.

    Raises RequestRejected for a compressed body or a multipart form.
    """
    if graphql_request.is_compressed(headers):
        error_headers = {"Accept-Encoding": "identity", **CONNECTION_CLOSE}
        raise RequestRejected(
            415, "BAD_USER_INPUT", "The body must not be compressed.", error_headers
        )
    if headers.get("content-type", "").strip().lower().startswith("multipart/"):
        message = "The body is the file itself: a form of several parts is not taken."
        raise RequestRejected(415, "BAD_USER_INPUT", message, CONNECTION_CLOSE)
    return integer_header_or_none(headers, "content-length") or 0


def integer_header_or_none(headers: Mapping[str, str], name: str) -> int | None:
    """Return the integer of a header, None without the header; 2**64 if it has many digits.

    Raises RequestRejected if it is not a number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise graphql_request.bad_request(f"{name.title()} is not a number.")
    return int(text) if len(text) < MAX_DIGITS else 1 << 64


def require_upload_size_within(size: int, max_size: int) -> None:
    """Raise RequestRejected with status 413 if a file is too large."""
    if size > max_size:
        raise RequestRejected(
            413, "TOO_LARGE", f"The body can have at most {max_size} bytes.", CONNECTION_CLOSE
        )


async def stream_body_with_idle_timeout(
    service: UploadService, request: Request, body_flow: BodyFlow
) -> AsyncGenerator[bytes]:
    """Yield the chunks of a body. Raises TimeoutError if no chunk comes in time."""
    loop = asyncio.get_running_loop()
    async with aclosing(request.stream()) as stream:
        while True:
            body_flow.received_at = loop.time()
            async with asyncio.timeout(service.limits.idle_timeout) as body_flow.idle_timeout:
                chunk = await anext(stream, None)
            body_flow.idle_timeout = None
            if chunk is None:
                return
            yield chunk


async def write_body_to_spool_and_hash(
    service: UploadService, request: Request, spool: SpoolFile, max_size: int
) -> str:
    """Write the whole body to the spool file and return its SHA-256 in hex.

    Raises RequestRejected if the body is too large or too slow.
    """
    digest = hashlib.sha256()
    try:
        async with (
            asyncio.timeout(service.limits.body_timeout),
            aclosing(stream_body_with_idle_timeout(service, request, BodyFlow())) as body,
        ):
            async for chunk in body:
                require_upload_size_within(spool.size + len(chunk), max_size)
                digest.update(chunk)
                await spool.append(chunk)
    except TimeoutError:
        message = "The body was not received in time."
        raise RequestRejected(408, "DEADLINE_EXCEEDED", message, CONNECTION_CLOSE) from None
    return digest.hexdigest()


@contextmanager
def acquire_user_upload_slot(service: UploadService, user_id: int) -> Generator[None]:
    """Count an upload of a user. Raises RateLimited if the user has too many at once."""
    if (slot := service.user_limiter.acquire(user_id)) is None:
        text = f"{service.limits.max_per_user} uploads are in progress."
        raise RateLimited(text, retry_after=timedelta(seconds=1))
    try:
        yield
    finally:
        slot.release()


@contextmanager
def require_upload_disk_space(service: UploadService, size: int) -> Generator[None]:
    """Raise RequestRejected with status 507 if the disk can't store `size` bytes or is full."""
    try:
        if free_disk_bytes(service.spool) < size + service.limits.disk_reserve:
            raise OutOfSpoolSpace
        yield
    except OutOfSpoolSpace:
        raise _disk_full_rejection() from None
    except OSError as problem:
        if isinstance(storage_failure(problem), DiskFull):
            raise _disk_full_rejection() from problem
        raise


def _disk_full_rejection() -> RequestRejected:
    seconds = round(RETRY_AFTER.total_seconds())
    headers = {**CONNECTION_CLOSE, "Retry-After": str(seconds)}
    rejection = RequestRejected(
        507,
        "UNAVAILABLE",
        "The server has no space for the upload at the moment. Try again later.",
        headers,
    )
    rejection.extensions |= {"retryAfter": f"PT{seconds}S", "retryAfterSeconds": seconds}
    return rejection


async def authenticate_download_and_choose_caching(
    service: UploadService, request: Request, path: str
) -> tuple[Context, str]:
    """Authenticate a download; return its context and the value of Cache-Control.

    A signed URL replaces a credential. `path` is the path that was signed, without the prefix that
    the app is mounted at. Raises Unauthenticated or Forbidden.
    """
    client_ip = client_ip_address(request)
    if "sig" in request.query_params:
        viewer = await signed_urls.read_only_viewer_of_signed_path(
            service.environment, path, request.query_params, ip=client_ip
        )
        caching = "private, max-age=300"  # the signed URL is secret and lives longer
    else:
        viewer = await service.authenticate_request(request.headers, client_ip)
        caching = "private, no-cache"  # the next request may have another credential
    viewer.require(GuardRule(role=Role.USER, scope=Scope.MAIL_READ))
    return Context(service.environment, viewer, client_ip=client_ip), caching


async def receive_file_into_spool(
    service: UploadService, request: Request, spool: SpoolFile
) -> ReceivedFile:
    """Read the whole body as a file, which exists until the spool is closed."""
    digest = await write_body_to_spool_and_hash(
        service, request, spool, service.environment.options.upload_max_size
    )
    kind, name = uploads.type_and_name_from_headers(request.headers)
    return ReceivedFile(await spool.raw_message(), spool.size, digest, kind, name)
