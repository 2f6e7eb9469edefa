"""Which messages: filters of lists and selections of bulk operations, as inputs."""

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

IDS = 1000  # of one selection


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
        """Its name in cursors."""
        return {"RECEIVED_DESC": NEWEST, "RECEIVED_ASC": OLDEST}.get(self, "relevance-")


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
    has_words_only: ClassVar[bool] = False  # `query` is no text of terms

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
        """The filter as the floors below know it."""
        if depth > DEPTH:
            words = f"and, or and not go {DEPTH} levels deep"
            raise Invalid(words, constraint="depth", path=["filter"])
        times = {
            name: bound.moment(info) for name in TIMES if (bound := getattr(self, name) or None)
        }
        values = {
            name: value for name in PLAIN if (value := plain(getattr(self, name))) is not None
        }
        every = self._parts(self.and_, info, depth)
        if (terms := self.terms(info.context.world.now())) is not None:
            del values["query"]
            every = (*(every or ()), filter_of(terms).where(info, depth + 1))
        for name in ("uids", "seqs"):
            if getattr(self, name) and not self.mailbox:
                words = f"{name} go with a mailbox"
                raise Invalid(words, constraint="required", path=["filter", name])
        return MessageWhere(
            every=every,
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
        """The fields that the terms of `query` stand for, as JSON has them; None for words alone.

        Raises Invalid if a term is not valid, or if the text selects every message.
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
        return tuple(one.where(info, depth + 1) for one in given or ()) if is_given(given) else None

    def _places(self) -> dict[str, Any]:
        """Return the conditions that are more than one value. An empty list selects nothing."""
        found: dict[str, Any] = {}
        for name in LISTS:
            given = getattr(self, name)
            if not is_given(given):
                continue
            if len(given) > LONGEST[name]:
                words = f"at most {LONGEST[name]} of {name}"
                raise Invalid(words, constraint="max", path=["filter", name])
            found[name] = tuple(given)
        if "mailboxes" in found:
            refs = found["mailboxes"]
            found["mailboxes"] = tuple(named(ref, path="mailboxes") for ref in refs)
        _check_masks(found.get("mailbox_masks", ()))
        if self.mailbox:
            found["mailbox"] = named(self.mailbox)
        if self.submission_states is not None and self.submission_states is not UNSET:
            found["submission_states"] = tuple(self.submission_states)
        if self.header:
            found["header"] = self.header.name, plain(self.header.contains)
        if self.attachment:
            file = self.attachment
            found["attachment"] = plain(file.filename), plain(file.content_type)
        return found


def _check_masks(masks: Sequence[str]) -> None:
    for index, mask in enumerate(masks):
        if len(mask) > LONGEST_MASK:
            words = f"a mask has at most {LONGEST_MASK} characters"
            raise Invalid(words, constraint="max", path=["filter", "mailboxMasks"], index=index)


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


NAMES = {  # of fields, in JSON and here
    to_camel_case(field.python_name.removesuffix("_")): field.python_name
    for field in get_object_definition(MessageFilter, strict=True).fields
}
GROUPS = ("and", "or")
BOUNDS = frozenset(map(to_camel_case, TIMES))


def filter_of(fields: Mapping[str, Any]) -> MessageFilter:
    """The filter whose fields are as JSON has them; its `query` has words alone."""
    made: dict[str, Any] = {}
    for name, value in fields.items():
        key = NAMES[name]
        if name in GROUPS:
            made[key] = [filter_of(one) for one in value]
        elif name == "not":
            made[key] = filter_of(value)
        elif name in BOUNDS:
            made[key] = _bound(value)
        elif name == "mailbox":
            made[key] = _mailbox(value)
        elif name == "mailboxes":
            made[key] = [_mailbox(one) for one in value]
        elif name == "header":
            made[key] = HeaderMatch(**value)
        elif name == "attachment":
            there = {{"contentType": "content_type"}.get(k, k): v for k, v in value.items()}
            made[key] = AttachmentMatch(**there)
        else:
            made[key] = value
    found = MessageFilter(**made)
    found.__dict__["has_words_only"] = True
    return found


def _bound(value: Mapping[str, str]) -> DateBound:
    if "at" in value:
        return DateBound(at=strawberry.Some(datetime.fromisoformat(value["at"])), ago=None)
    return DateBound(at=None, ago=strawberry.Some(Duration(quantities.duration(value["ago"]))))


def _mailbox(value: Mapping[str, Any]) -> MailboxRef:
    some = {name: strawberry.Some(one) for name, one in value.items()}
    use = some.get("specialUse")
    return MailboxRef(
        id=some.get("id"),
        path=some.get("path"),
        special_use=strawberry.Some(SpecialUse(use.value)) if use else None,
        guid=some.get("guid"),
    )


class Wanted(NamedTuple):
    """What a list of messages is asked for."""

    filter: MessageFilter | None
    order: MessageOrder
    page: tuple[Any, Any, Any, Any]  # first, after, last, before
    problems: Sequence[QueryProblem] = ()  # of the text that became a part of the filter


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
        """The selection as the floors below know it."""
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
