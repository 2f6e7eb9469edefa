"""Create, list, read and delete stored files."""

import mimetypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import Gone, Kept, blob_ids, find_stored, keep
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.message_layout import Piece
from mail.storage.blobs.object_stores import object_name
from models.errors import Forbidden, Invalid, LimitReached, NotFound, all_found, check_limit, found
from models.events.journal import ChangeKind, Entry
from models.files.blobs import Blob, Upload
from models.files.tables import File, FileShare
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Scope
from models.users.tables import User
from resolvers import pagination
from resolvers.access import own, records, visible
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.files.uploads import OPAQUE, Received
from resolvers.messages.content_access import shown
from resolvers.pagination import Scan, by_keys
from resolvers.sql_text import within

MOST = 10_000  # of one user
NEWEST = "files-"
PLACE = (col(File.created_at), col(File.id))
CONTENT = frozenset({"filename", "digest"})  # hidden for files of other users
USED = timedelta(days=1)  # between two updates of `used_at`
_TYPES = mimetypes.MimeTypes()  # only Python's own table, the same on every machine

Store = Callable[[Turn], int]  # writes the rows of a file in a transaction; returns its id


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to store: its bytes, or the upload with its bytes."""

    content: bytes | None = None
    upload_id: int | None = None
    filename: str | None = None
    content_type: str | None = None
    usual: str = OPAQUE  # if neither `content_type` nor the name gives one


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of a user's files, newest first, with the requested columns."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    query: str | None = None  # part of the file name, case-insensitive


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's files, in the order of the ids; None for an unknown id."""
    theirs = select(*picked(File)).where(visible(ctx, File))
    return await by_keys(ctx, theirs, col(File.id), ids)


