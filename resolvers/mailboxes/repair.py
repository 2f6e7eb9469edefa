"""The consistency check of mailboxes, and the repair of what it finds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, tuple_
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.consistency import mailbox_checks
from mail.consistency.mailbox_checks import (
    MailboxCheckPart,
    MailboxCheckPosition,
    MailboxCheckRequest,
    MailboxProblems,
)
from mail.consistency.report import Finding
from mail.mailboxes import paths
from models.admin.tasks import Task, TaskKind
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.mailboxes.loaders import load_visible_by_ids, matches_pattern_sql
from resolvers.mailboxes.owners import require_permitted_mail_owners
from resolvers.users.selection import UserSelector
from resolvers.viewer import GuardRule

TASK_KIND = TaskKind.MAILBOX_REPAIR
OPERATOR_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)
MAX_INLINE_MAILBOXES = 100  # a request with more is run as a task
MAX_FINDINGS = 250  # that are listed of one mailbox
MAX_INLINE_MESSAGES = 5000  # messages in these mailboxes; more need a task


@dataclass(frozen=True, slots=True)
class MailboxRepairRequest:
    """Which mailboxes to check, and how thoroughly."""

    path_patterns: Sequence[str]
    reads_messages: bool = True  # rebuild each message from its blobs


@dataclass(frozen=True, slots=True)
class RepairedMailbox:
    """The problems of a mailbox, and whether all of them were repaired."""

    mailbox: ColumnRow
    findings: list[str]  # the first MAX_FINDINGS
    finding_count: int  # of all problems
    is_fixed: bool


@dataclass(frozen=True, slots=True)
class MailboxRepairOutcome:
    """The mailboxes with problems, or the task that checks them."""

    repaired: Sequence[RepairedMailbox] = ()
    task: Task | None = None


async def repair_mailboxes_or_queue_task(
    ctx: Context, request: MailboxRepairRequest, users: UserSelector
) -> MailboxRepairOutcome:
    """Check and repair mailboxes: at once if they are few, else in a task.

    Problems of an account itself are reported with the first of its mailboxes. Raises Forbidden.
    """
    ctx.viewer.require(OPERATOR_RULE)
    paths.patterns_regex_with_atomic_groups(request.path_patterns, input_path=["mailboxPatterns"])
    task_order: dict[str, Any] = {
        "ids": None,
        "excludes_root": ctx.viewer.role is not Role.ROOT,
        "patterns": list(request.path_patterns),
        "blobs": request.reads_messages,
    }
    if users.all:
        return MailboxRepairOutcome(task=await _insert_mailbox_repair_task(ctx, task_order))
    owners = await require_permitted_mail_owners(ctx, users, "users")
    task_order["ids"] = [row.id for row in owners]
    mailboxes = await ctx.read(_mailboxes_query(ctx, task_order).limit(MAX_INLINE_MAILBOXES + 1))
    if (
        len(mailboxes) > MAX_INLINE_MAILBOXES
        or sum(mailbox.message_count for mailbox in mailboxes) > MAX_INLINE_MESSAGES
    ):
        return MailboxRepairOutcome(task=await _insert_mailbox_repair_task(ctx, task_order))
    mailbox_ids_by_user: defaultdict[int, list[int]] = defaultdict(list)
    for mailbox in mailboxes:
        mailbox_ids_by_user[mailbox.user_id].append(mailbox.id)
    problems_by_user = {
        user: await mailbox_checks.find_mailbox_problems(
            ctx.environment, user, keys, checks_user=True, reads_messages=request.reads_messages
        )
        for user, keys in mailbox_ids_by_user.items()
    }
    affected_user_ids = [
        user
        for user, examined in problems_by_user.items()
        if examined.broken_rows or examined.message_problems
    ]
    if not affected_user_ids:
        return MailboxRepairOutcome()
    repaired: list[RepairedMailbox] = []
    async with ctx.write_session(*affected_user_ids) as session:
        for user in affected_user_ids:
            findings = await _repair_problems(ctx, session, problems_by_user[user])
            repaired += await _repaired_mailboxes_from_findings(
                ctx, findings, mailbox_ids_by_user[user]
            )
    return MailboxRepairOutcome(repaired)


def _mailboxes_query(ctx: Context, task_order: Mapping[str, Any]) -> Select[*tuple[Any, ...]]:
    """Build the select of the mailboxes, in the order in which a task checks them.

    `ids` of None means all users, with `excludes_root` without those with the role ROOT.
    """
    statement = select(*select_columns(Mailbox, ("id", "user_id", "message_count")))
    statement = statement.where(
        matches_pattern_sql(ctx, paths.patterns_regex_with_atomic_groups(task_order["patterns"]))
    )
    if task_order["ids"] is not None:
        statement = statement.where(col(Mailbox.user_id).in_(task_order["ids"]))
    elif task_order.get("excludes_root"):  # missing in tasks of earlier versions
        root_ids = select(col(User.id)).where(col(User.role) == Role.ROOT)
        statement = statement.where(col(Mailbox.user_id).not_in(root_ids))
    return statement.order_by(col(Mailbox.user_id), col(Mailbox.id))


async def _repair_problems(
    ctx: Context, session: AsyncSession, problems: MailboxProblems
) -> list[Finding]:
    return await ctx.environment.run_in_session(
        session, lambda transaction: mailbox_checks.repair_problems(transaction, problems)
    )


async def _repaired_mailboxes_from_findings(
    ctx: Context, findings: Sequence[Finding], fallback_mailbox_ids: Sequence[int]
) -> list[RepairedMailbox]:
    """Return the visible mailboxes of these findings, each with its first MAX_FINDINGS as texts.

    A finding that belongs to no mailbox is reported with the first of `fallback_mailbox_ids`, which
    must not be empty.
    """
    mailboxes_and_uids = await _mailbox_and_uid_by_object(ctx, findings)
    texts: defaultdict[int, list[str]] = defaultdict(list)
    remaining_ids: set[int] = set()
    for finding in findings:
        mailbox, uid_text = mailboxes_and_uids.get(
            finding.object, (fallback_mailbox_ids[0], finding.object)
        )
        if finding.object.startswith("mailboxes/"):
            mailbox, uid_text = int(finding.object.partition("/")[2]), "folder"
        texts[mailbox].append(
            f"{uid_text}: {finding.rule} is {finding.found}, and should be {finding.expected}"
        )
        if not finding.repaired:
            remaining_ids.add(mailbox)
    rows = await ctx.load_many(load_visible_by_ids, sorted(texts))
    return [
        RepairedMailbox(
            row, texts[row.id][:MAX_FINDINGS], len(texts[row.id]), row.id not in remaining_ids
        )
        for row in rows
        if row
    ]


async def _mailbox_and_uid_by_object(
    ctx: Context, findings: Sequence[Finding]
) -> Mapping[str, tuple[int, str]]:
    """Return mailbox ID and a text with the UID for each message with a finding, by object name."""
    names = {finding.object for finding in findings if finding.object.startswith("messages/")}
    keys = [int(name.partition("/")[2]) for name in names]
    places_by_object: dict[str, tuple[int, str]] = {}
    for start in range(0, len(keys), 1000):
        part = col(Message.id).in_(keys[start : start + 1000])
        rows = await ctx.read(
            select(*select_columns(Message, ("id", "mailbox_id", "uid"))).where(part)
        )
        for row in rows:
            if row.mailbox_id is not None:
                places_by_object[f"messages/{row.id}"] = (
                    row.mailbox_id,
                    f"message of uid {row.uid}",
                )
    return places_by_object


async def _insert_mailbox_repair_task(ctx: Context, task_order: Mapping[str, Any]) -> Task:
    """Queue the task that checks the mailboxes."""
    counted = _mailboxes_query(ctx, task_order).order_by(None).subquery()
    ((total,),) = await ctx.read(select(func.count()).select_from(counted))
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [task_order], total_count=total
        )
        await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
    return task


async def plan_repair_of_next_part(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Check the next part of a mailbox; with the first mailbox of an account also the account."""
    user, key = checkpoint.get("after", (0, 0))
    is_after_checkpoint = tuple_(col(Mailbox.user_id), col(Mailbox.id)) > (user, key)
    rows = await ctx.read(_mailboxes_query(ctx, task_order).where(is_after_checkpoint).limit(1))
    if not rows:
        return TaskStepPlan()
    (mailbox,) = rows
    position = MailboxCheckPosition()
    if checkpoint.get("mailbox") == mailbox.id:
        position = MailboxCheckPosition(*checkpoint["position"])
    part = await mailbox_checks.find_next_mailbox_problems(
        ctx.environment,
        MailboxCheckRequest(
            mailbox.user_id,
            mailbox.id,
            checks_user=mailbox.user_id != user,
            reads_messages=task_order["blobs"],
        ),
        position,
    )
    return TaskStepPlan([mailbox.user_id], [mailbox.user_id, mailbox.id], prepared=part)


async def repair_checked_part(
    ctx: Context,
    session: AsyncSession,
    _task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Repair what `plan_repair_of_next_part` found."""
    if not task_plan.ids:
        return TaskStepResult(checkpoint)
    part: MailboxCheckPart = task_plan.prepared
    findings = await _repair_problems(ctx, session, part.problems)
    mended = sum(finding.repaired for finding in findings)
    next_checkpoint: dict[str, Any] = {
        "correctedCount": checkpoint.get("correctedCount", 0) + mended,
        "remainingCount": checkpoint.get("remainingCount", 0) + len(findings) - mended,
    }
    if part.next_position is None:
        next_checkpoint["after"] = list(task_plan.ids)
        return TaskStepResult(next_checkpoint, done_count=1, has_more=True)
    next_checkpoint |= {
        "after": checkpoint.get("after", (0, 0)),
        "mailbox": task_plan.ids[-1],
        "position": [part.next_position.table_index, part.next_position.after_id],
    }
    return TaskStepResult(next_checkpoint, has_more=True)
