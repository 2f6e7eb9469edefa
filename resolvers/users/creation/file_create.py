"""Create users from an uploaded CSV or JSON Lines file, in a task."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs.blob_writer import blob_ids
from models.admin.tasks import Task
from models.errors import Invalid, Problems, RateLimited, Refused, found
from models.events.journal import ChangeKind
from models.runtime.environment import Turn
from models.store.columns import Picked, picked, table_of
from models.transfer import ImportArchive
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import DomainAdmin, User
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Planner, Step, queue
from resolvers.auth import credential_status
from resolvers.context import Context, Viewer
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import Named
from resolvers.files import uploads
from resolvers.files.stored_files import raw, tenant_of
from resolvers.files.uploads import Received
from resolvers.transfer import imports
from resolvers.transfer.exports import check_running
from resolvers.users.creation import bulk_create, user_records
from resolvers.users.creation import insert as creation_insert
from resolvers.users.creation.create import NewUser
from resolvers.users.creation.insert import PreparedUser
from resolvers.users.creation.user_records import UserRecord

KIND = "USERS_CREATE"
MUTATION = "usersCreateFromFile"
RUNNING = 2  # of a user
CHUNK = 100  # of one transaction
HEAD = 64 * 1024  # bytes
TOLD = 1000  # errors or warnings in the result
FILE = ["file"]
TRIES = 2  # if a concurrent transaction took a name


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of some records."""

    created: int
    refused: list[dict[str, Any]]  # one item for each error: line, code, path, message
    warnings: list[dict[str, Any]]  # code, message


async def create(ctx: Context, upload_id: int, form: UserFileFormat | None) -> Task:
    """Queue a task that creates the users of an upload, and moves the upload to the task.

    Raises Invalid if the header of a CSV file has an unknown column, LimitReached if two such tasks
    of the viewer are unfinished, NotFound if the viewer has no such upload.
    """
    owner = own(ctx)
    upload: Picked = found(await ctx.load(uploads.by_ids, upload_id), str(upload_id), path=FILE)
    head = await uploads.read_head(ctx, upload, HEAD)
    form = form or user_records.detect_format(head)
    user_records.check_head(head, form)
    received = Received(b"", upload.size, upload.digest, filename=upload.filename or "users")
    kept = await raw(ctx.world, await tenant_of(ctx, owner), received, upload.blob_name)
    viewer, key = ctx.viewer, ctx.world.key()
    order = {
        "archive": key,
        "format": form,
        "role": viewer.role,
        "administers": sorted(viewer.administers),
        "permissions": sorted(viewer.permissions),
    }
    async with ctx.write(owner) as session:
        await check_running(ctx, owner, KIND, RUNNING)
        (task,) = await queue(ctx, session, KIND, [order], user_id=owner)

        def store(turn: Turn) -> None:
            imports.take_over(turn, owner, upload_id, FILE)
            row = {
                "id": key,
                "user_id": owner,
                "task_id": task.id,
                "filename": received.filename,
                "size": received.size,
                "blob_id": blob_ids(turn, kept)[kept.root],
                "created_at": turn.world.now(),
            }
            turn.connection.execute(insert(table_of(ImportArchive)), row)

        await ctx.world.join(session, store)
        await ctx.record(session, owner, ChangeKind.TASK_CHANGED, [task.id])
        after = {"file": received.filename}
        await admin_log.note(ctx, session, Done(MUTATION, "Task", task.id, None, None, after))
    return task


async def outcomes(
    ctx: Context, path: Path, head: bytes, form: UserFileFormat | None
) -> AsyncGenerator[Outcome]:
    """Create the users of a local file, part by part; yield the result of each part."""
    form = form or user_records.detect_format(head)
    user_records.check_head(head, form)
    with closing(user_records.read(path, form)) as records:
        while part := await asyncio.to_thread(list[UserRecord], islice(records, CHUNK)):
            yield await (await Batch.of(ctx, part)).store()


@asynccontextmanager
async def begun(
    ctx: Context, order: dict[str, Any], checkpoint: Mapping[str, Any]
) -> AsyncGenerator[Planner]:
    """Keep the file open for a run of the task.

    Yield the planner, placed after the finished records.
    """
    form = UserFileFormat(order["format"])
    async with imports.lying(ctx, None, col(ImportArchive.id) == order["archive"]) as path:
        total = None if checkpoint else await asyncio.to_thread(_count, path, form)
        with closing(user_records.read(path, form)) as records:
            done = checkpoint.get("at", 0)
            await asyncio.to_thread(_skip, records, done)

            async def plan(ctx: Context, order: dict[str, Any], _: dict[str, Any]) -> Plan:
                part = await asyncio.to_thread(list[UserRecord], islice(records, CHUNK))
                asking = ctx.as_another(await _viewer(ctx, order))
                batch = await Batch.of(asking, part)
                batch.total = total
                return Plan(await creation_insert.streams(ctx, batch.prepared.values()), made=batch)

            yield plan


def _count(path: Path, form: UserFileFormat) -> int:
    with closing(user_records.read(path, form)) as records:
        return sum(1 for _ in records)