async def seen_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the files that the viewer sees, in the order of the ids; None for any other id.

    Name and digest of other users' files are withheld unless the viewer may read their content.
    """
    rows = await ctx.read(select(*picked(File)).where(records(ctx, File), col(File.id).in_(ids)))
    found = {row.id: row for row in await shown(ctx, rows, CONTENT)}
    return [found.get(key) for key in ids]


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load pages of files, each in reading order."""
    columns = frozenset({"id", "user_id", "created_at"}).union(*(key.columns for key in keys))
    scans = []
    for key in keys:
        rows = select(*picked(File, columns)).where(*_of(ctx, key))
        scans.append(Scan(rows, key.ask, PLACE, falling=True))
    there = await pagination.pages(ctx, scans)
    return [replace(page, rows=await shown(ctx, page.rows, CONTENT)) for page in there]


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the files of each list, in the order of the keys."""
    many = func.count().label("many")
    scans = [select(many).select_from(File).where(*_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


def _of(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(File.user_id) == key.user_id, records(ctx, File)]
    return [*terms, within(col(File.filename), key.query)] if key.query else terms


def permit(ctx: Context) -> int:
    """Return the owner of the viewer's files.

    Raises Forbidden without the scope MAIL or if read-only.
    """
    owner = own(ctx)
    ctx.viewer.require_scope(Scope.MAIL)
    if ctx.viewer.read_only:
        raise Forbidden("this credential is for reading only", requires="a credential that writes")
    return owner


async def create(ctx: Context, received: Received) -> int:
    """Store a file received over HTTP and return its id. Raises Forbidden or LimitReached."""
    owner = permit(ctx)
    return await stored(ctx, received, lambda kept: _made(ctx, owner, kept, received))


async def upload(ctx: Context, new: NewFile) -> int:
    """Store a file and return its id.

    The object of an upload becomes the object of the file. Raises NotFound if the upload does not
    exist, Invalid, Forbidden, and LimitReached at 10,000 files or the quota.
    """
    if new.upload_id is None:
        most = ctx.world.options.upload_max
        content = new.content or b""
        check_limit(len(content), most, f"a file has at most {most} bytes", path=["content"])
        name, kind = _described(ctx.world, new.filename, new.content_type, new.usual)
        digest = digest_of(content)
        return await create(ctx, Received(content, len(content), digest, kind, name))
    owner = permit(ctx)
    sent = await ctx.load(uploads.by_ids, new.upload_id)
    row: Picked = found(sent, str(new.upload_id), path=["content"])
    name, kind = _described(
        ctx.world, new.filename or row.filename, new.content_type, row.content_type
    )
    received = Received(b"", row.size, row.digest, kind, name)
    tenant = await tenant_of(ctx, owner)
    kept = await raw(ctx.world, tenant, received, row.blob_name)

    def unit(turn: Turn) -> int:
        gone = delete(Upload).where(col(Upload.id) == row.id, col(Upload.user_id) == owner)
        if not turn.connection.execute(gone).rowcount:
            raise NotFound(str(row.id), path=["content"])
        return _made(ctx, owner, kept, received)(turn)

    async with ctx.write(owner) as session:
        return await ctx.world.join(session, unit)


async def stored(ctx: Context, received: Received, rows: Callable[[Kept], Store]) -> int:
    """Store a blob, then write its rows in one transaction.

    `row_writer_for` returns the row writer for the stored blob. Returns the id that it returns.
    """
    world, owner = ctx.world, own(ctx)
    tenant = await tenant_of(ctx, owner)
    try:
        return await _written(ctx, owner, rows(await _kept(world, tenant, received)))
    except Gone:
        return await _written(ctx, owner, rows(await _kept(world, tenant, received)))


async def _written(ctx: Context, owner: int, store: Store) -> int:
    async with ctx.write(owner) as session:
        return await ctx.world.join(session, store)


async def _kept(world: World, tenant: int, received: Received) -> Kept:
    """Store the bytes: compressed if they are in memory, else uncompressed from the file."""
    if isinstance(received.source, bytes):
        return await keep(world, tenant, Piece(received.digest, received.source), ())
    name = object_name(received.digest, world.key())
    await uploads.put(world, name, received.source)
    return await raw(world, tenant, received, name)


async def raw(world: World, tenant: int, received: Received, name: str) -> Kept:
    """Return the blob rows of an uncompressed object, which replaces a damaged blob."""
    before = await find_stored(world, tenant, [received.digest])
    row = {
        "id": world.key(),
        "tenant_id": tenant,
        "digest": received.digest,
        "size": received.size,
        "stored_size": received.size,
        "codec": "raw",
        "name": name,
        "data": None,
        "created_at": world.now(),
    }
    return Kept(received.digest, [row], [], tenant, before.damaged)


async def tenant_of(ctx: Context, user_id: int) -> int:
    """Read the tenant that owns the blobs of an account."""
    asked = select(col(User.tenant_id)).where(col(User.id) == user_id)
    return int((await ctx.read(asked))[0].tenant_id)


def _made(ctx: Context, owner: int, kept: Kept, received: Received) -> Store:
    def store(turn: Turn) -> int:
        check_room(turn, owner, received.size, files=1)
        key, now = turn.world.key(), turn.world.now()
        row = {
            "id": key,
            "user_id": owner,
            "filename": received.filename or _name(turn.world, received.content_type),
            "content_type": received.content_type,
            "size": received.size,
            "digest": received.digest,
            "blob_id": blob_ids(turn, kept)[kept.root],
            "created_at": now,
            "updated_at": now,
            "used_at": now,
        }
        turn.connection.execute(insert(File), row)
        turn.record(owner, Entry(ChangeKind.FILE_CHANGED, [key], origin=ctx.origin), at=now)
        return key

    return store


def check_room(turn: Turn, owner: int, size: int, *, files: int = 0) -> None:
    """Raise LimitReached if these bytes and files exceed the limits of an account.

    A read-only copy for a link counts like a file, since the file can change after it.
    """
    mine, copies = col(File.user_id) == owner, col(FileShare.user_id) == owner
    asked = select(
        func.count(),
        func.coalesce(func.sum(col(File.size)), 0),
        select(func.coalesce(func.sum(col(FileShare.size)), 0)).where(copies).scalar_subquery(),
    ).where(mine)
    many, used, copied = turn.connection.execute(asked).one()
    if many + files > MOST:
        raise LimitReached(f"at most {MOST} files", limit=MOST, used=many)
    limit, used = turn.world.options.files_quota, int(used) + int(copied)
    if limit and used + size > limit:
        raise LimitReached(f"files have {limit} bytes in all", limit=limit, used=used)


def described(world: World, filename: str, content_type: str) -> tuple[str, str]:
    """Return name and media type of a file from its HTTP headers. Raises Invalid."""
    return _described(world, filename, None if content_type == OPAQUE else content_type, OPAQUE)


def _described(
    world: World, filename: str | None, content_type: str | None, usual: str
) -> tuple[str, str]:
    name = uploads.name_of(filename or "")
    if name is not None and not name.isprintable():
        raise Invalid("a name is printable", constraint="pattern", path=["filename"])
    guessed = _TYPES.guess_type(name)[0] if name else None
    told = (content_type or "").partition(";")[0].strip().lower()
    given = uploads.kind_of(told) if told else None
    if given == OPAQUE != told:
        raise Invalid("not a media type", constraint="pattern", path=["contentType"])
    kind = given or guessed or usual
    return name or _name(world, kind), kind


def _name(world: World, kind: str) -> str:
    """Return a file name with the date, for a file without a name."""
    return f"upload-{world.now():%Y-%m-%d}{_TYPES.guess_extension(kind) or ''}"


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete files with their links, all or none. Raises NotFound or Forbidden."""
    owner = permit(ctx)
    async with ctx.write(owner) as session:
        all_found(ids, await removed(ctx, session, ids))


async def removed(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> set[int]:
    """Delete files of the viewer in the caller's transaction, and return their ids."""
    these = delete(File).where(visible(ctx, File), col(File.id).in_(ids))
    answer = await (await session.connection()).execute(these.returning(col(File.id)))
    gone = set(answer.scalars())
    if gone:
        await ctx.record(session, own(ctx), ChangeKind.FILE_CHANGED, sorted(gone))
    return gone


async def fetched(ctx: Context, row: Picked) -> Picked:
    """Return the blob of a file, and update the time of its last use once a day.

    Raises NotFound.
    """
    now = ctx.world.now()
    if row.used_at <= now - USED:
        async with ctx.aside() as (_, session):
            this = update(File).where(col(File.id) == row.id).values(used_at=now)
            await (await session.connection()).execute(this)
    return await blob(ctx, row.blob_id)


async def blob(ctx: Context, key: int) -> Picked:
    """Read the row of a blob. Raises NotFound if it no longer exists."""
    asked = select(*picked(Blob)).where(col(Blob.id) == key)
    return found(next(iter(await ctx.read(asked)), None), str(key))
