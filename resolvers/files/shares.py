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

from mail.storage.blobs.blob_writer import StoredMessageBlobs, upsert_blob_rows
from models.errors import (
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    StaleObject,
    require_all_found,
    require_found,
)
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.files.tables import File, FileAttachmentMode, FileShare
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns
from models.throttling.policy import BanCause
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared
from resolvers.auth import credential_status, throttles
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.files import stored_files
from resolvers.files.uploads import ReceivedFile
from resolvers.pagination import read_all_by_keys, read_by_keys
from resolvers.throttling import client_failures

MAX_LINKS_PER_FILE = 100  # of one file
IDLE_LIFETIME = timedelta(days=100)  # without an end, a link expires so long after the last access
MAX_LIFETIME = timedelta(days=36_500)
KEY_BYTES, INCARNATION_BYTES, SIGNATURE_BYTES = 8, 8, 16  # sizes of the parts of a token


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
    incarnation_base: int = 0  # 0 in the first incarnation, left out of the token

    @property
    def signed_bytes(self) -> bytes:
        """The part of the token that is signed."""
        base = (
            self.incarnation_base.to_bytes(INCARNATION_BYTES, "big")
            if self.incarnation_base
            else b""
        )
        return self.share_id.to_bytes(KEY_BYTES, "big") + base


def create_share_token(environment: Environment, share_id: int) -> str:
    """Return the signed token in the address of a link."""
    signed_bytes = ShareToken(share_id, environment.incarnation.base).signed_bytes
    return _encode_token(signed_bytes + _token_signature(environment, signed_bytes))


def verify_and_parse_share_token(environment: Environment, token: str) -> ShareToken:
    """Parse the token of a link. Raises NotFound unless this server has signed it."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
    except ValueError:
        raise NotFound("", noun="Link to a file") from None
    signed_bytes, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    is_valid = len(signed_bytes) in (
        KEY_BYTES,
        KEY_BYTES + INCARNATION_BYTES,
    ) and hmac.compare_digest(signature, _token_signature(environment, signed_bytes))
    if not is_valid or _encode_token(raw) != token:
        raise NotFound("", noun="Link to a file")
    return ShareToken(
        int.from_bytes(signed_bytes[:KEY_BYTES], "big"),
        int.from_bytes(signed_bytes[KEY_BYTES:], "big"),
    )


def _is_share_of_token(environment: Environment, token: ShareToken) -> ColumnElement[bool]:
    """Return the SQL condition for the link that a token was created for.

    A token of an incarnation before a restore is valid only for links created before the restore.
    """
    is_share, incarnation = col(FileShare.id) == token.share_id, environment.incarnation
    if token.incarnation_base == incarnation.base:
        return is_share
    return (
        is_share & (col(FileShare.created_at) < incarnation.began_at)
        if incarnation.began_at
        else false()
    )


def _encode_token(raw: bytes) -> str:
    """Encode a token in its only valid form, since base64 has several for the same bytes."""
    return base64.urlsafe_b64encode(raw).decode()


def _token_signature(environment: Environment, raw: bytes) -> bytes:
    return hmac.digest(environment.signing_secret, b"share\n" + raw, hashlib.sha256)[
        :SIGNATURE_BYTES
    ]


def _is_not_expired(ctx: Context) -> ColumnElement[bool]:
    expires_at = col(FileShare.expires_at)
    return or_(expires_at.is_(None), expires_at > ctx.environment.now())


async def load_own_unexpired_shares_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's links, in the order of the ids; None if one is expired or unknown."""
    own_shares = select(*select_columns(FileShare)).where(
        is_own_or_shared(ctx, FileShare), _is_not_expired(ctx)
    )
    return await read_by_keys(ctx, own_shares, col(FileShare.id), ids)


async def load_visible_unexpired_shares_by_file(
    ctx: Context, file_ids: list[int]
) -> list[Sequence[ColumnRow]]:
    """Load the links of each file, oldest first: of the viewer's files, for a ROOT of all files."""
    is_visible_share = true() if ctx.viewer.role is Role.ROOT else is_own_or_shared(ctx, FileShare)
    visible_shares = select(*select_columns(FileShare)).where(
        is_visible_share, _is_not_expired(ctx)
    )
    return await read_all_by_keys(
        ctx, visible_shares.order_by(col(FileShare.id)), col(FileShare.file_id), file_ids
    )


async def create_share(ctx: Context, new_share: NewShare) -> int:
    """Create a link and return its id.

    Raises NotFound if the file is not the viewer's, InvalidInput, and LimitReached at 100 links of
    a file.
    """
    share = await validate_and_build_share(ctx, new_share)
    async with ctx.write_session(share.user_id) as session:
        await insert_shares(ctx, session, [share])
    return share.id


