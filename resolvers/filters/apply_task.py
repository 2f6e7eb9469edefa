"""Running filters on mail that is there: a task, which moves, copies, marks and labels."""

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
MOST = 100  # filters of a task
CHUNK = 50  # messages of a task's unit


async def apply(ctx: Context, ids: Sequence[int], selected: Selection) -> Task:
    """Run own filters, in their order, on own messages, by a task. NotFound.

    What they delete goes to the archive. Nothing is sent on, answered or posted.
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
    """Read the next messages, and decide about each by the filters as they are now."""
    ids, chosen = part(order, checkpoint, CHUNK), set(order["filters"])
    ctx.forget()
    rows = await filter_loaders.all_of(ctx, own(ctx))
    rules = [filter_loaders.rule_of(row) for row in rows if row.id in chosen]
    found: dict[int, Decision] = {}
    for key, stored in zip(ids, await ctx.load_all(content.stored, ids), strict=True):
        if isinstance(stored, Stored) and rules:
            try:
                found[key] = await _decided(stored, rules)
            except Corrupt as damage:  # it stays where it is, and the others go on
                extra = {"message_id": key, "damage": str(damage)}
                log.warning("filters were not applied to a damaged message", extra=extra)
    ctx.forget()  # or all of it would stay in memory
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
    """Do it to those that are there still, as many at once as are treated alike."""
    decisions: Mapping[int, Decision] = {k: one for k, one in held.made.items() if one.matched}
    asked = select(*picked(Mailbox)).where(col(Mailbox.user_id) == own(ctx))
    rows = (await (await session.connection()).execute(asked)).all()
    doing = _Doing(ctx, session, {row.id: row for row in rows}, decisions)
    await doing.mark()
    left = checkpoint.get("left", 0) + await doing.copy()
    await doing.place()
    await _count(session, decisions.values())
    done = past(held.ids, order, checkpoint, len(decisions))
    return Step({**done.checkpoint, "left": left}, done.done, more=done.more)


class _Doing:
    """Messages of one unit, and what is decided about each."""

    def __init__(
        self,
        ctx: Context,
        session: AsyncSession,
        boxes: Mapping[int, Picked],
        decisions: Mapping[int, Decision],
    ) -> None:
        self.ctx, self.session = ctx, session
        self.boxes, self.decisions = boxes, decisions
        roles = {box.special_use: box for box in boxes.values() if box.special_use}
        self.junk, self.inbox = roles.get(SpecialUse.JUNK), roles.get(SpecialUse.INBOX)

    async def rows(self) -> list[Picked]:
        """The messages as they are now; without those that have gone."""
        rows = await row_changes.chosen(self.session, list(self.decisions))
        mine = own(self.ctx)
        return [row for row in rows if row.archived_at is None and row.user_id == mine]

    async def mark(self) -> None:
        """Flags and keywords; of those only as many as a message may have."""
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
        """Copy as long as there is room; how many copies there was none for."""
        to: defaultdict[int, list[Picked]] = defaultdict(list)
        for row in await self.rows():
            for box in self.decisions[row.id].copies:
                if box in self.boxes and box != row.mailbox_id:
                    to[box].append(row)
        left = 0
        for box, theirs in to.items():
            if await self._fit(sum(row.size for row in theirs)):
                await copy.copy(self.ctx, self.session, theirs, self.boxes[box])
            else:
                left += len(theirs)
        return left

    async def _fit(self, size: int) -> bool:
        given = {"user": own(self.ctx), "platform": self.ctx.world.options.default_quota}
        found = await self.ctx.read(QUOTA, given)
        return all(not row.allowed or row.used + size <= row.allowed for row in found)

    async def place(self) -> None:
        """Move them to where they belong, or to the archive."""
        gone: list[Picked] = []
        to: defaultdict[int, list[Picked]] = defaultdict(list)
        for row in await self.rows():
            box = self._place(row)
            if self.decisions[row.id].delete:
                gone.append(row)
            elif box is not None:
                to[box.id].append(row)
        for key, theirs in to.items():
            await row_changes.move(self.ctx, self.session, theirs, self.boxes[key])
        if gone:
            paths = {box.id: box.path for box in self.boxes.values()}
            await row_changes.archive(self.ctx, self.session, gone, paths)

    def _place(self, row: Picked) -> Picked | None:
        """Where a message belongs; None: where it is. Junk stays Junk unless a filter says No."""
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
    """Count what acted; filters that did as often take one statement."""
    often = Counter(key for one in decisions for key in one.matched)
    connection = await session.connection()
    for many in sorted(set(often.values())):
        keys = [key for key, times in often.items() if times == many]
        these = update(Filter).where(col(Filter.id).in_(keys))
        await connection.execute(these.values(match_count=Filter.match_count + many))
