"""Inputs that select messages: filters of lists and selections of bulk mutations."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Optional

import strawberry
from strawberry import UNSET
from strawberry.types import get_object_definition
from strawberry.utils.str_converters import to_camel_case

from graph.types import global_ids
from graph.types.errors import leaf
from graph.types.fields import Info
from graph.types.input_conditions import Conditions
from graph.types.references import MailboxRef, UserSelection, is_given, named, plain, users_named
from graph.types.scalars import BigInt, ByteSize, Duration
from mail.mailboxes.paths import LONGEST_MASK
from models import quantities
from models.errors import Invalid
from models.files.blobs import StorageTier
from models.mailboxes.tables import SpecialUse
from models.submission.tables import SubmissionState
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.filters.filter_lookups import DEPTH
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.loaders import NEWEST, OLDEST
from resolvers.search.query_parser import QueryProblem, has_only_words, understood

IDS = 1000  # per selection


@strawberry.enum(
    description="Order of a list of messages. What comes back from being snoozed stands where it "
    "would if it had been received then."
)
class MessageOrder(StrEnum):
    RECEIVED_DESC = "RECEIVED_DESC"
    RECEIVED_ASC = "RECEIVED_ASC"
    RELEVANCE = "RELEVANCE"

    @property
    def ordering(self) -> str:
        """The name of the order in cursors."""
        return {"RECEIVED_DESC": NEWEST, "RECEIVED_ASC": OLDEST}.get(self, "relevance-")


@strawberry.input(one_of=True, description="A point in time.")
class DateBound:
    at: strawberry.Maybe[datetime] = leaf("Absolute.")
    ago: strawberry.Maybe[Duration] = leaf("Relative to now, P30D.")

    def moment(self, info: Info) -> datetime:
        """Return the absolute time. Raises Invalid if it is too long ago."""
        if self.at:
            return self.at.value
        ago = self.ago.value if self.ago else timedelta(0)  # one of the two is given
        try:
            return info.context.world.now() - ago
        except OverflowError as problem:
            raise Invalid("too long ago", constraint="min", path=["ago"]) from problem


@strawberry.input(description="Test of one header.")
class HeaderMatch(Conditions):
    name: str = leaf("Header name.")
    contains: str | None = leaf("Part of its value; null = header present.", default=UNSET)


@strawberry.input(description="Test of the files of a message: one of them has it all.")
class AttachmentMatch(Conditions):
    filename: str | None = leaf("Part of its name.", default=UNSET)
    content_type: str | None = leaf("Part of its type.", default=UNSET)


@strawberry.input(
    description="All given fields must hold. An empty list holds for no message; an empty object "
    "or text is an error. Partial matches are of any case; what is found by words has neither "
    "case nor accents."
)
class MessageFilter(Conditions):
    has_words_only: ClassVar[bool] = False  # `query` is read as words, not as terms

    and_: list["MessageFilter"] | None = leaf("All of.", name="and", default=UNSET)
    or_: list["MessageFilter"] | None = leaf("At least one of.", name="or", default=UNSET)
    not_: Optional["MessageFilter"] = leaf("None of it.", name="not", default=UNSET)
    query: str | None = leaf(
        "Words in body, subject, people and file names, from the full-text index; "
        '"…" phrase, trailing * prefix, leading - excludes. Also a text in the language of '
        "`messages(query:)`, such as `subject:bill OR larger:5M`; a term that is not valid is an "
        "error.",
        default=UNSET,
    )
    text: str | None = leaf(
        "Substring anywhere, in header or body. Messages are read for it: at most 2,000, the "
        "other fields have to narrow them.",
        default=UNSET,
    )
    body: str | None = leaf("Substring in the body; read as for text.", default=UNSET)
    from_: str | None = leaf("Partial match of From.", name="from", default=UNSET)
    to: str | None = leaf("Partial match of To and Cc.", default=UNSET)
    to_only: str | None = leaf("Partial match of To.", default=UNSET)
    cc: str | None = leaf("Partial match of Cc.", default=UNSET)
    bcc: str | None = leaf("Partial match of Bcc.", default=UNSET)
    recipient: str | None = leaf("Partial match of To, Cc or Bcc or envelope.", default=UNSET)
    subject: str | None = leaf("Partial match of Subject.", default=UNSET)
    list_id: str | None = leaf("Partial match of List-ID.", default=UNSET)
    header: HeaderMatch | None = leaf("Any header; read as for text.", default=UNSET)
    message_id: str | None = leaf("Exact Message-ID.", default=UNSET)
    mailbox: MailboxRef | None = leaf("In this folder.", default=UNSET)
    mailboxes: list[MailboxRef] | None = leaf("In one of these.", default=UNSET)
    mailbox_masks: list[str] | None = leaf("Path with * and %.", default=UNSET)
    searchable: bool | None = leaf("True = not in Junk or Trash.", default=UNSET)
    thread: strawberry.ID | None = leaf("In this conversation.", default=UNSET)
    uids: str | None = leaf("Uid set, with mailbox.", default=UNSET)
    seqs: str | None = leaf("Sequence set, with mailbox.", default=UNSET)
    guids: list[str] | None = leaf("Exact.", default=UNSET)
    seen: bool | None = leaf(r"\Seen.", default=UNSET)
    flagged: bool | None = leaf(r"\Flagged.", default=UNSET)
    answered: bool | None = leaf(r"\Answered.", default=UNSET)
    draft: bool | None = leaf(r"\Draft.", default=UNSET)
    deleted: bool | None = leaf(r"\Deleted.", default=UNSET)
    forwarded: bool | None = leaf("$Forwarded.", default=UNSET)
    keyword: str | None = leaf("Has this keyword or label.", default=UNSET)
    tier: StorageTier | None = leaf("Whose body lies there.", default=UNSET)
    received_since: DateBound | None = leaf(
        "Arrival, or coming back from being snoozed; inclusive.", default=UNSET
    )
    received_before: DateBound | None = leaf(
        "Arrival, or coming back from being snoozed; exclusive.", default=UNSET
    )
    sent_since: DateBound | None = leaf("Date header, inclusive.", default=UNSET)
    sent_before: DateBound | None = leaf("Date header, exclusive.", default=UNSET)
    saved_since: DateBound | None = leaf("Put into the folder, inclusive.", default=UNSET)
    saved_before: DateBound | None = leaf("Put into the folder, exclusive.", default=UNSET)
    expires_before: DateBound | None = leaf("Deleted by itself before then.", default=UNSET)
    larger: ByteSize | None = leaf("More than.", default=UNSET)
    smaller: ByteSize | None = leaf("Less than.", default=UNSET)
    has_attachment: bool | None = leaf("Has files.", default=UNSET)
    attachment: AttachmentMatch | None = leaf("Has such a file.", default=UNSET)
    modified_since: BigInt | None = leaf("modseq greater than.", default=UNSET)
    snoozed: bool | None = leaf("Put off until later.", default=UNSET)
    submission_states: list[SubmissionState] | None = leaf(
        "Copies of messages whose submission is in one of these states, such as SCHEDULED and "
        "HELD_FOR_UNDO for messages that are not sent yet. An empty list selects nothing.",
        default=UNSET,
    )

    def where(self, info: Info, depth: int = 0) -> MessageWhere:
        """Convert the filter to conditions of the resolvers.

        Raises Invalid if filters are nested too deep, or if a condition is not valid.
        """
        if depth > DEPTH:
            message = f"and, or and not go {DEPTH} levels deep"
            raise Invalid(message, constraint="depth", path=["filter"])
        times = {
            name: bound.moment(info) for name in TIMES if (bound := getattr(self, name) or None)
        }
        values = {
            name: value for name in PLAIN if (value := plain(getattr(self, name))) is not None
        }
        all_of = self._parts(self.and_, info, depth)
        if (terms := self.terms(info.context.world.now())) is not None:
            del values["query"]
            all_of = (*(all_of or ()), filter_of(terms).where(info, depth + 1))
        for name in ("uids", "seqs"):
            if getattr(self, name) and not self.mailbox:
                message = f"{name} go with a mailbox"
                raise Invalid(message, constraint="required", path=["filter", name])
        return MessageWhere(
            every=all_of,
            some=self._parts(self.or_, info, depth),
            none=self.not_.where(info, depth + 1) if self.not_ else None,
            thread_id=global_ids.decode("Thread", self.thread, path="thread")
            if self.thread
            else None,
            **self._places(),
            **values,
            **times,
        )

    def terms(self, now: datetime) -> dict[str, Any] | None:
        """Return the filter fields, in JSON, that the terms of `query` mean.

        None if it has words only. Raises Invalid if a term is not valid, or if the text selects
        every message.
        """
        if not self.query or self.has_words_only or has_only_words(self.query):
            return None
        path = ["filter", "query"]
        if found := understood(self.query, now, path):
            return found
        raise Invalid("this text selects every message", constraint="required", path=path)

    @staticmethod
    def _parts(
        given: "list[MessageFilter] | None", info: Info, depth: int
    ) -> tuple[MessageWhere, ...] | None:
        """Convert the filters of a group to conditions; None if the group is absent."""
        return tuple(one.where(info, depth + 1) for one in given or ()) if is_given(given) else None

    def _places(self) -> dict[str, Any]:
        """Return the conditions that have more than one value. An empty list selects nothing.

        Raises Invalid if a list is too long.
        """
        conditions: dict[str, Any] = {}
        for name in LISTS:
            items = getattr(self, name)
            if not is_given(items):
                continue
            if len(items) > LONGEST[name]:
                message = f"at most {LONGEST[name]} of {name}"
                raise Invalid(message, constraint="max", path=["filter", name])
            conditions[name] = tuple(items)
        if "mailboxes" in conditions:
            refs = conditions["mailboxes"]
            conditions["mailboxes"] = tuple(named(ref, path="mailboxes") for ref in refs)
        _check_masks(conditions.get("mailbox_masks", ()))
        if self.mailbox:
            conditions["mailbox"] = named(self.mailbox)
        if self.submission_states is not None and self.submission_states is not UNSET:
            conditions["submission_states"] = tuple(self.submission_states)
        if self.header:
            conditions["header"] = self.header.name, plain(self.header.contains)
        if self.attachment:
            file = self.attachment
            conditions["attachment"] = plain(file.filename), plain(file.content_type)
        return conditions


def _check_masks(masks: Sequence[str]) -> None:
    """Raise Invalid if a mask is too long."""
    for index, mask in enumerate(masks):
        if len(mask) > LONGEST_MASK:
            message = f"a mask has at most {LONGEST_MASK} characters"
            raise Invalid(message, constraint="max", path=["filter", "mailboxMasks"], index=index)


PLAIN = (
    "query", "text", "body", "from_", "to", "to_only", "cc", "bcc", "recipient", "subject",
    "list_id", "message_id", "searchable", "uids", "seqs", "seen", "flagged", "answered", "draft",
    "deleted", "forwarded", "keyword", "tier", "larger", "smaller", "has_attachment",
    "modified_since", "snoozed",
)  # fmt: skip
TIMES = (
    "received_since", "received_before", "sent_since", "sent_before", "saved_since",
    "saved_before", "expires_before",
)  # fmt: skip
LONGEST = {"mailboxes": 250, "mailbox_masks": 50, "guids": 1000}
LISTS = tuple(LONGEST)


NAMES = {  # field names of the API to attribute names
    to_camel_case(field.python_name.removesuffix("_")): field.python_name
    for field in get_object_definition(MessageFilter, strict=True).fields
}
GROUPS = ("and", "or")
BOUNDS = frozenset(map(to_camel_case, TIMES))


def filter_of(fields: Mapping[str, Any]) -> MessageFilter:
    """Return the filter with these JSON fields. Its `query` is read as words, not as terms."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        key = NAMES[name]
        if name in GROUPS:
            values[key] = [filter_of(item) for item in value]
        elif name == "not":
            values[key] = filter_of(value)
        elif name in BOUNDS:
            values[key] = _bound(value)
        elif name == "mailbox":
            values[key] = _mailbox(value)
        elif name == "mailboxes":
            values[key] = [_mailbox(item) for item in value]
        elif name == "header":
            values[key] = HeaderMatch(**value)
        elif name == "attachment":
            attachment_fields = {
                {"contentType": "content_type"}.get(field, field): field_value
                for field, field_value in value.items()
            }
            values[key] = AttachmentMatch(**attachment_fields)
        else:
            values[key] = value
    message_filter = MessageFilter(**values)
    message_filter.__dict__["has_words_only"] = True
    return message_filter