async def validate_and_build_share(ctx: Context, new_share: NewShare) -> FileShare:
    """Return a new link that `insert_shares` stores later, so that its address is known before.

    Raises NotFound if the file is not the viewer's, Forbidden without the scope MAIL, and
    InvalidInput.
    """
    owner_id, now = stored_files.require_writing_owner_id(ctx), ctx.environment.now()
    if new_share.mode is FileAttachmentMode.ATTACH:
        text = "The mode must be LINK, READ_ONLY_LINK or WRITABLE_LINK."
        raise InvalidInput(text, constraint=ValidationConstraint.UNSUPPORTED, path=["mode"])
    if new_share.expires_at is not None and not now < new_share.expires_at <= now + MAX_LIFETIME:
        raise InvalidInput(
            "The time must be in the future, at most P36500D from now.",
            constraint=ValidationConstraint.RANGE,
            path=["expiresAt"],
        )
    require_found(
        await ctx.load(stored_files.load_own_files_by_id, new_share.file_id),
        str(new_share.file_id),
        path=["file"],
    )
    password_hash = None
    if new_share.password is not None:
        password_hashes.validate_password(
            new_share.password, min_length=ctx.environment.options.passwords_min_length
        )
        password_hash = await password_hashes.hash_password(ctx.environment, new_share.password)
    return FileShare(
        id=ctx.environment.new_id(),
        user_id=owner_id,
        file_id=new_share.file_id,
        mode=new_share.mode,
        password=password_hash,
        expires_at=new_share.expires_at or now + IDLE_LIFETIME,
        idle=new_share.expires_at is None,
        created_at=now,
    )


async def insert_shares(ctx: Context, session: AsyncSession, shares: Sequence[FileShare]) -> None:
    """Insert links in a transaction of their owner, each for the present version of its file.

    Raises NotFound, and LimitReached at 100 links of a file or at the quota.
    """
    for row in shares:
        file: ColumnRow = require_found(
            await ctx.load(stored_files.load_own_files_by_id, row.file_id),
            str(row.file_id),
            path=["file"],
        )
        statement = select(func.count()).select_from(FileShare)
        ((link_count,),) = await ctx.read(statement.where(col(FileShare.file_id) == file.id))
        if link_count >= MAX_LINKS_PER_FILE:
            raise LimitReached(
                f"A file has at most {MAX_LINKS_PER_FILE} links.",
                limit=MAX_LINKS_PER_FILE,
                used=link_count,
            )
        if row.mode is FileAttachmentMode.READ_ONLY_LINK:
            row.blob_id, row.size, row.digest = file.blob_id, file.size, file.digest
            owner, size = row.user_id, file.size
            await ctx.environment.run_in_session(
                session, partial(_require_file_quota, owner_id=owner, size=size)
            )
        session.add(row)
    if shares:
        await _touch_files_and_journal_changes(
            ctx, session, shares[0].user_id, list({row.file_id: 1 for row in shares})
        )


def _require_file_quota(transaction: DatabaseTransaction, *, owner_id: int, size: int) -> None:
    stored_files.require_file_quota(transaction, owner_id, size)


async def delete_shares(ctx: Context, ids: Sequence[int]) -> None:
    """Delete links, all or none. Raises NotFound or Forbidden."""
    owner_id = stored_files.require_writing_owner_id(ctx)
    async with ctx.write_session(owner_id) as session:
        statement = delete(FileShare).where(
            is_own_or_shared(ctx, FileShare), col(FileShare.id).in_(ids)
        )
        columns = col(FileShare.id), col(FileShare.file_id)
        deleted = (await (await session.connection()).execute(statement.returning(*columns))).all()
        deleted_ids = {row.id for row in deleted}
        require_all_found(ids, deleted_ids, path=["fileShares"])
        if deleted:
            await _touch_files_and_journal_changes(
                ctx, session, owner_id, sorted({row.file_id for row in deleted})
            )


async def _touch_files_and_journal_changes(
    ctx: Context, session: AsyncSession, owner_id: int, file_ids: Sequence[int]
) -> None:
    """Record that the links of these files have changed."""
    statement = (
        update(File).where(col(File.id).in_(file_ids)).values(updated_at=ctx.environment.now())
    )
    await (await session.connection()).execute(statement)
    await ctx.record_change(session, owner_id, EventType.FILE_UPDATED, file_ids)


