"""Mutation that checks and repairs mailboxes."""

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.mailboxes.types import WHOSE, Mailbox
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import Alone, mutation
from graph.types.references import UserSelection, users_named
from models.users.roles import Role, Scope
from resolvers.mailboxes import repair
from resolvers.mailboxes.repair import Asked


@strawberry.input(description="Input of mailboxRepair.")
class MailboxRepairInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailbox_masks: list[str] = leaf("Paths with * for anything and % for anything within a level.")
    check_blobs: bool = leaf(
        "Put every message together from what is stored, and compare its digest.", default=True
    )


@strawberry.type(description="What was wrong with a folder.")
class RepairResult:
    mailbox: Mailbox = leaf("The folder, as it is now.")
    findings: list[str] = leaf("Each thing that was wrong; the account's stand with one folder.")
    fixed: bool = leaf("All of it is right again.")


@strawberry.type(description="Answer of mailboxRepair.")
class MailboxRepairPayload(MutationPayload):
    repaired: list[RepairResult] = leaf(
        "The folders with which something was wrong.", default_factory=list
    )
    task: Task | None = leaf("Background work, null when done at once.", default=None)


@strawberry.type
class MailboxRepairMutation:
    @mutation(
        "Checks counters, numbers, references, the text index, conversations, the journal and "
        "stored bytes, and fixes what can be computed again.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
        alone=Alone("a repair, which looks at what is stored"),
    )
    async def mailbox_repair(self, info: Info, input: MailboxRepairInput) -> MailboxRepairPayload:
        request = Asked(input.mailbox_masks, blobs=input.check_blobs)
        result = await repair.repair(info.context, request, users_named(input.users or None))
        results = [
            RepairResult(
                mailbox=Mailbox.of(repaired.mailbox),
                findings=repaired.findings,
                fixed=repaired.fixed,
            )
            for repaired in result.repaired
        ]
        return MailboxRepairPayload(repaired=results, task=Task.maybe(result.task))