def _skip(records: Iterable[UserRecord], count: int) -> None:
    for _ in islice(records, count):
        pass


async def _viewer(ctx: Context, order: Mapping[str, Any]) -> Viewer:
    """Return the viewer of the requester, with its present rights, but no more than when it asked.

    Raises Invalid if the requester can no longer create users.
    """
    asked = select(*picked(User)).where(
        col(User.id) == ctx.viewer.user_id, credential_status.open_users()
    )
    row = next(iter(await ctx.read(asked)), None)
    role = Role(order["role"])
    if row is None or not row.role.includes(role):
        text = "the account that asked for this may no longer create accounts"
        raise Invalid(text, constraint="role", path=FILE)
    charges = await ctx.read(
        select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == row.id)
    )
    administers, permissions = set(order["administers"]), set(order["permissions"])
    if row.role is Role.DOMAIN_ADMIN:
        administers &= {one.domain_id for one in charges}
        permissions &= set(row.admin_permissions)
    return Viewer(
        row.id,
        role,
        frozenset({Scope.MASTER}),
        frozenset(map(_permission, permissions)),
        frozenset(administers),
    )


def _permission(name: str) -> AdminPermission | UserPermission:
    known = AdminPermission.__members__
    return AdminPermission(name) if name in known else UserPermission(name)


@dataclass(slots=True)
class Batch:
    """Some records of a file, validated and with hashed passwords, ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    prepared: dict[int, PreparedUser]
    refused: dict[int, list[Refused]]
    total: int | None = None

    @classmethod
    async def of(cls, ctx: Context, records: Sequence[UserRecord]) -> "Batch":
        """Validate records and hash their passwords. Stores nothing."""
        refused, news, problems = dict[int, list[Refused]](), dict[int, NewUser](), {}
        for nth, record in enumerate(records):
            if record.problem:
                refused[nth] = [record.problem]
                continue
            problems[nth] = Problems()
            try:
                news[nth] = await _new_user(ctx, record, problems[nth])
            except Refused as refusal:
                refused[nth] = refusal.each
        accounts, wrong = await bulk_create.check(ctx, news, problems)
        refused |= wrong
        prepared = {nth: one.prepared for nth, one in accounts.items()}
        for nth, collision in (await creation_insert.check(ctx, prepared)).items():
            refused[nth] = collision.each
            accounts.pop(nth)
        prepared = await _complete(ctx, accounts)
        return cls(ctx, {nth: one.line for nth, one in enumerate(records)}, prepared, refused)

    async def store(self) -> Outcome:
        """Store the users that can be stored, in one transaction or savepoint.

        Raises IntegrityError if names collide at each try.
        """
        for left in reversed(range(TRIES)):
            try:
                late = await creation_insert.store(
                    self.ctx, self.prepared, mutation=MUTATION, partly=True
                )
                break
            except IntegrityError:  # a concurrent transaction took a name: the next try finds it
                if not left:
                    raise
        refused = {**self.refused, **{nth: one.each for nth, one in late.items()}}
        told = [
            {
                "line": self.lines[nth],
                "code": one.code,
                "path": one.path,
                "message": one.message,
            }
            for nth, refusals in sorted(refused.items())
            for one in refusals
        ]
        warned = [{"code": one.code, "message": one.message} for one in self.ctx.warnings]
        self.ctx.warnings.clear()
        return Outcome(len(self.lines) - len(refused), told, warned)


async def _new_user(ctx: Context, record: UserRecord, problems: Problems) -> NewUser:
    """Return the new user of a record, with the ids of its domains. Raises NotFound."""
    new, charges = user_records.new_user(record, problems)
    if charges:
        refs = [Named(name=name) for name in charges]
        rows = await domain_loaders.chosen(ctx, refs, path="administers")
        new = replace(new, administers=[row.id for row in rows])
    return new


async def _complete(ctx: Context, accounts: Mapping[int, Any]) -> dict[int, PreparedUser]:
    """Hash passwords; wait if sign-ins keep all workers busy."""
    while True:
        try:
            return await bulk_create.complete(ctx, accounts)
        except RateLimited as busy:
            await asyncio.sleep(busy.retry_after.total_seconds())


async def plan(_ctx: Context, _order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    """Return an empty plan: `open_planner` yields the planner."""
    return Plan()


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Store the users of one batch; return the task step with the total counts."""
    batch: Batch = held.made
    before: dict[str, Any] = {"at": 0, "created": 0, "refused": 0, "errors": [], "warnings": []}
    before |= checkpoint
    if not batch.lines:
        await imports.forget(session, order)
        return Step(before)
    batch.ctx = ctx.as_another(batch.ctx.viewer)
    outcome = await batch.store()
    ctx.world.fault("users stored")
    note = {
        "at": before["at"] + len(batch.lines),
        "created": before["created"] + outcome.created,
        "refused": before["refused"] + len(batch.lines) - outcome.created,
        "errors": [*before["errors"], *outcome.refused][:TOLD],
        "warnings": [*before["warnings"], *outcome.warnings][:TOLD],
    }
    return Step(note, done=len(batch.lines), more=True, total=batch.total)
