"""Mutation that checks and repairs mailboxes."""

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import USERS_DESCRIPTION, Mailbox
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import UserSelection, user_selector_from_selection
from models.users.roles import Role, Scope
from resolvers.mailboxes import repair
from resolvers.mailboxes.repair import MailboxRepairRequest


@strawberry.input(description="Input of mailboxRepair.")
class MailboxRepairInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox_patterns: list[str] = attribute_field(
        "Paths with * for anything and % for anything within a level."
    )
    check_blobs: bool = attribute_field(
        "Put every message together from what is stored, and compare its digest.", default=True
    )


@strawberry.type(description="What was wrong with a folder.")
class RepairResult:
    mailbox: Mailbox = attribute_field("The folder, as it is now.")
    findings: list[str] = attribute_field(
        "Each thing that was wrong; the account's stand with one folder."
    )
    fixed: bool = attribute_field("All of it is right again.")


@strawberry.type(description="Answer of mailboxRepair.")
class MailboxRepairPayload(MutationPayload):
    repair_results: list[RepairResult] = attribute_field(
        "The mailboxes with a finding.", default_factory=list
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)


@strawberry.type
class MailboxRepairMutation:
    @mutation(
        "Checks counters, numbers, references, the text index, conversations, the journal and "
        "stored bytes, and fixes what can be computed again.",
        role=Role.ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion("a repair, which looks at what is stored"),
    )
    async def mailbox_repair(self, info: Info, input: MailboxRepairInput) -> MailboxRepairPayload:
        request = MailboxRepairRequest(input.mailbox_patterns, reads_messages=input.check_blobs)
        result = await repair.repair_mailboxes(
            info.context, request, user_selector_from_selection(input.users or None)
        )
        results = [
            RepairResult(
                mailbox=Mailbox.from_row(repaired.mailbox),
                findings=repaired.findings,
                fixed=repaired.is_fixed,
            )
            for repaired in result.repaired
        ]
        return MailboxRepairPayload(repair_results=results, task=Task.from_row_or_none(result.task))
