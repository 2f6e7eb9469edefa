"""Ask the mail clients of an account to open a compose window, and deliver such requests."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlmodel import col

from mail.compose import message_builder
from mail.compose.message_builder import HTML_WITH_IMAGES, NAME, SUBJECT, TEXT, Priority
from mail.mime.header_encoding import Named
from models.errors import (
    Code,
    Invalid,
    LimitReached,
    NotFound,
    Problems,
    Unavailable,
    check_limit,
    found,
)
from models.events.journal import ChangeKind
from models.files.tables import FileAttachmentMode
from models.runtime import leases
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.submission.compose_requests import ComposeListener, ComposeRequest
from resolvers.access import own, visible
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth.credential_cache import memory_of
from resolvers.auth.security_log import actor
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import Asked
from resolvers.context import Context
from resolvers.files import shares as file_shares
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.pagination import by_keys
from resolvers.submission import composition, file_attachments, identities
from resolvers.submission.composition import Fields
from resolvers.submission.file_attachments import Address
from resolvers.submission.reply_references import referred
from resolvers.submission.send_on_behalf import LOGIN_AS, another
from resolvers.users.selection import managed_one

LASTS = timedelta(minutes=10)  # after that a request is expired
WAITING = 100  # of one account
KINDS = frozenset({ChangeKind.COMPOSE_REQUESTED})


@dataclass(frozen=True, slots=True)
class Asking:
    """The content of a compose window and the account that it is opened for."""

    fields: Fields
    mailbox: mailbox_loaders.Named | None = None
    user_id: int | None = None  # None: the viewer
    address: Address = str


@dataclass(frozen=True, slots=True)
class Made:
    """A stored compose request and the number of clients that listen for it."""

    request: Picked
    delivered: int


async def request(ctx: Context, asking: Asking) -> Made:
    """Store a compose request and notify the clients of the account. It expires after ten minutes.

    An administrator who may act as a user can do this for that user. Raises USER_OFFLINE if the
    account has no listening client; then nothing is stored. Raises NotFound if a file, identity or
    mailbox does not exist, Invalid if a field is wrong, and LimitReached if the account has 100
    open requests.
    """
    owner, domain = own_or(ctx, asking.user_id), None
    theirs = ctx
    if owner != ctx.viewer.user_id:
        ctx.viewer.require(LOGIN_AS)
        domain = (await managed_one(ctx, owner)).domain_id
        theirs = another(ctx, owner)
    written, shares = await _written(theirs, asking)
    identity = asking.fields.identity
    box = await _box(theirs, asking.mailbox)
    key, now = ctx.world.key(), ctx.world.now()
    async with ctx.write(owner) as session:
        if theirs is not ctx:
            theirs = another(ctx, owner)  # in this unit
        row = {
            "id": key,
            "user_id": owner,
            "identity_id": identity,
            "mailbox_id": box,
            "written": written,
            "requested_by": (await actor(session, ctx.viewer))[1],
            "created_at": now,
            "expires_at": now + LASTS,
        }
        many = await ctx.world.join(session, lambda turn: _noted(turn, owner, row))
        await file_shares.add(theirs, session, shares)
        await ctx.record(session, owner, ChangeKind.COMPOSE_REQUESTED, [key])
        if theirs is not ctx:
            done = Done("composeRequest", "User", owner, domain)
            await admin_log.note(ctx, session, done)
    asked = select(*picked(ComposeRequest)).where(col(ComposeRequest.id) == key)
    return Made(found(next(iter(await ctx.read(asked)), None)), many)


def own_or(ctx: Context, user_id: int | None) -> int:
    """Return the given user, or the viewer if none is given."""
    return own(ctx) if user_id is None else user_id


def _noted(turn: Turn, owner: int, row: dict[str, Any]) -> int:
    """Insert a compose request, delete expired ones, and return the number of listening clients.

    Raises Unavailable with USER_OFFLINE if no client listens, and LimitReached if too many are
    open.
    """
    now = turn.world.now()
    over = delete(ComposeRequest).where(
        col(ComposeRequest.user_id) == owner, col(ComposeRequest.expires_at) <= now
    )
    turn.connection.execute(over)
    alive = (
        col(ComposeListener.user_id) == owner,
        leases.is_registered(col(ComposeListener.holder)),
    )
    many: int = turn.connection.execute(
        select(func.count()).select_from(ComposeListener).where(*alive)
    ).scalar_one()
    if not many:
        text = "the user has no client open that could show it"
        raise Unavailable(text, code=Code.USER_OFFLINE)
    waiting: int = turn.connection.execute(
        select(func.count()).select_from(ComposeRequest).where(col(ComposeRequest.user_id) == owner)
    ).scalar_one()
    if waiting >= WAITING:
        raise LimitReached(f"at most {WAITING} at a time", limit=WAITING, used=waiting)
    turn.connection.execute(insert(ComposeRequest), row)
    return many


async def _box(ctx: Context, named: mailbox_loaders.Named | None) -> int | None:
    if named is None:
        return None
    (row,) = await mailbox_loaders.named(ctx, [(own(ctx), named)])
    return int(found(row, str(named.path or named.id or ""), path=["mailbox"]).id)


async def _written(ctx: Context, asking: Asking) -> tuple[dict[str, Any], list[Any]]:
    """Validate the fields and return the stored content of the window with the new links to files.

    Raises Invalid for all wrong fields together, and NotFound for a missing identity or file.
    """
    fields, problems = asking.fields, Problems()
    _check(ctx, fields, problems)
    problems.settle()
    if fields.identity is not None:
        (sender,) = await identities.by_ids(ctx, [fields.identity])
        if sender is None or sender.user_id != own(ctx):
            raise NotFound(str(fields.identity), path=["identity"])
    links = await file_attachments.offered(ctx, fields.files, asking.address)
    filled = await composition.taken_over(ctx, fields)
    text, html = file_attachments.with_links(filled.text, filled.html, links)
    attached = [one.file_id for one in fields.files if one.mode is FileAttachmentMode.ATTACH]
    for nth, row in enumerate(await ctx.load_all(stored_files.by_ids, attached)):
        if row is None:
            path = [file_attachments.PATH, str(nth), "file"]
            raise NotFound(str(attached[nth]), path=path, index=nth)
    written = {
        "to": _pairs(filled.to or ()),
        "cc": _pairs(filled.cc or ()),
        "bcc": _pairs(fields.bcc),
        "reply_to": _pairs(fields.reply_to or ()),
        "subject": filled.subject,
        "text": text,
        "html": html,
        "files": attached,
        "priority": Priority(fields.priority).value,
        "reference": referred(fields.reference),
    }
    return written, [one.share for one in links]


def _check(ctx: Context, fields: Fields, problems: Problems) -> None:
    """Add an error to `problems` for each field that is wrong."""
    people = {"to": fields.to, "cc": fields.cc, "bcc": fields.bcc, "replyTo": fields.reply_to}
    most = ctx.world.options.max_recipients
    for name, given in people.items():
        with problems.caught():
            text = f"more than {most} addresses"
            check_limit(len(given or ()), most, text, path=[name])
            for nth, person in enumerate(given or ()):
                message_builder.address(person.address, name, nth)
                message_builder.line_of(person.name or "", [name], NAME)
    with problems.caught():
        message_builder.line_of(fields.subject or "", ["subject"], SUBJECT)
    with problems.caught():
        message_builder.text_of(fields.text or "", ["text"], TEXT)
    with problems.caught():
        message_builder.text_of(fields.html or "", ["html"], HTML_WITH_IMAGES)
    with problems.caught():
        file_attachments.check(fields.files)
    with problems.caught():
        if fields.reference and (fields.reference.attachments or fields.reference.whole):
            text = "the client attaches what the message referred to has"
            path = ["reference", "attachments"]
            raise Invalid(text, constraint="unsupported", path=path)


def _pairs(people: Sequence[Named]) -> list[list[str | None]]:
    return [[person.name, person.address] for person in people]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's requests, in the order of the ids; None for one that is expired."""
    theirs = select(*picked(ComposeRequest)).where(
        visible(ctx, ComposeRequest), col(ComposeRequest.expires_at) > ctx.world.now()
    )
    return await by_keys(ctx, theirs, col(ComposeRequest.id), ids)


