"""`merganser import`: store the mail of a source. A killed import resumes at its checkpoint."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.json_lines import Account
from mail.archives.mail_sources import Source, messages, source
from mail.archives.source_message import Found, Unusable
from mail.mailboxes import paths
from mail.recipients import address_resolution
from mail.storage.blobs.blob_writer import Gone, Kept
from merganser.errors import MISUSED, Trouble
from merganser.server.environment_factory import on_behalf
from models.admin.tasks import Task, TaskState
from models.errors import OverQuota, Refused
from models.events.journal import ChangeKind
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.connectors import transfer
from resolvers.transfer import import_writer, passphrases
from resolvers.transfer.import_writer import Import, Outcome, Reading, Ready

KIND = "IMPORT"

Progress = Callable[[int], None]  # takes the position in the source


@dataclass(frozen=True, slots=True)
class Order:
    """The source to import, and the account and options of the import."""

    path: Path
    user: str  # username or address
    mailbox: str | None = None  # for all messages; None: the mailboxes of the source
    data: Path = Path("var")  # with the locks of running imports
    settings: bool = True  # if the source is an archive that Merganser wrote
    passphrase: str | None = field(default=None, repr=False)  # of the export


@dataclass(slots=True)
class Bringing:
    """A running import with its source and its task."""

    work: Import
    origin: Source
    task_id: int
    base: int  # of the source, by earlier runs


async def user_named(environment: World, who: str) -> Picked:
    """Load the ID and username of a user by username or address.

    Raises CommandError if there is no such user.
    """
    key = await address_resolution.login_of(environment, who)
    asked = select(*picked(User, {"id", "username"})).where(col(User.id) == (key or 0))
    for row in await environment.database.read(asked):
        return row
    raise Trouble(f"there is no user {who}: `merganser user list` shows all")


async def bring(
    environment: World, order: Order, began: Callable[[Source, int], Progress]
) -> Outcome:
    """Import all messages of a source, and resume an interrupted import.

    `start_progress` takes the source and the position in it, and returns a function that takes
    each later position. Raises CommandError if the source can't be read, the account is full, the
    import is cancelled, or the same import runs in another process.
    """
    word = passphrases.checked(order.passphrase)
    if word is not None and not order.settings:
        raise Trouble("passwords are part of the settings, and these are left out", code=MISUSED)
    user = await user_named(environment, order.user)
    origin = await _source(environment, order.path)
    try:
        into = paths.checked_path(order.mailbox) if order.mailbox else None
        async with _alone(order.data, f"{user.id}\0{origin.path.resolve()}\0{into}"):
            run, after = await _begun(environment, origin, user.id, into)
            if after is None and origin.account:
                await _furnish(run.work, origin.account, settings=order.settings)
            await _go_on(run, after, began(origin, run.base))
            if (
                origin.account and order.settings
            ):  # after the messages, so that connectors don't fetch them again
                await transfer.bring(run.work, origin.account, word)
            await _finish(run)
    except OverQuota as full:
        text = f"the account is full ({full}): give it more storage, then run this again"
        raise Trouble(text) from full
    except Refused as refusal:
        raise Trouble(f"the import cannot go on: {refusal.message}") from refusal
    return run.work.outcome


async def _furnish(work: Import, account: Account, *, settings: bool) -> None:
    if settings:  # first, since mailboxes that encrypt need the key
        await import_writer.settle(work, account)
    await import_writer.furnish(work, account, notes=settings)
    if settings:
        await import_writer.introduce(work, account)


async def _source(environment: World, path: Path) -> Source:
    try:
        return await asyncio.to_thread(source, path, environment.options.message_max)
    except FileNotFoundError as problem:
        raise Trouble(f"there is nothing at {path}") from problem
    except OSError as problem:
        raise Trouble(f"cannot read {path}: {(problem.strerror or '').lower()}") from problem
    except Unusable as problem:
        raise Trouble(f"{path} is {problem}") from problem


@asynccontextmanager
async def _alone(data: Path, what: str) -> AsyncGenerator[None]:
    """Lock this import, since two at once would store each message twice.

    The end of the process releases the lock. Raises CommandError if another process holds it.
    """
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
    environment: World, origin: Source, user_id: int, into: str | None
) -> tuple[Bringing, str | None]:
    """Start or resume an import. Returns it with its checkpoint; None for a new import."""
    ctx = on_behalf(environment, user_id)
    order = {"path": str(origin.path.resolve()), "mailbox": into}
    asked = select(*picked(Task)).where(
        col(Task.kind) == KIND, col(Task.user_id) == user_id, col(Task.finished_at).is_(None)
    )
    earlier = next((row for row in await ctx.read(asked) if row.order == order), None)
    note = dict((earlier and earlier.checkpoint) or {})
    same = note.get("stamp") == origin.stamp  # otherwise the source has changed
    now, key = environment.now(), earlier.id if earlier else environment.key()
    async with ctx.write(user_id) as session:
        task = await session.get(Task, key) or Task(
            id=key, kind=KIND, user_id=user_id, order=order, created_at=now
        )
        task.state, task.total = TaskState.RUNNING, origin.total
        task.started_at, task.attempts = now, task.attempts + 1
        session.add(task)
        await session.flush()
        await ctx.record(session, user_id, ChangeKind.TASK_CHANGED, [key])
    begun = (
        key if same or not note else environment.key()
    )  # a changed source is read from the start
    work = await import_writer.opened(ctx, user_id, into, begun)
    work.outcome = Outcome(**note.get("outcome", {}))
    base = int(note.get("at", 0)) if same else 0
    return Bringing(work, origin, key, base), note.get("after") if same else None


async def _go_on(run: Bringing, after: str | None, progress: Progress) -> None:
    reading = Reading(messages(run.origin, after))
    while group := await asyncio.to_thread(reading.group):
        ready = [one for one in [await import_writer.read(run.work, each) for each in group] if one]
        try:
            await _store(run, ready, group[-1])
        except OverQuota:
            if len(ready) < 2:  # noqa: PLR2004
                raise
            for each in ready:  # one by one, until the account is full
                await _store(run, [each], each.found)
            await _store(run, [], group[-1])
        progress(_reached(run, group[-1]))
    if reading.trouble:
        stored = run.work.outcome.stored
        raise Trouble(f"{run.origin.path} is {reading.trouble}; {stored} messages came in before")


async def _store(run: Bringing, ready: Sequence[Ready], last: Found) -> None:
    """Store messages and the checkpoint after the last one, in one transaction."""
    for again in (False, True):
        kept = await import_writer.keep(run.work, ready, again=again)
        try:
            await _unit(run, ready, kept, last)
        except Gone:  # housekeeping deleted a blob in between
            if again:
                raise
        else:
            break
    run.work.ctx.world.fault("imported")


async def _unit(run: Bringing, ready: Sequence[Ready], kept: Sequence[Kept], last: Found) -> None:
    work = run.work
    async with work.ctx.write(work.user.id) as session:
        await import_writer.put(work, session, ready, kept)
        outcome = {**_plain(work.outcome), "stored": work.outcome.stored + len(ready)}
        note = {
            "after": last.after,
            "at": _reached(run, last),
            "stamp": run.origin.stamp,
            "outcome": outcome,
        }
        stop = await _note(run, session, {"checkpoint": note, "done": _reached(run, last)})
    work.outcome.stored += len(ready)
    if stop:
        await _finish(run, TaskState.CANCELLED)
        raise Trouble("the import was cancelled; what it has brought in stays")


async def _note(run: Bringing, session: AsyncSession, values: dict[str, Any]) -> bool:
    """Update the task of the import. Returns True if the task was cancelled."""
    this = update(Task).where(col(Task.id) == run.task_id).values(**values)
    changed = await (await session.connection()).execute(this.returning(col(Task.cancelled)))
    stop = bool(changed.scalar_one())
    ctx, user_id = run.work.ctx, run.work.user.id
    await ctx.record(session, user_id, ChangeKind.TASK_CHANGED, [run.task_id])
    return stop


def _plain(outcome: Outcome) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(outcome))
    return plain


def _reached(run: Bringing, last: Found) -> int:
    return last.at if run.origin.whole else run.base + last.at


async def _finish(run: Bringing, state: TaskState = TaskState.SUCCEEDED) -> None:
    work = run.work
    values = {"state": state, "finished_at": work.ctx.world.now(), "result": _plain(work.outcome)}
    if state is TaskState.SUCCEEDED:
        values["done"] = run.origin.total
    async with work.ctx.write(work.user.id) as session:
        await _note(run, session, values)
    await work.ctx.world.database.refresh_statistics()
