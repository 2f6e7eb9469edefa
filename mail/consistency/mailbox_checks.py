"""Consistency checks of some mailboxes, and of their user."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlmodel import SQLModel, col

from mail.consistency.all_checks import statement_checks
from mail.consistency.checks import BrokenRow, CheckRun, Condition, find_broken_rows
from mail.consistency.messages import MessageProblem, find_message_problems
from mail.consistency.repair import findings_of, repair_rows_of_locked_stream
from mail.consistency.report import Finding
from models.events.journal import Stream
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread
from models.runtime.environment import DatabaseTransaction, Environment
from models.users.tables import User

TABLES_BY_SINGLE_KEY = (
    Mailbox,
    User,
    Stream,
)  # checked key by key, since the keys between belong to other users


@dataclass(frozen=True, slots=True)
class MailboxProblems:
    """The problems that were found in mailboxes; none of them is repaired yet."""

    broken_rows: Sequence[BrokenRow] = ()
    message_problems: Sequence[MessageProblem] = ()


async def find_mailbox_problems(
    environment: Environment,
    user_id: int,
    mailbox_ids: Sequence[int],
    *,
    checks_user: bool,
    reads_messages: bool,
) -> MailboxProblems:
    """Check mailboxes of a user.

    With `checks_user` the user is checked too; with `reads_messages` every byte is read.
    """
    only: dict[type[SQLModel], Condition] = {
        Mailbox: col(Mailbox.id).in_(mailbox_ids),
        Message: col(Message.mailbox_id).in_(mailbox_ids),
    }
    if checks_user:
        only |= {
            User: col(User.id) == user_id,
            Stream: col(Stream.id) == user_id,
            Thread: col(Thread.user_id) == user_id,
        }
    look, broken_rows = CheckRun(environment, None), list[BrokenRow]()
    for check in statement_checks(environment):
        if check.table in only:
            step = 1 if check.table in TABLES_BY_SINGLE_KEY else None
            broken_rows += await find_broken_rows(
                look, check, [only[check.table]], keys_per_statement=step
            )
    wrong = (
        await find_message_problems(look, [only[Message]], rebuilds_messages=True)
        if reads_messages
        else []
    )
    return MailboxProblems(broken_rows, wrong)


def repair_problems(transaction: DatabaseTransaction, problems: MailboxProblems) -> list[Finding]:
    """Repair what can be repaired, in a transaction that locks the user; return all findings."""
    findings: list[Finding] = []
    groups: defaultdict[tuple[int, int], list[BrokenRow]] = defaultdict(list)
    for hit in problems.broken_rows:
        groups[id(hit.check), hit.stream_id].append(hit)
    for (_, stream), group in groups.items():
        curable = any(finding.repairable for hit in group for finding in hit.findings)
        findings += (
            repair_rows_of_locked_stream(transaction, group, stream)
            if curable
            else findings_of(group)
        )
    for problem in problems.message_problems:
        is_repaired = problem.repair is not None and problem.repair(transaction)
        findings.append(replace(problem.finding, repaired=is_repaired))
    return findings