async def requested(ctx: Context, after: int | None = None) -> AsyncGenerator[Picked]:
    """Yield new compose requests of the viewer.

    With `after_id`, first yield the open requests that are newer than that id. The client counts
    as listening until the generator is closed.
    """
    own(ctx)
    async with _listening(ctx):
        since = await stream_reader.standing(ctx)
        told = after or 0
        if after is not None:
            for row in await _missed(ctx, after):
                told = row.id
                yield row
        async for batch in stream_reader.follow(ctx, Asked(since, KINDS)):
            keys = [event.object_id for event in batch.events]
            if batch.resync:  # open requests are still stored after their events are deleted
                rows: Sequence[Picked | None] = await _missed(ctx, told)
            else:
                rows = await by_ids(ctx, list(dict.fromkeys(keys))) if keys else []
            for one in rows:
                if one is not None:
                    told = max(told, one.id)
                    yield one


async def _missed(ctx: Context, after: int) -> Sequence[Picked]:
    asked = select(*picked(ComposeRequest)).where(
        visible(ctx, ComposeRequest),
        col(ComposeRequest.expires_at) > ctx.world.now(),
        col(ComposeRequest.id) > after,
    )
    return await ctx.read(asked.order_by(col(ComposeRequest.id)).limit(WAITING))


@asynccontextmanager
async def _listening(ctx: Context) -> AsyncGenerator[None]:
    """Register a listening client of the viewer in the database until the context ends."""
    world = ctx.world
    holder = await leases.ensure_registered(world)
    row = {"id": world.key(), "user_id": own(ctx), "holder": holder}
    this = col(ComposeListener.id) == row["id"]

    def comes(turn: Turn) -> None:
        dead = delete(ComposeListener).where(
            col(ComposeListener.user_id) == row["user_id"],
            ~leases.is_registered(col(ComposeListener.holder)),
        )
        turn.connection.execute(dead)
        stays(turn)

    def stays(turn: Turn) -> None:
        if not turn.connection.execute(select(col(ComposeListener.id)).where(this)).first():
            turn.connection.execute(insert(ComposeListener), row)

    async def gone() -> None:
        await world.apply(lambda turn: turn.connection.execute(delete(ComposeListener).where(this)))

    await world.apply(comes)
    world.process.restore.append(stays)
    try:
        yield
    finally:
        world.process.restore.remove(stays)
        memory_of(world.database).behind(gone())
