"""The task that runs filters on stored messages: it moves, copies, flags and labels them."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.filters import filter_compiler
from mail.filters.filter_compiler import Looked, Rule
from mail.filters.filter_result import Decision
from mail.sieve import Letter
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import Stored
from mail.storage.message_insert import QUOTA
from models.admin.tasks import Task
from models.errors import Invalid, NotFound, all_found
from models.events.journal import ChangeKind
from models.filters.tables import Filter
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import Picked, picked
from resolvers.access import own
from resolvers.admin.task_steps import Plan, Step, part, past, queue
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.messages import content
from resolvers.messages.bulk import copy, row_changes
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk.flags import KEYWORDS
from resolvers.messages.bulk.row_changes import Changes
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.transfer import export_writer

log = logging.getLogger(__name__)

KIND = "FILTER_APPLY"
MOST = 100  # per task
CHUNK = 50  # per task step


async def apply(ctx: Context, ids: Sequence[int], selected: Selection) -> Task:
    """Queue a task that runs the viewer's filters, in their order, on the viewer's messages.

    Messages that a filter deletes are archived. Nothing is redirected, answered or sent to a
    webhook. Raises InvalidInput or NotFound.
    """
    owner = own(ctx)
    if selected.users.given:
        words = "filters are run on the mail of their own account"
        raise Invalid(words, constraint="exclusive", path=["select", "users"])
    if not 0 < len(ids) <= MOST:
        raise Invalid(f"1 to {MOST} filters", constraint="length", path=["ids"])
    all_found(ids, {row.id for row in await filter_loaders.all_of(ctx, owner)})
    chosen = await export_writer.chosen(ctx, owner, selected)
    there = set(chosen)
    for index, key in enumerate(selected.ids or ()):
        if key not in there:
            raise NotFound(str(key), path=["select", "ids"], index=index)
    order = {"ids": chosen, "filters": list(dict.fromkeys(ids))}
    async with ctx.write(owner) as session:
        (task,) = await queue(ctx, session, KIND, [order], user_id=owner, total=len(chosen))
        await ctx.record(session, owner, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Read the next messages, and run the current filters on each."""
    ids, chosen = part(order, checkpoint, CHUNK), set(order["filters"])
    ctx.forget()
    rows = await filter_loaders.all_of(ctx, own(ctx))
    rules = [filter_loaders.rule_of(row) for row in rows if row.id in chosen]
    found: dict[int, Decision] = {}
    for key, stored in zip(ids, await ctx.load_all(content.stored, ids), strict=True):
        if isinstance(stored, Stored) and rules:
            try:
                found[key] = await _decided(stored, rules)
            except Corrupt as damage:  # the message stays where it is; the task continues
                extra = {"message_id": key, "damage": str(damage)}
                log.warning("filters were not applied to a damaged message", extra=extra)
    ctx.forget()  # frees the loaded messages
    return Plan(ids=ids, made=found)


