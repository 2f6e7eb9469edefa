"""Bringing in mail that another program kept: killed at any message it goes on from there."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import addresses, delivery, paths
from mail.delivery import Letter, Place, Placed
from mail.keeping import Gone, Kept
from merganser.building import on_behalf
from merganser.sources import Found, Source, Unusable, messages, source
from merganser.trouble import Trouble
from models.columns import Picked, picked
from models.errors import OverQuota, Refused
from models.journal import ChangeKind
from models.messages import Message
from models.tasks import Task, TaskState
from models.users import User
from models.world import Turn, World
from resolvers import mailboxes, moves
from resolvers.context import Context
from resolvers.mailboxes import NewMailboxes

KIND = "IMPORT"
TOGETHER = 32  # messages a unit
WEIGHT = 4 << 20  # bytes a unit; a larger message has one of its own
TOLD = 200  # things skipped that are remembered word for word
_AFTERWARDS = ("\\Answered", "\\Deleted", "$Forwarded")  # no message is stored with these

Progress = Callable[[int], None]  # how far in the source


@dataclass(slots=True)
class Outcome:
    """What an import has done, in all its runs together."""

    stored: int = 0
    known: int = 0  # in that mailbox already
    skipped: list[list[str]] = field(default_factory=list)  # what, and why
    untold: int = 0  # skipped beyond those


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be imported."""

    path: Path
    user: str  # name or address
    mailbox: str | None = None  # one for all mail; None: as the source has it
    data: Path = Path("var")  # the folder where running imports are known


