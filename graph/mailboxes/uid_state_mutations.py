"""Mutation that sets the UID state of mailboxes for a migration."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import USERS_DESCRIPTION, MailboxesPayload, mailboxes_payload
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from graph.types.scalars import BigInt
from models.users.roles import Role, Scope
from resolvers.mailboxes import uid_state
from resolvers.mailboxes.uid_state import MailboxUidState


@strawberry.input(description="Input of mailboxStateSet.")
class MailboxStateSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field("The folder.")
    object_id: str | None = attribute_field(
        "New MAILBOXID: 32 hexadecimal digits. Allowed with the mailbox of one user.", default=UNSET
    )
    uid_validity: BigInt | None = attribute_field(
        "Above all that the user's folders have had.", default=UNSET
    )
    min_next_uid: BigInt | None = attribute_field("The next uid is this or higher.", default=UNSET)
    min_highest_modseq: BigInt | None = attribute_field(
        "The journal goes on above this, and its cursors are stale.", default=UNSET
    )


@strawberry.type
class MailboxStateMutation:
    @mutation("Counters for migration, never lowered.", role=Role.ADMIN, scope=Scope.FULL)
    async def mailbox_state_set(self, info: Info, input: MailboxStateSetInput) -> MailboxesPayload:
        state = MailboxUidState(
            input.object_id if isinstance(input.object_id, str) else None,
            input.uid_validity if isinstance(input.uid_validity, int) else None,
            input.min_next_uid if isinstance(input.min_next_uid, int) else None,
            input.min_highest_modseq if isinstance(input.min_highest_modseq, int) else None,
        )
        user_selector = user_selector_from_selection(input.users or None)
        rows = await uid_state.set_uid_state(
            info.context, mailbox_selector_from_ref(input.mailbox), state, user_selector
        )
        return mailboxes_payload(rows)
