"""Mutation that sets the UID state of mailboxes for a migration."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import WHOSE, MailboxesPayload, payload
from graph.types.errors import Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MailboxRef, UserSelection, named, users_named
from graph.types.scalars import BigInt
from models.users.roles import Role, Scope
from resolvers.mailboxes import uid_state
from resolvers.mailboxes.uid_state import State


@strawberry.input(description="Input of mailboxStateSet.")
class MailboxStateSetInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    mailbox: MailboxRef = leaf("The folder.")
    guid: str | None = leaf("32 hex digits, of one user's folder.", default=UNSET)
    uid_validity: BigInt | None = leaf("Above all that the user's folders have had.", default=UNSET)
    min_next_uid: BigInt | None = leaf("The next uid is this or higher.", default=UNSET)
    min_highest_modseq: BigInt | None = leaf(
        "The journal goes on above this, and its cursors are stale.", default=UNSET
    )


@strawberry.type
class MailboxStateMutation:
    @mutation("Counters for migration, never lowered.", role=Role.ADMIN, scope=Scope.MASTER)
    async def mailbox_state_set(self, info: Info, input: MailboxStateSetInput) -> MailboxesPayload:
        state = State(
            input.guid if isinstance(input.guid, str) else None,
            input.uid_validity if isinstance(input.uid_validity, int) else None,
            input.min_next_uid if isinstance(input.min_next_uid, int) else None,
            input.min_highest_modseq if isinstance(input.min_highest_modseq, int) else None,
        )
        user_selector = users_named(input.users or None)
        rows = await uid_state.set_state(info.context, named(input.mailbox), state, user_selector)
        return payload(rows)
