"""Create, follow, write to, and delete links to files."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, delete, false, func, or_, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import Kept, blob_ids
from models.errors import Forbidden, Invalid, LimitReached, NotFound, Stale, all_found, found
from models.events.journal import ChangeKind, Entry
from models.files.tables import File, FileAttachmentMode, FileShare
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import visible
from resolvers.auth import credential_status, throttles
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.files import stored_files
from resolvers.files.uploads import Received
from resolvers.pagination import all_by_keys, by_keys

MOST = 100  # of one file
IDLE = timedelta(days=100)  # without an end, a link expires so long after the last access
LONGEST = timedelta(days=36_500)
KEY, BASE, MARK = 8, 8, 16  # sizes of the parts of a token


@dataclass(frozen=True, slots=True)
class NewShare:
    """The settings of a new link."""

    file_id: int
    mode: FileAttachmentMode = FileAttachmentMode.LINK
    expires_at: datetime | None = None  # None: 100 days after the last access
    password: str | None = None


@dataclass(frozen=True, slots=True)
class ShareToken:
    """The id of a link and the incarnation of the store that created its token."""

    share_id: int
    base: int = 0  # 0 in the first incarnation, left out of the token

    @property
    def raw(self) -> bytes:
        """The part of the token that is signed."""
        base = self.base.to_bytes(BASE, "big") if self.base else b""
        return self.share_id.to_bytes(KEY, "big") + base


def token_of(world: World, key: int) -> str:
    """Return the signed token in the address of a link."""
    raw = ShareToken(key, world.incarnation.base).raw
    return _written(raw + _mark(world, raw))


def read_token(world: World, text: str) -> ShareToken:
    """Parse the token of a link. Raises NotFound unless this server has signed it."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii"))
    except ValueError:
        raise NotFound("share") from None
    said, mark = raw[:-MARK], raw[-MARK:]
    known = len(said) in (KEY, KEY + BASE) and hmac.compare_digest(mark, _mark(world, said))
    if not known or _written(raw) != text:
        raise NotFound("share")
    return ShareToken(int.from_bytes(said[:KEY], "big"), int.from_bytes(said[KEY:], "big"))


def _opens(world: World, token: ShareToken) -> ColumnElement[bool]:
    """Return the SQL condition for the link that a token was created for.

    A token of an incarnation before a restore is valid only for links created before the restore.
    """
    this, now = col(FileShare.id) == token.share_id, world.incarnation
    if token.base == now.base:
        return this
    return this & (col(FileShare.created_at) < now.began_at) if now.began_at else false()


def _written(raw: bytes) -> str:
    """Encode a token in its only valid form, since base64 has several for the same bytes."""
    return base64.urlsafe_b64encode(raw).decode()


def _mark(world: World, raw: bytes) -> bytes:
    return hmac.digest(world.secret, b"share\n" + raw, hashlib.sha256)[:MARK]


def _live(ctx: Context) -> ColumnElement[bool]:
    ends = col(FileShare.expires_at)
    return or_(ends.is_(None), ends > ctx.world.now())


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's links, in the order of the ids; None if one is expired or unknown."""
    theirs = select(*picked(FileShare)).where(visible(ctx, FileShare), _live(ctx))
    return await by_keys(ctx, theirs, col(FileShare.id), ids)


