"""Mutation that checks and repairs mailboxes."""

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import Mailbox
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, user_selector_from_selection
from models.users.roles import Role, Scope
from resolvers.mailboxes import repair
from resolvers.mailboxes.repair import MailboxRepairRequest


@strawberry.input(description="Input of mailboxRepair.")
class MailboxRepairInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose mailboxes are checked. `all: true` always starts a task, which checks the "
        "mailboxes of all users. If the caller is an ADMIN, it leaves out users with the role "
        "ROOT. Default: the signed-in user.",
        default=UNSET,
    )
    mailbox_patterns: list[str] = attribute_field(
        "Patterns for paths of the mailboxes to check (case is significant, except in INBOX): `*` "
        "matches any characters, `%` any characters except `/`. At most 20 patterns of 1,000 "
        "characters. An empty list selects no mailbox."
    )
    check_blobs: bool = attribute_field(
        "True also reads every stored message and compares it with its hash, which takes longer. "
        "Default: true.",
        default=True,
    )


@strawberry.type(description="Problems that mailboxRepair found in one mailbox.")
class RepairResult:
    mailbox: Mailbox = attribute_field("Mailbox with the problems, in its state after the repair.")
    findings: list[str] = attribute_field(
        "One English sentence for each problem of the mailbox, with the value found and the "
        "value expected: at most the first 250. `findingCount` counts all. Problems of the whole "
        "account are in the result of one of its checked mailboxes."
    )
    finding_count: int = attribute_field(
        "Number of problems of the mailbox, including those that `findings` leaves out."
    )
    fixed: bool = attribute_field(
        "True if all problems of the mailbox are repaired. Lost messages can't be repaired."
    )


@strawberry.type(description="Payload of mailboxRepair.")
class MailboxRepairPayload(MutationPayload):
    repair_results: list[RepairResult] = attribute_field(
        "Mailboxes with a problem. Empty if there is none, or if a task checks the mailboxes.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that checks the mailboxes. Null if they were checked at once.", default=None
    )


@strawberry.type
class MailboxRepairMutation:
    @mutation(
        "Compares counters, UIDs, threads, the text index, the event journal and stored bytes of "
        "mailboxes with each other, and repairs what can be computed again. Hidden mailboxes are "
        "checked too. If more than 100 mailboxes, or mailboxes with more than 5,000 messages "
        "together, are selected, a task checks them. LIMIT_REACHED for more than 1,000 users (by "
        "default).",
        role=Role.ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion("A repair of a mailbox"),
        access=MANAGED,
    )
    async def mailbox_repair(self, info: Info, input: MailboxRepairInput) -> MailboxRepairPayload:
        request = MailboxRepairRequest(input.mailbox_patterns, reads_messages=input.check_blobs)
        result = await repair.repair_mailboxes_or_queue_task(
            info.context, request, user_selector_from_selection(input.users or None)
        )
        results = [
            RepairResult(
                mailbox=Mailbox.from_row(repaired.mailbox),
                findings=repaired.findings,
                finding_count=repaired.finding_count,
                fixed=repaired.is_fixed,
            )
            for repaired in result.repaired
        ]
        return MailboxRepairPayload(repair_results=results, task=Task.from_row_or_none(result.task))