async def _decided(stored: Stored, rules: Sequence[Rule]) -> Decision:
    tree = stored.structure
    return await stored.examine(
        lambda source: filter_compiler.decided(rules, Looked(Letter(source, tree))), apart=True
    )


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Apply the decisions to the messages that still exist, together for equal decisions."""
    decisions: Mapping[int, Decision] = {k: one for k, one in held.made.items() if one.matched}
    statement = select(*picked(Mailbox)).where(col(Mailbox.user_id) == own(ctx))
    rows = (await (await session.connection()).execute(statement)).all()
    doing = _Doing(ctx, session, {row.id: row for row in rows}, decisions)
    await doing.mark()
    left = checkpoint.get("left", 0) + await doing.copy()
    await doing.place()
    await _count(session, decisions.values())
    done = past(held.ids, order, checkpoint, len(decisions))
    return Step({**done.checkpoint, "left": left}, done.done, more=done.more)


class _Doing:
    """Messages of one task step, with the decision for each."""

    def __init__(
        self,
        ctx: Context,
        session: AsyncSession,
        boxes: Mapping[int, Picked],
        decisions: Mapping[int, Decision],
    ) -> None:
        self.ctx, self.session = ctx, session
        self.boxes, self.decisions = boxes, decisions
        roles = {mailbox.special_use: mailbox for mailbox in boxes.values() if mailbox.special_use}
        self.junk, self.inbox = roles.get(SpecialUse.JUNK), roles.get(SpecialUse.INBOX)

    async def rows(self) -> list[Picked]:
        """Load the current rows of the messages that still exist."""
        rows = await row_changes.chosen(self.session, list(self.decisions))
        mine = own(self.ctx)
        return [row for row in rows if row.archived_at is None and row.user_id == mine]

    async def mark(self) -> None:
        """Set flags and keywords, up to the limit of keywords per message."""
        alike: defaultdict[tuple[Any, ...], list[Picked]] = defaultdict(list)
        for row in await self.rows():
            one = self.decisions[row.id]
            fresh = [name for name in one.labels if name not in row.keywords]
            add = tuple(fresh[: max(0, KEYWORDS - len(row.keywords))])
            alike[one.seen, one.flagged, add, tuple(one.removed)].append(row)
        for (seen, flagged, add, removed), theirs in alike.items():
            flags = {"seen": seen, "flagged": flagged}
            on = {name: True for name, said in flags.items() if said}
            changes = Changes(on, add=add, remove=removed)
            if not changes.nothing:
                await bulk_flags.change(self.ctx, self.session, theirs, changes)

    async def copy(self) -> int:
        """Copy messages while the quota allows it. Returns the number of skipped copies."""
        to: defaultdict[int, list[Picked]] = defaultdict(list)
        for row in await self.rows():
            for mailbox in self.decisions[row.id].copies:
                if mailbox in self.boxes and mailbox != row.mailbox_id:
                    to[mailbox].append(row)
        left = 0
        for mailbox, theirs in to.items():
            if await self._fit(sum(row.size for row in theirs)):
                await copy.copy(self.ctx, self.session, theirs, self.boxes[mailbox])
            else:
                left += len(theirs)
        return left

    async def _fit(self, size: int) -> bool:
        given = {"user": own(self.ctx), "platform": self.ctx.world.options.default_quota}
        found = await self.ctx.read(QUOTA, given)
        return all(not row.allowed or row.used + size <= row.allowed for row in found)

    async def place(self) -> None:
        """Move the messages to their target mailbox, or to the archive."""
        gone: list[Picked] = []
        to: defaultdict[int, list[Picked]] = defaultdict(list)
        for row in await self.rows():
            mailbox = self._place(row)
            if self.decisions[row.id].delete:
                gone.append(row)
            elif mailbox is not None:
                to[mailbox.id].append(row)
        for key, theirs in to.items():
            await row_changes.move(self.ctx, self.session, theirs, self.boxes[key])
        if gone:
            paths = {mailbox.id: mailbox.path for mailbox in self.boxes.values()}
            await row_changes.archive(self.ctx, self.session, gone, paths)

    def _place(self, row: Picked) -> Picked | None:
        """Return the target mailbox, or None if the message stays in its mailbox.

        Messages in Junk stay there unless a filter decides that they are not spam.
        """
        one = self.decisions[row.id]
        in_junk = self.junk is not None and row.mailbox_id == self.junk.id
        if one.spam:
            return self.junk
        if in_junk and one.spam is None:
            return None
        if one.mailbox_id is not None:
            return self.boxes.get(one.mailbox_id, self.inbox)
        return self.inbox if in_junk else None


async def _count(session: AsyncSession, decisions: Iterable[Decision]) -> None:
    """Add to the match counts of the filters, in one statement per count."""
    often = Counter(key for one in decisions for key in one.matched)
    connection = await session.connection()
    for many in sorted(set(often.values())):
        keys = [key for key, times in often.items() if times == many]
        these = update(Filter).where(col(Filter.id).in_(keys))
        await connection.execute(these.values(match_count=Filter.match_count + many))