def _bound(value: Mapping[str, str]) -> DateBound:
    """Return the time bound of a JSON object with `at` or `ago`."""
    if "at" in value:
        return DateBound(at=strawberry.Some(datetime.fromisoformat(value["at"])), ago=None)
    return DateBound(at=None, ago=strawberry.Some(Duration(quantities.duration(value["ago"]))))


def _mailbox(value: Mapping[str, Any]) -> MailboxRef:
    """Return the mailbox reference of a JSON object."""
    wrapped = {name: strawberry.Some(member) for name, member in value.items()}
    special_use = wrapped.get("specialUse")
    return MailboxRef(
        id=wrapped.get("id"),
        path=wrapped.get("path"),
        special_use=strawberry.Some(SpecialUse(special_use.value)) if special_use else None,
        guid=wrapped.get("guid"),
    )


class Wanted(NamedTuple):
    """The arguments of a list of messages."""

    filter: MessageFilter | None
    order: MessageOrder
    page: tuple[Any, Any, Any, Any]  # first, after, last, before
    problems: Sequence[QueryProblem] = ()  # of the query text that was parsed into the filter


@strawberry.input(
    description="Selects messages by exactly one of ids, mailbox with uids, mailbox alone (all "
    "messages in it), filter, and all. An empty list selects nothing; an empty object is an error."
)
class MessageSelection(Conditions):
    ids: list[strawberry.ID] | None = leaf("Global ids.", default=UNSET)
    mailbox: MailboxRef | None = leaf("Folder for uids, or everything in it.", default=UNSET)
    uids: str | None = leaf('"1,2,3", "3:15", "3:*".', default=UNSET)
    filter: MessageFilter | None = leaf("All that match.", default=UNSET)
    all: bool | None = leaf(
        "Selects every message that lies in a folder of the account.", default=UNSET
    )
    users: UserSelection | None = leaf(
        "Whose mail, default the viewer's; others' only for administrators. A folder named by "
        "path or role is that of each.",
        default=UNSET,
    )

    def selection(self, info: Info) -> Selection:
        """Convert the input to a selection of the resolvers.

        Raises Invalid if it selects in two ways, or names too many or invalid IDs.
        """
        if self.filter and self.all:
            text = "select by ids, by mailbox, by filter, or all: by one of them"
            raise Invalid(text, constraint="exclusive", path=["select", "all"])
        keys = None
        if self.ids is not UNSET and self.ids is not None:
            if len(self.ids) > IDS:
                raise Invalid(
                    f"at most {IDS} ids; select more by mailbox or filter",
                    constraint="max",
                    path=["select", "ids"],
                )
            keys = global_ids.decode_each("Message", self.ids, path="select")
        return Selection(
            keys,
            named(self.mailbox) if self.mailbox else None,
            self.uids or None,
            self.filter.where(info) if self.filter else MessageWhere() if self.all else None,
            users_named(self.users or None),
        )
