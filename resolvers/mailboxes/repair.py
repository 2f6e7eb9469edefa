"""The consistency check of mailboxes, and the repair of what it finds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.consistency import mailbox_checks
from mail.consistency.mailbox_checks import Examined
from mail.consistency.report import Finding
from mail.mailboxes import paths
from models.admin.tasks import Task
from models.events.journal import PLATFORM, ChangeKind
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.context import Context, Needs
from resolvers.mailboxes.loaders import by_ids, fitting
from resolvers.mailboxes.owners import owners
from resolvers.users.selection import Users

KIND = "MAILBOX_REPAIR"
OPERATORS = Needs(role=Role.ADMIN, scope=Scope.MASTER)
TOGETHER = 100  # a request with more is run as a task
MESSAGES = 5000  # messages in these mailboxes; more need a task


@dataclass(frozen=True, slots=True)
class Asked:
    """Which mailboxes to check, and how thoroughly."""

    masks: Sequence[str]
    blobs: bool = True  # rebuild each message from its blobs


@dataclass(frozen=True, slots=True)
class Repaired:
    """The problems of a mailbox, and whether all of them were repaired."""

    mailbox: Picked
    findings: list[str]
    fixed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The mailboxes with problems, or the task that checks them."""

    repaired: Sequence[Repaired] = ()
    task: Task | None = None


async def repair(ctx: Context, asked: Asked, users: Users) -> Outcome:
    """Check and repair mailboxes: at once if they are few, else in a task.

    Problems of an account itself are reported with the first of its mailboxes. Raises Forbidden.
    """
    ctx.viewer.require(OPERATORS)
    paths.pattern(asked.masks)
    if users.all:
        return Outcome(task=await _task(ctx, asked, None))
    ids = [row.id for row in await owners(ctx, users, "users")]
    mailboxes = await ctx.read(_boxes(ctx, asked.masks, ids).limit(TOGETHER + 1))
    if len(mailboxes) > TOGETHER or sum(mailbox.total for mailbox in mailboxes) > MESSAGES:
        return Outcome(task=await _task(ctx, asked, ids))
    theirs: defaultdict[int, list[int]] = defaultdict(list)
    for mailbox in mailboxes:
        theirs[mailbox.user_id].append(mailbox.id)
    found = {
        user: await mailbox_checks.examine(ctx.world, user, keys, account=True, read=asked.blobs)
        for user, keys in theirs.items()
    }
    wrong = [user for user, examined in found.items() if examined.hits or examined.troubles]
    if not wrong:
        return Outcome()
    told: list[Repaired] = []
    async with ctx.write(*wrong) as session:
        for user in wrong:
            findings = await _mend(ctx, session, found[user])
            told += await _told(ctx, findings, theirs[user])
    return Outcome(told)


def _boxes(ctx: Context, masks: Sequence[str], ids: Sequence[int] | None) -> Any:
    """Build the select of the mailboxes, in the order in which a task checks them."""
    statement = select(*picked(Mailbox, ("id", "user_id", "total")))
    statement = statement.where(fitting(ctx, paths.pattern(masks)))
    if ids is not None:
        statement = statement.where(col(Mailbox.user_id).in_(ids))
    return statement.order_by(col(Mailbox.user_id), col(Mailbox.id))


async def _mend(ctx: Context, session: AsyncSession, examined: Examined) -> list[Finding]:
    return await ctx.world.join(session, lambda turn: mailbox_checks.mend(turn, examined))


async def _told(
    ctx: Context, findings: Sequence[Finding], mailboxes: Sequence[int]
) -> list[Repaired]:
    """Group the findings by mailbox, as texts."""
    places = await _places(ctx, findings)
    texts: defaultdict[int, list[str]] = defaultdict(list)
    left: set[int] = set()
    for finding in findings:
        mailbox, what = places.get(finding.object, (mailboxes[0], finding.object))
        if finding.object.startswith("mailboxes/"):
            mailbox, what = int(finding.object.partition("/")[2]), "folder"
        texts[mailbox].append(
            f"{what}: {finding.rule} is {finding.found}, and should be {finding.expected}"
        )
        if not finding.repaired:
            left.add(mailbox)
    rows = await ctx.load_all(by_ids, sorted(texts))
    return [Repaired(row, texts[row.id], row.id not in left) for row in rows if row]


async def _places(ctx: Context, findings: Sequence[Finding]) -> Mapping[str, tuple[int, str]]:
    """Return mailbox ID and a text with the UID for each message with a finding, by object name."""
    names = {one.object for one in findings if one.object.startswith("messages/")}
    keys = [int(name.partition("/")[2]) for name in names]
    found: dict[str, tuple[int, str]] = {}
    for start in range(0, len(keys), 1000):
        part = col(Message.id).in_(keys[start : start + 1000])
        rows = await ctx.read(select(*picked(Message, ("id", "mailbox_id", "uid"))).where(part))
        for row in rows:
            if row.mailbox_id is not None:
                found[f"messages/{row.id}"] = (row.mailbox_id, f"message of uid {row.uid}")
    return found


async def _task(ctx: Context, asked: Asked, ids: Sequence[int] | None) -> Task:
    """Queue the task that checks the mailboxes. `user_ids` of None means all users."""
    counted = _boxes(ctx, asked.masks, ids).order_by(None).subquery()
    ((total,),) = await ctx.read(select(func.count()).select_from(counted))
    order = {"ids": ids, "masks": list(asked.masks), "blobs": asked.blobs}
    async with ctx.write(PLATFORM) as session:
        (task,) = await queue(ctx, session, KIND, [order], total=total)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Check the next mailbox; with the first one of an account also the account."""
    user, key = checkpoint.get("after", (0, 0))
    behind = tuple_(col(Mailbox.user_id), col(Mailbox.id)) > (user, key)
    rows = await ctx.read(_boxes(ctx, order["masks"], order["ids"]).where(behind).limit(1))
    if not rows:
        return Plan()
    (mailbox,) = rows
    examined = await mailbox_checks.examine(
        ctx.world,
        mailbox.user_id,
        [mailbox.id],
        account=mailbox.user_id != user,
        read=order["blobs"],
    )
    return Plan([mailbox.user_id], [mailbox.user_id, mailbox.id], made=examined)


async def step(
    ctx: Context,
    session: AsyncSession,
    _order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Repair what `plan_task_step` found."""
    if not held.ids:
        return Step(checkpoint)
    findings = await _mend(ctx, session, held.made)
    mended = sum(finding.repaired for finding in findings)
    left = {
        "after": list(held.ids),
        "corrected": checkpoint.get("corrected", 0) + mended,
        "left": checkpoint.get("left", 0) + len(findings) - mended,
    }
    return Step(left, done=1, more=True)
