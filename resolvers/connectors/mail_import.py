"""Queue one-time imports of an archive, or of an account here or on another server."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes import paths
from mail.storage.blobs.blob_writer import blob_ids
from models.connectors import Connector, ConnectorRun, Protocol, Security
from models.errors import Invalid, LimitReached, NotFound
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Turn
from models.store.columns import Picked, table_of
from models.transfer import ImportArchive
from models.users.roles import UserPermission
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.connectors import credentials
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import OF_OTHERS
from resolvers.connectors.mutations import wake
from resolvers.connectors.one_time_imports import Order
from resolvers.connectors.schedule import queued
from resolvers.context import Context, Needs
from resolvers.files.stored_files import raw
from resolvers.files.uploads import Received
from resolvers.mailboxes.loaders import Named
from resolvers.messages.content_access import openable, witnessed
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer import imports
from resolvers.users.selection import MINE, Users, chosen, managed_one

WAITING = 10  # of one account
ELSEWHERE = Needs(user_permission=UserPermission.SYNCJOBS)


@dataclass(frozen=True, slots=True)
class Remote:
    """An account on another server: the columns of a connector to it, and the password."""

    given: Mapping[str, Any]
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewMailImport:
    """The source of an import and the accounts that it imports to. One source is given."""

    users: Users = MINE
    upload_id: int | None = None
    path: str | None = None
    remote: Remote | None = None
    user_id: int | None = None
    below: Named | None = None  # all mailboxes are created in this one
    where: MessageWhere | None = None
    subscribe: bool = False


@dataclass(frozen=True, slots=True)
class _Made:
    """The columns that the connectors of an import have in common, their secret, and the upload."""

    values: Mapping[str, Any]
    secret: Mapping[str, Any] | None = None
    upload: tuple[Received, str] | None = None  # the bytes and the name of their object


@dataclass(frozen=True, slots=True)
class _Job:
    """A validated import that is ready to be stored."""

    new: NewMailImport
    users: Sequence[Picked]
    below: Mapping[int, str | None]  # by user id
    made: _Made


async def create(ctx: Context, new: NewMailImport) -> list[int]:
    """Queue a run for each account and return the run ids, in the order of the account ids.

    Raises Forbidden, Invalid, NotFound, and LimitReached if an account has ten unfinished imports.
    """
    users = await chosen(ctx, new.users)
    owners = [user.id for user in users]
    if set(owners) - {ctx.viewer.user_id}:
        ctx.viewer.require(OF_OTHERS)
    below = await _folders(ctx, owners, new.below)
    made = await _made(ctx, new, owners)
    if not users:
        return []
    job = _Job(new, users, below, made)
    async with ctx.write(*owners) as session:
        await _check_room(ctx, owners)
        runs = await _queue(ctx, session, job)
        await _keep(ctx, session, job, runs)
        others = [user for user in users if user.id != ctx.viewer.user_id]
        after = {"source": made.values["protocol"], "path": new.path}
        await admin_log.note(ctx, session, *(
            Done("mailImport", "User", user.id, user.domain_id, None, after) for user in others
        ))  # fmt: skip
    wake(ctx)
    return runs


async def _made(ctx: Context, new: NewMailImport, owners: Sequence[int]) -> _Made:
    """Return the source of an import. Raises Forbidden, Invalid or NotFound if it can't be used."""
    where = None if new.where is None or new.where.everything else new.where
    if where and new.user_id is None:
        filter_match.check(where)
    order = Order(
        new.path, new.user_id, filter_match.plain(where) if where else None, subscribe=new.subscribe
    )
    local = {"host": "", "port": 0, "security": Security.PLAIN, "mechanism": "", "username": ""}
    if new.remote is not None:
        ctx.viewer.require(ELSEWHERE)
        return _elsewhere(ctx, new.remote, order)
    if new.user_id is not None:
        await _check_account(ctx, new.user_id, owners, where)
        values = {**local, "protocol": Protocol.USER, "name": "account"}
        return _Made({**values, "bringing": order})
    values = {**local, "protocol": Protocol.ARCHIVE, "name": "archive"}
    if new.path is not None:
        await imports.check_path(ctx, new.path, ["source", "path"])
        return _Made({**values, "bringing": order})
    upload = await imports.sent(ctx, new.upload_id or 0, ["source", "upload"])
    return _Made({**values, "bringing": order}, upload=upload)


def _elsewhere(ctx: Context, remote: Remote, order: Order) -> _Made:
    try:
        values = connector_validation.checked(remote.given, {}, ctx.world.options)
        word = connector_validation.secret(remote.password)
        client = (remote.given.get("oauth") or {}).get("client_secret")
        if client:
            client = connector_validation.secret(client, "oauth", "clientSecret")
    except Invalid as problem:
        path = ["source", "remote", *problem.path]
        raise Invalid(
            problem.message, constraint=problem.constraint, path=path, index=problem.index
        ) from None
    return _Made({**values, "bringing": order}, {"password": word, "client": client or None})