@dataclass(slots=True)
class Import:
    """One that is running."""

    ctx: Context
    origin: Source
    user: Picked
    task_id: int
    into: str | None
    base: int  # how far earlier runs came
    boxes: dict[str, int]  # mailboxes by path
    outcome: Outcome
    digests: dict[int, set[bytes]] = field(default_factory=dict)  # by mailbox, shortened


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that has been read, and the mailbox it goes to."""

    found: Found
    letter: Letter
    box: int


async def bring(world: World, order: Order, began: Callable[[Source, int], Progress]) -> Outcome:
    """Import all mail of a source, going on where an earlier run was broken off.

    `began` is told the source and how far in it we are. Trouble where it cannot go on.
    """
    user = await _user(world, order.user)
    origin = await _source(world, order.path)
    try:
        into = paths.checked_path(order.mailbox) if order.mailbox else None
        async with _alone(order.data, f"{user.id}\0{origin.path.resolve()}\0{into}"):
            work, after = await _begun(world, origin, user, into)
            await _go_on(work, after, began(origin, work.base))
            await _finish(work)
    except OverQuota as full:
        text = f"the account is full ({full}): give it more storage, then run this again"
        raise Trouble(text) from full
    except Refused as refusal:
        raise Trouble(f"the import cannot go on: {refusal.message}") from refusal
    return work.outcome


async def _user(world: World, who: str) -> Picked:
    key = await addresses.login_of(world, who)
    asked = select(*picked(User, {"id", "tenant_id"})).where(col(User.id) == (key or 0))
    for row in await world.database.read(asked):
        return row
    raise Trouble(f"there is no user {who}: `merganser user list` shows all")


async def _source(world: World, path: Path) -> Source:
    try:
        return await asyncio.to_thread(source, path, world.options.message_max)
    except FileNotFoundError as problem:
        raise Trouble(f"there is nothing at {path}") from problem
    except OSError as problem:
        raise Trouble(f"cannot read {path}: {(problem.strerror or '').lower()}") from problem
    except Unusable as problem:
        raise Trouble(f"{path} is {problem}") from problem


@asynccontextmanager
async def _alone(data: Path, what: str) -> AsyncGenerator[None]:
    """Hold this import: two at once would store everything twice. A kill lets go of it."""
    path = data / f"import-{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble("this import is running already, in another process") from None
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


async def _begun(
    world: World, origin: Source, user: Picked, into: str | None
) -> tuple[Import, str | None]:
    """The import, and the place behind which it goes on: None at the beginning."""
    ctx = on_behalf(world, user.id)
    order = {"path": str(origin.path.resolve()), "mailbox": into}
    asked = select(*picked(Task)).where(
        col(Task.kind) == KIND, col(Task.user_id) == user.id, col(Task.finished_at).is_(None)
    )
    earlier = next((row for row in await ctx.read(asked) if row.order == order), None)
    note = dict((earlier and earlier.checkpoint) or {})
    same = note.get("stamp") == origin.stamp  # else what stands there may be other mail
    now, key = world.now(), earlier.id if earlier else world.key()
    async with ctx.write(user.id) as session:
        task = await session.get(Task, key) or Task(
            id=key, kind=KIND, user_id=user.id, order=order, created_at=now
        )
        task.state, task.total = TaskState.RUNNING, origin.total
        task.started_at, task.attempts = now, task.attempts + 1
        session.add(task)
        await session.flush()
        await ctx.record(session, user.id, ChangeKind.TASK_CHANGED, [key])
    rows = await mailboxes.all_of(ctx, user.id, (), show_hidden=True)
    outcome = Outcome(**note.get("outcome", {}))
    base = int(note.get("at", 0)) if same else 0
    boxes = {row.path: int(row.id) for row in rows}
    work = Import(ctx, origin, user, key, into, base, boxes, outcome)
    return work, note.get("after") if same else None


async def _go_on(work: Import, after: str | None, progress: Progress) -> None:
    rest = messages(work.origin, after)
    while group := await asyncio.to_thread(_group, rest):
        ready = [each for each in [await _read(work, found) for found in group] if each]
        try:
            await _store(work, ready, group[-1])
        except OverQuota:
            if len(ready) < 2:  # noqa: PLR2004
                raise
            for each in ready:  # as many as fit
                await _store(work, [each], each.found)
            await _store(work, [], group[-1])
        progress(_reached(work, group[-1]))


def _group(rest: Iterator[Found]) -> list[Found]:
    group: list[Found] = []
    weight = 0
    while len(group) < TOGETHER and weight < WEIGHT:
        found = next(rest, None)
        if found is None:
            break
        group.append(found)
        weight += len(found.raw or b"")
    return group


async def _read(work: Import, found: Found) -> Ready | None:
    """The message, ready to be stored; None where it is there already or has to be skipped."""
    outcome = work.outcome
    try:
        if found.raw is None:
            raise Unusable(found.reason)
        box = await _box(work, work.into or found.folder)
    except (Unusable, Refused) as problem:
        if len(outcome.skipped) < TOLD:
            outcome.skipped.append([found.name, str(problem)])
        else:
            outcome.untold += 1
        return None
    letter = await delivery.read(found.raw)
    there = await _digests(work, box)
    if _short(letter.digest) in there:
        outcome.known += 1
        return None
    there.add(_short(letter.digest))
    return Ready(found, letter, box)


async def _box(work: Import, folder: str) -> int:
    path = paths.checked_path(folder)
    if path not in work.boxes:
        for box in await mailboxes.create(work.ctx, NewMailboxes([path])):
            work.boxes[box.path] = box.id
    return work.boxes[path]


async def _digests(work: Import, box: int) -> set[bytes]:
    """What the mailbox has: 16 bytes of each digest, so that a million of them fit."""
    if box not in work.digests:
        asked = select(col(Message.digest)).where(col(Message.mailbox_id) == box)
        rows = await work.ctx.read(asked)
        work.digests[box] = {_short(row.digest) for row in rows}
    return work.digests[box]


def _short(digest: str) -> bytes:
    return bytes.fromhex(digest[:32])


async def _store(work: Import, ready: Sequence[Ready], last: Found) -> None:
    """Store these and note that all up to `last` is done, in one unit."""
    tenant = work.user.tenant_id
    for again in (False, True):
        kept = [
            await delivery.stored(work.ctx.world, tenant, each.letter, again=again)
            for each in ready
        ]
        try:
            await _unit(work, ready, kept, last)
        except Gone:  # a piece was collected meanwhile
            if again:
                raise
        else:
            break
    work.ctx.world.fault("imported")


async def _unit(work: Import, ready: Sequence[Ready], kept: Sequence[Kept], last: Found) -> None:
    ctx, user_id = work.ctx, work.user.id

    def placed(turn: Turn) -> list[Placed]:
        pairs = zip(ready, kept, strict=True)
        return [delivery.place(turn, each.letter, safe, _to(work, each)) for each, safe in pairs]

    async with ctx.write(user_id) as session:
        new = await ctx.world.join(session, placed)
        await _flag(work, session, ready, new)
        outcome = {**_plain(work.outcome), "stored": work.outcome.stored + len(ready)}
        note = {
            "after": last.after,
            "at": _reached(work, last),
            "stamp": work.origin.stamp,
            "outcome": outcome,
        }
        stop = await _note(work, session, {"checkpoint": note, "done": _reached(work, last)})
    work.outcome.stored += len(ready)
    if stop:
        await _finish(work, TaskState.CANCELLED)
        raise Trouble("the import was cancelled; what it has brought in stays")


async def _note(work: Import, session: AsyncSession, values: dict[str, Any]) -> bool:
    """Write how far we are; returns whether somebody wants us to stop."""
    this = update(Task).where(col(Task.id) == work.task_id).values(**values)
    changed = await (await session.connection()).execute(this.returning(col(Task.cancelled)))
    stop = bool(changed.scalar_one())
    await work.ctx.record(session, work.user.id, ChangeKind.TASK_CHANGED, [work.task_id])
    return stop


def _plain(outcome: Outcome) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(outcome))
    return plain


def _reached(work: Import, last: Found) -> int:
    return last.at if work.origin.kind == "mbox" else work.base + last.at


def _to(work: Import, ready: Ready) -> Place:
    found = ready.found
    return Place(
        work.user.id,
        ready.box,
        found.received_at or work.ctx.world.now(),
        seen="\\Seen" in found.flags,
        flagged="\\Flagged" in found.flags,
        draft="\\Draft" in found.flags,
        envelope_from=found.sender,
    )


async def _flag(
    work: Import, session: AsyncSession, ready: Sequence[Ready], new: Sequence[Placed]
) -> None:
    """Set the flags that a message cannot be stored with."""
    for flag in _AFTERWARDS:
        pairs = zip(ready, new, strict=True)
        ids = [placed.message_id for each, placed in pairs if flag in each.found.flags]
        if ids:
            rows = await moves.chosen(session, ids)
            await moves.change(work.ctx, session, rows, moves.Changes.of({}, add=[flag]))


async def _finish(work: Import, state: TaskState = TaskState.SUCCEEDED) -> None:
    values = {"state": state, "finished_at": work.ctx.world.now(), "result": _plain(work.outcome)}
    if state is TaskState.SUCCEEDED:
        values["done"] = work.origin.total
    async with work.ctx.write(work.user.id) as session:
        await _note(work, session, values)
