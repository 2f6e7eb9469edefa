"""Consistency checks of some mailboxes, and of their user."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import and_, func, select
from sqlmodel import SQLModel, col

from mail.consistency.all_checks import statement_checks
from mail.consistency.checks import (
    BrokenRow,
    CheckRun,
    Condition,
    find_broken_rows,
    id_column,
)
from mail.consistency.message_sort_keys import find_sort_key_problems
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

LONG_TABLES = (Message, Thread)  # checked in parts
ROWS_PER_PART = 1000  # well below a second


@dataclass(frozen=True, slots=True)
class MailboxProblems:
    """The problems that were found in mailboxes; none of them is repaired yet."""

    broken_rows: Sequence[BrokenRow] = ()
    message_problems: Sequence[MessageProblem] = ()


@dataclass(frozen=True, slots=True)
class MailboxCheckRequest:
    """A mailbox to check in parts."""

    user_id: int
    mailbox_id: int
    checks_user: bool
    reads_messages: bool  # every byte


@dataclass(frozen=True, slots=True)
class MailboxCheckPosition:
    """The place in a mailbox at which its check continues."""

    table_index: int = 0  # in LONG_TABLES
    after_id: int = 0  # the last row of this table that was checked


@dataclass(frozen=True, slots=True)
class MailboxCheckPart:
    """The problems in a part of a mailbox."""

    problems: MailboxProblems
    next_position: MailboxCheckPosition | None  # None: the mailbox is checked


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
    conditions = _conditions_by_table(user_id, mailbox_ids, checks_user=checks_user)
    return await _find_problems(environment, conditions, reads_messages=reads_messages)


async def find_next_mailbox_problems(
    environment: Environment, request: MailboxCheckRequest, position: MailboxCheckPosition
) -> MailboxCheckPart:
    """Check the next part of a mailbox, as `find_mailbox_problems` does for a whole mailbox.

    Counters are checked in the last part, since they depend on the messages.
    """
    conditions = _conditions_by_table(
        request.user_id, [request.mailbox_id], checks_user=request.checks_user
    )
    long_tables = [table for table in LONG_TABLES if table in conditions]
    for index in range(position.table_index, len(long_tables)):
        table, after_id = long_tables[index], position.after_id
        if index != position.table_index:
            after_id = 0
        key, is_selected = id_column(table), conditions[table]
        next_ids = select(key).where(is_selected, key > after_id).order_by(key).limit(ROWS_PER_PART)
        ((last_id,),) = await environment.database.read(select(func.max(next_ids.subquery().c.id)))
        if last_id is not None:
            is_in_part = and_(is_selected, key > after_id, key <= last_id)
            problems = await _find_problems(
                environment, {table: is_in_part}, reads_messages=request.reads_messages
            )
            return MailboxCheckPart(problems, MailboxCheckPosition(index, int(last_id)))
    short_tables = {
        table: condition for table, condition in conditions.items() if table not in LONG_TABLES
    }
    problems = await _find_problems(environment, short_tables, reads_messages=False)
    return MailboxCheckPart(problems, None)


def _conditions_by_table(
    user_id: int, mailbox_ids: Sequence[int], *, checks_user: bool
) -> dict[type[SQLModel], Condition]:
    """Return the conditions of the rows to check, by table."""
    conditions: dict[type[SQLModel], Condition] = {
        Mailbox: col(Mailbox.id).in_(mailbox_ids),
        Message: col(Message.mailbox_id).in_(mailbox_ids),
    }
    if checks_user:
        conditions |= {
            User: col(User.id) == user_id,
            Stream: col(Stream.id) == user_id,
            Thread: col(Thread.user_id) == user_id,
        }
    return conditions


async def _find_problems(
    environment: Environment,
    conditions: Mapping[type[SQLModel], Condition],
    *,
    reads_messages: bool,
) -> MailboxProblems:
    """Check the rows of these tables, and with `reads_messages` every byte of the messages."""
    check_run, broken_rows = CheckRun(environment, None), list[BrokenRow]()
    for check in statement_checks(environment):
        if check.table in conditions:
            step = 1 if check.table in TABLES_BY_SINGLE_KEY else None
            broken_rows += await find_broken_rows(
                check_run, check, [conditions[check.table]], keys_per_statement=step
            )
    message_problems: list[MessageProblem] = []
    if Message in conditions:
        message_problems += await find_sort_key_problems(environment, [conditions[Message]])
    if reads_messages and Message in conditions:
        message_problems += await find_message_problems(
            check_run, [conditions[Message]], rebuilds_messages=True
        )
    return MailboxProblems(broken_rows, message_problems)


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
