"""The orders of lists of messages."""

from enum import StrEnum

import strawberry


@strawberry.enum(
    description=(
        "Order of a list of messages. A message that returned from a snooze counts as received at "
        "its return, except in `Thread.messages`. DATE, FROM, SIZE and SUBJECT require a list of "
        "one mailbox: `Mailbox.messages`, or a list of one user with a filter by `mailbox`. In "
        "other lists these orders are an error. SUBJECT is FORBIDDEN for an administrator below "
        "ROOT in a mailbox of another user who does not share it with READ."
    )
)
class MessageOrder(StrEnum):
    RECEIVED_AT_DESC = "RECEIVED_AT_DESC"
    RECEIVED_AT_ASC = "RECEIVED_AT_ASC"
    DATE_ASC = "DATE_ASC"
    DATE_DESC = "DATE_DESC"
    FROM_ASC = "FROM_ASC"
    FROM_DESC = "FROM_DESC"
    SEEN_ASC = "SEEN_ASC"
    SEEN_DESC = "SEEN_DESC"
    SIZE_ASC = "SIZE_ASC"
    SIZE_DESC = "SIZE_DESC"
    SUBJECT_ASC = "SUBJECT_ASC"
    SUBJECT_DESC = "SUBJECT_DESC"
    RELEVANCE = "RELEVANCE"

    @property
    def is_by_seen(self) -> bool:
        """True if the messages are sorted by their flag Seen."""
        return self in {MessageOrder.SEEN_ASC, MessageOrder.SEEN_DESC}

    @property
    def cursor_ordering(self) -> str:
        """The name of the order in cursors: `received-`, `date+`."""
        if self is MessageOrder.RELEVANCE:
            return "relevance-"
        key, _, direction = self.value.rpartition("_")
        name = key.removesuffix("_AT").lower()
        return f"{name}{'-' if direction == 'DESC' else '+'}"
