"""Mutation that sets the UID state of mailboxes for a migration."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.inputs import USERS_DESCRIPTION
from graph.mailboxes.types import MailboxesPayload, mailboxes_payload
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
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
    mailbox: MailboxRef = attribute_field("Mailbox to change. Each selected user must have it.")
    object_id: str | None = attribute_field(
        "New MAILBOXID of the mailbox (RFC 8474): 32 hexadecimal digits in lower case. Allowed "
        "with the mailbox of one user. If another mailbox of the user has it: CONFLICT. Default: "
        "unchanged.",
        default=UNSET,
    )
    uid_validity: BigInt | None = attribute_field(
        "New UIDVALIDITY of the mailbox (RFC 9051), 1 to 4,278,190,079. It must be higher than "
        "the UIDVALIDITY of every mailbox that the user has had. A number below the present one "
        "of this mailbox is the error VALIDATION; any other number that is too low is a CONFLICT. "
        "The present number changes nothing. Default: unchanged.",
        default=UNSET,
    )
    min_next_uid: BigInt | None = attribute_field(
        "Raises UIDNEXT of the mailbox (RFC 9051) to at least this number, 1 to 4,294,967,295. A "
        "lower number changes nothing. Default: unchanged.",
        default=UNSET,
    )
    min_highest_modseq: BigInt | None = attribute_field(
        "Raises HIGHESTMODSEQ of the mailbox (RFC 7162) to at least this number, 1 to 2^52; a "
        "lower number changes nothing. If the number is more than 1 above the last "
        "position of the user's event journal, existing cursors of the user become "
        "invalid. Default: unchanged.",
        default=UNSET,
    )


@strawberry.type
class MailboxStateMutation:
    @mutation(
        "Sets UIDVALIDITY, UIDNEXT, HIGHESTMODSEQ or MAILBOXID of one mailbox of each selected "
        "user after a migration: for all users or none. Mail programs then keep their caches. The "
        "three numbers can only be raised, and at least one field is required. CONFLICT if "
        "another mailbox of the user has the MAILBOXID, or could have had the UIDVALIDITY. "
        "LIMIT_REACHED for more than 1,000 users (by default).",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
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
