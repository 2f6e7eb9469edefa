"""Which messages: filters of lists and selections of bulk operations, as inputs."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Optional

import strawberry
from strawberry import UNSET

from graph import ids
from graph.errors import leaf
from graph.fields import Info
from graph.refs import MailboxRef, named
from graph.scalars import ByteSize, Duration
from models.errors import Invalid
from resolvers.messages import NEWEST, OLDEST
from resolvers.selections import MessageWhere, Selection

IDS = 1000  # of one selection


@strawberry.enum(description="Order of a list of messages.")
class MessageOrder(StrEnum):
    RECEIVED_DESC = "RECEIVED_DESC"
    RECEIVED_ASC = "RECEIVED_ASC"

    @property
    def ordering(self) -> str:
        """Its name in cursors."""
        return NEWEST if self is MessageOrder.RECEIVED_DESC else OLDEST


@strawberry.input(one_of=True, description="A point in time.")
class DateBound:
    at: strawberry.Maybe[datetime] = leaf("Absolute.")
    ago: strawberry.Maybe[Duration] = leaf("Relative to now, P30D.")

    def moment(self, info: Info) -> datetime:
        """The instant that is meant."""
        if self.at:
            return self.at.value
        ago = self.ago.value if self.ago else timedelta(0)  # one of the two is given
        try:
            return info.context.world.now() - ago
        except OverflowError as problem:
            raise Invalid("too long ago", constraint="min", path=["ago"]) from problem


@strawberry.input(description="All given fields must hold.")
class MessageFilter:
    and_: list["MessageFilter"] | None = leaf("All of.", name="and", default=UNSET)
    or_: list["MessageFilter"] | None = leaf("At least one of.", name="or", default=UNSET)
    not_: Optional["MessageFilter"] = leaf("None of it.", name="not", default=UNSET)
    query: str | None = leaf(
        'Words in body and common headers, from the full-text index; "…" phrase, '
        "trailing * prefix, leading - excludes.",
        default=UNSET,
    )
    from_: str | None = leaf("Partial match of From.", name="from", default=UNSET)
    to: str | None = leaf("Partial match of To and Cc.", default=UNSET)
    subject: str | None = leaf("Partial match of Subject.", default=UNSET)
    message_id: str | None = leaf("Exact Message-ID.", default=UNSET)
    mailbox: MailboxRef | None = leaf("In this folder.", default=UNSET)
    thread: strawberry.ID | None = leaf("In this conversation.", default=UNSET)
    uids: str | None = leaf("Uid set, with mailbox.", default=UNSET)
    seen: bool | None = leaf(r"\Seen.", default=UNSET)
    flagged: bool | None = leaf(r"\Flagged.", default=UNSET)
    answered: bool | None = leaf(r"\Answered.", default=UNSET)
    draft: bool | None = leaf(r"\Draft.", default=UNSET)
    deleted: bool | None = leaf(r"\Deleted.", default=UNSET)
    keyword: str | None = leaf("Has this keyword.", default=UNSET)
    received_since: DateBound | None = leaf("Arrival, inclusive.", default=UNSET)
    received_before: DateBound | None = leaf("Arrival, exclusive.", default=UNSET)
    sent_since: DateBound | None = leaf("Date header, inclusive.", default=UNSET)
    sent_before: DateBound | None = leaf("Date header, exclusive.", default=UNSET)
    larger: ByteSize | None = leaf("More than.", default=UNSET)
    smaller: ByteSize | None = leaf("Less than.", default=UNSET)
    has_attachment: bool | None = leaf("Has files.", default=UNSET)

    def where(self, info: Info) -> MessageWhere:
        """The filter as the floors below know it."""
        plain = {
            name: value
            for name in PLAIN
            if (value := getattr(self, name)) is not UNSET and value is not None
        }
        times = {
            name: bound.moment(info) for name in TIMES if (bound := getattr(self, name) or None)
        }
        if self.uids and not self.mailbox:
            raise Invalid("uids go with a mailbox", constraint="required", path=["filter", "uids"])
        return MessageWhere(
            every=tuple(one.where(info) for one in self.and_ or ()),
            some=tuple(one.where(info) for one in self.or_ or ()),
            none=self.not_.where(info) if self.not_ else None,
            mailbox=named(self.mailbox) if self.mailbox else None,
            thread_id=ids.decode("Thread", self.thread, path="thread") if self.thread else None,
            **plain,
            **times,
        )


PLAIN = (
    "query", "from_", "to", "subject", "message_id", "uids", "seen", "flagged", "answered",
    "draft", "deleted", "keyword", "larger", "smaller", "has_attachment",
)  # fmt: skip
TIMES = ("received_since", "received_before", "sent_since", "sent_before")


class Wanted(NamedTuple):
    """What a list of messages is asked for."""

    filter: MessageFilter | None
    order: MessageOrder
    page: tuple[Any, Any, Any, Any]  # first, after, last, before


@strawberry.input(
    description="Exactly one of ids, mailbox+uids, mailbox alone (all in it), filter."
)
class MessageSelection:
    ids: list[strawberry.ID] | None = leaf("Global ids.", default=UNSET)
    mailbox: MailboxRef | None = leaf("Folder for uids, or everything in it.", default=UNSET)
    uids: str | None = leaf('"1,2,3", "3:15", "3:*".', default=UNSET)
    filter: MessageFilter | None = leaf("All that match.", default=UNSET)

    def selection(self, info: Info) -> Selection:
        """The selection as the floors below know it."""
        keys = None
        if self.ids is not UNSET and self.ids is not None:
            if len(self.ids) > IDS:
                raise Invalid(
                    f"at most {IDS} ids; select more by mailbox or filter",
                    constraint="max",
                    path=["select", "ids"],
                )
            keys = [
                ids.decode("Message", text, path="select", index=nth)
                for nth, text in enumerate(self.ids)
            ]
        return Selection(
            keys,
            named(self.mailbox) if self.mailbox else None,
            self.uids or None,
            self.filter.where(info) if self.filter else None,
        )