async def of_files(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """Load the links of each file, oldest first: of the viewer's files, for a ROOT of all files."""
    seen = true() if ctx.viewer.role is Role.ROOT else visible(ctx, FileShare)
    theirs = select(*picked(FileShare)).where(seen, _live(ctx))
    return await all_by_keys(ctx, theirs.order_by(col(FileShare.id)), col(FileShare.file_id), ids)


async def create(ctx: Context, new: NewShare) -> int:
    """Create a link and return its id.

    Raises NotFound if the file is not the viewer's, Invalid, and LimitReached at 100 links of a
    file.
    """
    made = await prepared(ctx, new)
    async with ctx.write(made.user_id) as session:
        await add(ctx, session, [made])
    return made.id


async def prepared(ctx: Context, new: NewShare) -> FileShare:
    """Return a new link that `insert_shares` stores later, so that its address is known before.

    Raises NotFound if the file is not the viewer's, Forbidden without the scope MAIL, and Invalid.
    """
    owner, now = stored_files.permit(ctx), ctx.world.now()
    if new.mode is FileAttachmentMode.ATTACH:
        text = "a link is LINK, SHARE_RO or SHARE_RW"
        raise Invalid(text, constraint="unsupported", path=["mode"])
    if new.expires_at is not None and not now < new.expires_at <= now + LONGEST:
        raise Invalid("a link ends in the future", constraint="range", path=["expiration"])
    found(await ctx.load(stored_files.by_ids, new.file_id), str(new.file_id), path=["file"])
    stored = None
    if new.password is not None:
        password_hashes.checked(new.password, least=ctx.world.options.password_min)
        stored = await password_hashes.make(ctx.world, new.password)
    return FileShare(
        id=ctx.world.key(),
        user_id=owner,
        file_id=new.file_id,
        mode=new.mode,
        password=stored,
        expires_at=new.expires_at or now + IDLE,
        idle=new.expires_at is None,
        created_at=now,
    )


async def add(ctx: Context, session: AsyncSession, made: Sequence[FileShare]) -> None:
    """Insert links in a transaction of their owner, each for the present version of its file.

    Raises NotFound, and LimitReached at 100 links of a file or at the quota.
    """
    for row in made:
        file: Picked = found(
            await ctx.load(stored_files.by_ids, row.file_id), str(row.file_id), path=["file"]
        )
        many = select(func.count()).select_from(FileShare)
        ((used,),) = await ctx.read(many.where(col(FileShare.file_id) == file.id))
        if used >= MOST:
            raise LimitReached(f"at most {MOST} links to a file", limit=MOST, used=used)
        if row.mode is FileAttachmentMode.SHARE_RO:
            row.blob_id, row.size, row.digest = file.blob_id, file.size, file.digest
            owner, size = row.user_id, file.size
            await ctx.world.join(session, partial(_check_room, owner_id=owner, size=size))
        session.add(row)
    if made:
        await _changed(ctx, session, made[0].user_id, list({row.file_id: 1 for row in made}))


def _check_room(turn: Turn, *, owner_id: int, size: int) -> None:
    stored_files.check_room(turn, owner_id, size)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete links, all or none. Raises NotFound or Forbidden."""
    owner = stored_files.permit(ctx)
    async with ctx.write(owner) as session:
        these = delete(FileShare).where(visible(ctx, FileShare), col(FileShare.id).in_(ids))
        columns = col(FileShare.id), col(FileShare.file_id)
        gone = (await (await session.connection()).execute(these.returning(*columns))).all()
        there = {row.id for row in gone}
        all_found(ids, there)
        if gone:
            await _changed(ctx, session, owner, sorted({row.file_id for row in gone}))


async def _changed(
    ctx: Context, session: AsyncSession, owner: int, file_ids: Sequence[int]
) -> None:
    """Record that the links of these files have changed."""
    these = update(File).where(col(File.id).in_(file_ids)).values(updated_at=ctx.world.now())
    await (await session.connection()).execute(these)
    await ctx.record(session, owner, ChangeKind.FILE_CHANGED, file_ids)


async def reached(ctx: Context, token: str) -> Picked:
    """Read the link of a token and its file.

    Raises NotFound if link or account is expired or disabled.

    Columns: `share_id`, `user_id`, `mode`, `password`, `filename`, `content_type`, `file_id`, and
    `size`, `digest` and `blob_id` of the shared version.
    """
    columns = [
        col(FileShare.id).label("share_id"),
        *picked(FileShare, {"user_id", "mode", "password"}),
        *picked(File, {"filename", "content_type"}),
        col(File.id).label("file_id"),
        func.coalesce(col(FileShare.size), col(File.size)).label("size"),
        func.coalesce(col(FileShare.digest), col(File.digest)).label("digest"),
        func.coalesce(col(FileShare.blob_id), col(File.blob_id)).label("blob_id"),
    ]
    asked = (
        select(*columns)
        .join(File, col(File.id) == col(FileShare.file_id))
        .join(User, col(User.id) == col(FileShare.user_id))
        .where(
            _opens(ctx.world, read_token(ctx.world, token)),
            _live(ctx),
            credential_status.open_users(),
        )
    )
    return found(next(iter(await ctx.read(asked)), None), "share")


async def admitted(ctx: Context, share: Picked, password: str | None) -> bool:
    """Return whether this password opens the link. Raises RateLimited after too many wrong ones."""
    if share.password is None:
        return True
    if password is None:
        return False
    world = ctx.world
    counted = f"share:{share.share_id}"
    limits = throttles.by_name_and_network(world.options, counted, ctx.client_ip)
    with password_hashes.admitted(world):
        await throttles.check(ctx, limits)
        if await password_hashes.check(world, share.password, password):
            return True
    await throttles.count(world, limits)
    return False


async def opened(ctx: Context, share: Picked) -> Picked:
    """Count an access to a link, extend an idle link, and return the blob behind it.

    Raises NotFound.
    """
    now = ctx.world.now()
    async with ctx.write() as session:
        connection = await session.connection()
        this = update(FileShare).where(col(FileShare.id) == share.share_id)
        counted = await connection.execute(
            this.values(access_count=FileShare.access_count + 1, last_access_at=now)
        )
        if not counted.rowcount:
            raise NotFound("share")
        await connection.execute(this.where(col(FileShare.idle)).values(expires_at=now + IDLE))
        used = update(File).where(
            col(File.id) == share.file_id, col(File.used_at) <= now - stored_files.USED
        )
        await connection.execute(used.values(used_at=now))
    return await stored_files.blob(ctx, share.blob_id)


def writable(share: Picked) -> None:
    """Raise Forbidden if a link is read-only."""
    if share.mode is not FileAttachmentMode.SHARE_RW:
        raise Forbidden("this link is for reading only")


async def write(ctx: Context, share: Picked, received: Received, *, seen: str | None) -> None:
    """Replace the bytes of the file of a link. The viewer of `ctx` is the owner of the link.

    Raises Stale if the digest of the file is no longer `expected_digest`, NotFound, and
    LimitReached.
    """

    def rows(kept: Kept) -> stored_files.Store:
        def store(turn: Turn) -> int:
            now, owner = turn.world.now(), share.user_id
            live = select(col(FileShare.id)).where(col(FileShare.id) == share.share_id, _live(ctx))
            here = select(col(File.size), col(File.digest)).where(
                col(File.id) == share.file_id, live.exists()
            )
            there = found(turn.connection.execute(here).first(), "share")
            if seen is not None and there.digest != seen:
                raise Stale(current_modseq=0)
            stored_files.check_room(turn, owner, received.size - there.size)
            values = {
                "size": received.size,
                "digest": received.digest,
                "blob_id": blob_ids(turn, kept)[kept.root],
                "updated_at": now,
                "used_at": now,
            }
            this = update(File).where(col(File.id) == share.file_id)
            turn.connection.execute(this.values(**values))
            entry = Entry(ChangeKind.FILE_CHANGED, [share.file_id])
            turn.record(owner, entry, at=now)
            return int(share.file_id)

        return store

    await stored_files.stored(ctx, received, rows)
