"""Input that selects the messages of a bulk mutation."""

from collections.abc import Sequence

import strawberry
from strawberry import UNSET

from graph.messages.filter_inputs import MessageFilter
from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions

MAX_SELECTED_IDS = 1000  # per selection


def decode_selected_ids(type_name: str, ids: Sequence[strawberry.ID], wider: str) -> list[int]:
    """Return the row keys of the IDs of a selection.

    Raises InvalidInput if an ID is not valid, or if they are too many: then `wider` selects more.
    """
    path = ["select", "ids"]
    if len(ids) > MAX_SELECTED_IDS:
        text = f"At most {MAX_SELECTED_IDS} IDs are allowed: select more messages by {wider}."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=path)
    return global_ids.decode_all(type_name, ids, path=path)


@strawberry.input(
    description="Selection of messages by exactly one of these: `ids`, `mailbox` with `uids`, "
    "`mailbox` alone, `filter`, or `all`. An empty list selects no message; an empty object is an "
    "error."
)
class MessageSelection(ConditionsInput):
    ids: list[strawberry.ID] | None = attribute_field(
        "Global IDs of messages in mailboxes, at most 1,000. A deleted message, or one that the "
        "caller can't see, is the error NOT_FOUND. Messages that another user shares can't be "
        "combined with messages of other owners.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of the messages. Without `uids` all its messages are selected. A missing mailbox "
        "is the error NOT_FOUND; of several users, those without it are skipped.",
        default=UNSET,
    )
    uids: str | None = attribute_field(
        "UIDs in `mailbox` in IMAP notation (RFC 9051), such as `1,3:15,40:*`: at most 1,000 "
        "numbers and ranges, and at most 250 ranges after adjacent ones are joined. Requires "
        "`mailbox`. A UID without a message is no error.",
        default=UNSET,
    )
    filter: MessageFilter | None = attribute_field(
        "Selects all messages of the selected users that match the filter. Without `users`, "
        "messages that others share with the caller are selected only if `filter.mailbox` names "
        "their mailbox by ID. Conditions on the content of other users' mail are FORBIDDEN for an "
        "administrator below ROOT.",
        default=UNSET,
    )
    all: bool | None = attribute_field(
        "True selects every message in the mailboxes of the selected users, not in mailboxes that "
        "others share with them. False counts as omitted.",
        default=UNSET,
    )
    users: UserSelection | None = attribute_field(
        "Users whose messages are selected; with `sourceUser` the one user who gets them. A "
        "mailbox by path or special use is that of each user. Other users require the role "
        "DOMAIN_ADMIN with the permission IMPERSONATE, or the "
        "role ADMIN. Default: the owners of `ids`, or of a mailbox named by its ID, else "
        "the signed-in user; in messageTierMove always the signed-in user.",
        default=UNSET,
    )

    def to_validated_selector(self, info: Info) -> MessageSelector:
        """Convert the input to a selection of the resolvers.

        Raises InvalidInput if it selects in two ways, or names too many or invalid IDs.
        """
        if self.filter and self.all:
            text = "Exactly one of `ids`, `mailbox`, `filter` and `all` is required."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["select", "all"]
            )
        keys = None
        if self.ids is not UNSET and self.ids is not None:
            keys = decode_selected_ids("Message", self.ids, "mailbox or filter")
        return MessageSelector(
            keys,
            mailbox_selector_from_ref(self.mailbox) if self.mailbox else None,
            self.uids or None,
            self.filter.to_validated_conditions(info)
            if self.filter
            else MessageConditions()
            if self.all
            else None,
            user_selector_from_selection(self.users or None),
        )