async def _check_account(
    ctx: Context, user_id: int, owners: Sequence[int], where: MessageWhere | None
) -> None:
    """Raise Forbidden, NotFound or Invalid if the viewer may not import from this account.

    Reading another account's mail is recorded in its security log.
    """
    path = ["source", "user"]
    if user_id in owners:
        raise Invalid("the mail is in this account already", constraint="other", path=path)
    openable(ctx, user_id)
    await managed_one(ctx, user_id, path="source")
    if user_id != ctx.viewer.user_id:
        await witnessed(ctx, [user_id])
    if where:
        await Selection(where=where).looked(ctx, [user_id])  # fails now instead of in each run


async def _folders(
    ctx: Context, owners: Sequence[int], below: Named | None
) -> Mapping[int, str | None]:
    """Return the path of the mailbox of each account in which all others are created.

    Raises NotFound if an account has no such mailbox, and Invalid if the reference can't be used.
    """
    path = ["parentMailbox"]
    if below is None:
        return dict.fromkeys(owners)
    if below.path is not None:
        return dict.fromkeys(owners, paths.checked_path(below.path, path_in=path))
    if below.special_use is None and len(owners) > 1:
        text = "for several accounts a folder goes by its path or role"
        raise Invalid(text, constraint="unsupported", path=path)
    by = "special_use" if below.special_use is not None else "id" if below.id else "guid"
    asked = select(col(Mailbox.user_id), col(Mailbox.path)).where(
        col(Mailbox.user_id).in_(owners), col(getattr(Mailbox, by)) == getattr(below, by)
    )
    found = {row.user_id: row.path for row in await ctx.read(asked)}
    if set(owners) - set(found):
        raise NotFound(str(below), path=path)
    return found


async def _check_room(ctx: Context, owners: Sequence[int]) -> None:
    """Raise LimitReached if an account has too many unfinished imports."""
    many = func.count().label("many")
    mine = (
        col(Connector.user_id).in_(owners),
        col(Connector.once),
        col(Connector.next_run_at).is_not(None),
    )
    asked = select(col(Connector.user_id), many).where(*mine).group_by(col(Connector.user_id))
    used = max((row.many for row in await ctx.read(asked)), default=0)
    if used >= WAITING:
        text = f"{WAITING} imports of an account wait or run"
        raise LimitReached(text, limit=WAITING, used=used, path=["users"])


async def _queue(ctx: Context, session: AsyncSession, job: _Job) -> list[int]:
    """Insert a hidden connector and a queued run of it for each account; returns the run ids."""
    world, now, made = ctx.world, ctx.world.now(), job.made
    order: Order = made.values["bringing"]
    connectors, runs = list[Connector](), list[ConnectorRun]()
    for user in job.users:
        key, run = world.key(), world.key()
        mine = {**asdict(order), "below": job.below[user.id]}
        row: dict[str, Any] = {
            **made.values,
            "id": key,
            "user_id": user.id,
            "secret": credentials.sealed(world, key, made.secret) if made.secret else "",
            "target_folder": job.below[user.id],
            "subscribe_all": job.new.subscribe,
            "interval": None,
            "bringing": mine,
            "once": True,
            "run_id": run,
            "next_run_at": now,
            "created_at": now,
        }
        connectors.append(Connector(**row))
        runs.append(queued(ctx, key, user.id, run))
    for rows in (connectors, runs):
        session.add_all(rows)
        await session.flush()
    told = {one.user_id: [(ChangeKind.CONNECTOR_CHANGED, [one.id])] for one in connectors}
    await ctx.record_all(session, told)
    return [run.id for run in runs]


async def _keep(ctx: Context, session: AsyncSession, job: _Job, runs: Sequence[int]) -> None:
    """Keep an uploaded archive as long as a run needs it; its blob belongs to the first tenant."""
    if job.made.upload is None:
        return
    received, name = job.made.upload
    kept = await raw(ctx.world, job.users[0].tenant_id, received, name)

    def store(turn: Turn) -> None:
        upload_id = job.new.upload_id or 0
        imports.take_over(turn, ctx.viewer.user_id, upload_id, ["source", "upload"])
        blob = blob_ids(turn, kept)[kept.root]
        rows = [
            {
                "id": turn.world.key(),
                "user_id": user.id,
                "task_id": run,
                "filename": received.filename or "archive",
                "size": received.size,
                "blob_id": blob,
                "created_at": turn.world.now(),
            }
            for user, run in zip(job.users, runs, strict=True)
        ]
        turn.connection.execute(insert(table_of(ImportArchive)), rows)

    await ctx.world.join(session, store)
