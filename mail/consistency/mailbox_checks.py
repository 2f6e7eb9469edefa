"""Consistency checks of some mailboxes, and of their user."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlmodel import SQLModel, col

from mail.consistency.all_checks import checks
from mail.consistency.checks import Condition, Hit, Look, run
from mail.consistency.messages import Trouble, troubles
from mail.consistency.repair import cured, untouched
from mail.consistency.report import Finding
from models.events.journal import Stream
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread
from models.runtime.environment import Turn, World
from models.users.tables import User

CLOSE = (Mailbox, User, Stream)  # checked key by key, since the keys between belong to other users


@dataclass(frozen=True, slots=True)
class Examined:
    """The problems that were found in mailboxes; none of them is repaired yet."""

    hits: Sequence[Hit] = ()
    troubles: Sequence[Trouble] = ()


async def examine(
    world: World, user_id: int, mailboxes: Sequence[int], *, account: bool, read: bool
) -> Examined:
    """Check mailboxes of a user.

    With `checks_user` the user is checked too; with `reads_messages` every byte is read.
    """
    only: dict[type[SQLModel], Condition] = {
        Mailbox: col(Mailbox.id).in_(mailboxes),
        Message: col(Message.mailbox_id).in_(mailboxes),
    }
    if account:
        only |= {
            User: col(User.id) == user_id,
            Stream: col(Stream.id) == user_id,
            Thread: col(Thread.user_id) == user_id,
        }
    look, hits = Look(world, None), list[Hit]()
    for check in checks(world):
        if check.table in only:
            step = 1 if check.table in CLOSE else None
            hits += await run(look, check, [only[check.table]], step=step)
    wrong = await troubles(look, [only[Message]], read=True) if read else []
    return Examined(hits, wrong)


def mend(turn: Turn, examined: Examined) -> list[Finding]:
    """Repair what can be repaired, in a transaction that locks the user; return all findings."""
    findings: list[Finding] = []
    groups: defaultdict[tuple[int, int], list[Hit]] = defaultdict(list)
    for hit in examined.hits:
        groups[id(hit.check), hit.stream].append(hit)
    for (_, stream), group in groups.items():
        curable = any(finding.repairable for hit in group for finding in hit.findings)
        findings += cured(turn, group, stream) if curable else untouched(group)
    for trouble in examined.troubles:
        done = trouble.mend is not None and trouble.mend(turn)
        findings.append(replace(trouble.finding, repaired=done))
    return findings