async def require_share_by_token_and_count_forgery(ctx: Context, token: str) -> ColumnRow:
    """Read the link of a token and its file.

    Raises NotFound if link or account is expired or disabled. A token that is not signed here
    counts as a failure of the client's network.

    Columns: `share_id`, `user_id`, `mode`, `password`, `filename`, `content_type`, `file_id`, and
    `size`, `digest` and `blob_id` of the shared version.
    """
    try:
        share_token = verify_and_parse_share_token(ctx.environment, token)
    except NotFound:
        await client_failures.count_failure_and_log_ban(ctx, BanCause.FORGED_LINK)
        raise
    columns = [
        col(FileShare.id).label("share_id"),
        *select_columns(FileShare, {"user_id", "mode", "password"}),
        *select_columns(File, {"filename", "content_type"}),
        col(File.id).label("file_id"),
        func.coalesce(col(FileShare.size), col(File.size)).label("size"),
        func.coalesce(col(FileShare.digest), col(File.digest)).label("digest"),
        func.coalesce(col(FileShare.blob_id), col(File.blob_id)).label("blob_id"),
    ]
    statement = (
        select(*columns)
        .join(File, col(File.id) == col(FileShare.file_id))
        .join(User, col(User.id) == col(FileShare.user_id))
        .where(
            _is_share_of_token(ctx.environment, share_token),
            _is_not_expired(ctx),
            credential_status.is_user_enabled_sql(),
        )
    )
    return require_found(next(iter(await ctx.read(statement)), None), noun="Link to a file")


async def check_share_password_and_count_failure(
    ctx: Context, share: ColumnRow, password: str | None
) -> bool:
    """Return whether this password opens the link. Raises RateLimited after too many wrong ones."""
    if share.password is None:
        return True
    if password is None:
        return False
    environment = ctx.environment
    throttle_key = f"share:{share.share_id}"
    limits = throttles.limits_of_password(environment.options, throttle_key, ctx.client_ip)
    with password_hashes.sign_in_slot(environment):
        await throttles.require_not_throttled(ctx, limits)
        if await password_hashes.check_password(environment, share.password, password):
            return True
    await client_failures.count_failure_and_log_ban(ctx, BanCause.LINK_PASSWORD, share.user_id)
    await throttles.count_failure_return_reached_keys(environment, limits)
    return False


async def count_access(ctx: Context, share: ColumnRow) -> None:
    """Count an access to a link, and extend an idle link. Raises NotFound."""
    now = ctx.environment.now()
    async with ctx.write_session() as session:
        connection = await session.connection()
        statement = update(FileShare).where(col(FileShare.id) == share.share_id)
        result = await connection.execute(
            statement.values(access_count=FileShare.access_count + 1, last_access_at=now)
        )
        if not result.rowcount:
            raise NotFound("", noun="Link to a file")
        await connection.execute(
            statement.where(col(FileShare.idle)).values(expires_at=now + IDLE_LIFETIME)
        )
        file_update = update(File).where(
            col(File.id) == share.file_id, col(File.used_at) <= now - stored_files.USED_AT_INTERVAL
        )
        await connection.execute(file_update.values(used_at=now))


def require_writable(share: ColumnRow) -> None:
    """Raise Forbidden if a link is read-only."""
    if share.mode is not FileAttachmentMode.WRITABLE_LINK:
        raise Forbidden("The link is read-only.")


async def replace_shared_file(
    ctx: Context, share: ColumnRow, received: ReceivedFile, *, expected_digest: str | None
) -> None:
    """Replace the bytes of the file of a link. The viewer of `ctx` is the owner of the link.

    Raises StaleObject if the digest of the file is no longer `expected_digest`, NotFound, and
    LimitReached.
    """

    def row_writer(stored_blobs: StoredMessageBlobs) -> stored_files.RowWriter:
        def replace_file_blob_or_raise_stale(transaction: DatabaseTransaction) -> int:
            now, owner = transaction.environment.now(), share.user_id
            live = select(col(FileShare.id)).where(
                col(FileShare.id) == share.share_id, _is_not_expired(ctx)
            )
            file_query = select(col(File.size), col(File.digest)).where(
                col(File.id) == share.file_id, live.exists()
            )
            file_row = require_found(
                transaction.connection.execute(file_query).first(), noun="Link to a file"
            )
            if expected_digest is not None and file_row.digest != expected_digest:
                raise StaleObject(current_modseq=0)
            stored_files.require_file_quota(transaction, owner, received.size - file_row.size)
            values = {
                "size": received.size,
                "digest": received.digest,
                "blob_id": upsert_blob_rows(transaction, stored_blobs)[stored_blobs.layout_digest],
                "updated_at": now,
                "used_at": now,
            }
            statement = update(File).where(col(File.id) == share.file_id)
            transaction.connection.execute(statement.values(**values))
            entry = JournalEntry(EventType.FILE_UPDATED, [share.file_id])
            transaction.record_entry(owner, entry, at=now)
            return int(share.file_id)

        return replace_file_blob_or_raise_stale

    await stored_files.store_blob_with_rows(ctx, received, row_writer)
