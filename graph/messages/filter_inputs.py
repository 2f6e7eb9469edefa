"""Inputs that select messages: filters of lists and selections of bulk mutations."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Optional

import strawberry
from strawberry import UNSET
from strawberry.types import get_object_definition
from strawberry.utils.str_converters import to_camel_case

from graph.messages.references import ThreadRef
from graph.types import global_ids
from graph.types.connections import PageArguments
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.object_references import id_from_ref
from graph.types.references import (
    MailboxRef,
    UserSelection,
    is_given,
    mailbox_selector_from_ref,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.scalars import BigInt, ByteSize, Duration
from mail.mailboxes.paths import MAX_PATTERN_LENGTH
from models import quantities
from models.errors import InvalidInput
from models.files.blobs import StorageTier
from models.mailboxes.tables import SpecialUse
from models.submission.tables import SubmissionState
from models.validation_constraints import ValidationConstraint
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.filter_lookups import MAX_DEPTH
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.loaders import NEWEST_FIRST, OLDEST_FIRST
from resolvers.search.query_parser import QueryProblem, fields_from_valid_query, has_only_words

MAX_SELECTED_IDS = 1000  # per selection


@strawberry.enum(
    description="Order of a list of messages. What comes back from being snoozed stands where it "
    "would if it had been received then."
)
class MessageOrder(StrEnum):
    RECEIVED_DESC = "RECEIVED_DESC"
    RECEIVED_ASC = "RECEIVED_ASC"
    RELEVANCE = "RELEVANCE"

    @property
    def cursor_ordering(self) -> str:
        """The name of the order in cursors."""
        return {"RECEIVED_DESC": NEWEST_FIRST, "RECEIVED_ASC": OLDEST_FIRST}.get(self, "relevance-")


@strawberry.input(
    one_of=True, description="A time that is given absolutely or relative to the current time."
)
class PastTimeInput:
    at: strawberry.Maybe[datetime] = attribute_field("The time itself.")
    ago: strawberry.Maybe[Duration] = attribute_field(
        "Duration before the current time (ISO 8601), such as P30D for 30 days ago."
    )

    def resolve_time(self, info: Info) -> datetime:
        """Return the absolute time. Raises Invalid if it is too long ago."""
        if self.at:
            return self.at.value
        ago = self.ago.value if self.ago else timedelta(0)  # one of the two is given
        try:
            return info.context.environment.now() - ago
        except OverflowError as problem:
            raise InvalidInput(
                "too long ago", constraint=ValidationConstraint.MIN, path=["ago"]
            ) from problem


@strawberry.input(description="Test of one header.")
class HeaderMatch(ConditionsInput):
    name: str = attribute_field("Header name.")
    contains: str | None = attribute_field(
        "Part of its value; null = header present.", default=UNSET
    )


@strawberry.input(description="Test of the files of a message: one of them has it all.")
class AttachmentMatch(ConditionsInput):
    filename: str | None = attribute_field("Part of its name.", default=UNSET)
    content_type: str | None = attribute_field("Part of its type.", default=UNSET)


@strawberry.input(
    description="All given fields must hold. An empty list holds for no message; an empty object "
    "or text is an error. Partial matches are of any case; what is found by words has neither "
    "case nor accents."
)
class MessageFilter(ConditionsInput):
    has_words_only: ClassVar[bool] = False  # `query` is read as words, not as terms

    and_: list["MessageFilter"] | None = attribute_field("All of.", name="and", default=UNSET)
    or_: list["MessageFilter"] | None = attribute_field(
        "At least one of.", name="or", default=UNSET
    )
    not_: Optional["MessageFilter"] = attribute_field("None of it.", name="not", default=UNSET)
    query: str | None = attribute_field(
        "Words in body, subject, people and file names, from the full-text index; "
        '"…" phrase, trailing * prefix, leading - excludes. Also a text in the language of '
        "`messages(query:)`, such as `subject:bill OR larger:5M`; a term that is not valid is an "
        "error.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Substring anywhere, in header or body. Messages are read for it: at most 2,000, the "
        "other fields have to narrow them.",
        default=UNSET,
    )
    body: str | None = attribute_field("Substring in the body; read as for text.", default=UNSET)
    from_: str | None = attribute_field("Partial match of From.", name="from", default=UNSET)
    to: str | None = attribute_field("Partial match of To and Cc.", default=UNSET)
    to_only: str | None = attribute_field("Partial match of To.", default=UNSET)
    cc: str | None = attribute_field("Partial match of Cc.", default=UNSET)
    bcc: str | None = attribute_field("Partial match of Bcc.", default=UNSET)
    recipient: str | None = attribute_field(
        "Partial match of To, Cc or Bcc or envelope.", default=UNSET
    )
    subject: str | None = attribute_field("Partial match of Subject.", default=UNSET)
    list_id: str | None = attribute_field("Partial match of List-ID.", default=UNSET)
    header: HeaderMatch | None = attribute_field("Any header; read as for text.", default=UNSET)
    message_id: str | None = attribute_field("Exact Message-ID.", default=UNSET)
    mailbox: MailboxRef | None = attribute_field("In this folder.", default=UNSET)
    mailboxes: list[MailboxRef] | None = attribute_field("In one of these.", default=UNSET)
    mailbox_patterns: list[str] | None = attribute_field("Path with * and %.", default=UNSET)
    searchable: bool | None = attribute_field("True = not in Junk or Trash.", default=UNSET)
    thread: ThreadRef | None = attribute_field("Messages of this thread.", default=UNSET)
    uids: str | None = attribute_field("Uid set, with mailbox.", default=UNSET)
    seqs: str | None = attribute_field("Sequence set, with mailbox.", default=UNSET)
    email_ids: list[str] | None = attribute_field(
        "EMAILIDs of messages (RFC 8474), at most 1,000. An empty list selects nothing.",
        default=UNSET,
    )
    seen: bool | None = attribute_field(r"\Seen.", default=UNSET)
    flagged: bool | None = attribute_field(r"\Flagged.", default=UNSET)
    answered: bool | None = attribute_field(r"\Answered.", default=UNSET)
    draft: bool | None = attribute_field(r"\Draft.", default=UNSET)
    deleted: bool | None = attribute_field(r"\Deleted.", default=UNSET)
    forwarded: bool | None = attribute_field("$Forwarded.", default=UNSET)
    keyword: str | None = attribute_field("Has this keyword or label.", default=UNSET)
    tier: StorageTier | None = attribute_field("Whose body lies there.", default=UNSET)
    received_since: PastTimeInput | None = attribute_field(
        "Arrival, or coming back from being snoozed; inclusive.", default=UNSET
    )
    received_before: PastTimeInput | None = attribute_field(
        "Arrival, or coming back from being snoozed; exclusive.", default=UNSET
    )
    sent_since: PastTimeInput | None = attribute_field("Date header, inclusive.", default=UNSET)
    sent_before: PastTimeInput | None = attribute_field("Date header, exclusive.", default=UNSET)
    saved_since: PastTimeInput | None = attribute_field(
        "Put into the folder, inclusive.", default=UNSET
    )
    saved_before: PastTimeInput | None = attribute_field(
        "Put into the folder, exclusive.", default=UNSET
    )
    expires_before: PastTimeInput | None = attribute_field(
        "Deleted by itself before then.", default=UNSET
    )
    larger: ByteSize | None = attribute_field("More than.", default=UNSET)
    smaller: ByteSize | None = attribute_field("Less than.", default=UNSET)
    has_attachment: bool | None = attribute_field("Has files.", default=UNSET)
    attachment: AttachmentMatch | None = attribute_field("Has such a file.", default=UNSET)
    modified_since: BigInt | None = attribute_field("modseq greater than.", default=UNSET)
    snoozed: bool | None = attribute_field("Put off until later.", default=UNSET)
    submission_states: list[SubmissionState] | None = attribute_field(
        "Copies of messages whose submission is in one of these states, such as SCHEDULED and "
        "UNDOABLE for messages that are not sent yet. An empty list selects nothing.",
        default=UNSET,
    )

    def to_conditions(self, info: Info, depth: int = 0) -> MessageConditions:
        """Convert the filter to conditions of the resolvers.

        Raises Invalid if filters are nested too deep, or if a condition is not valid.
        """
        if depth > MAX_DEPTH:
            message = f"and, or and not go {MAX_DEPTH} levels deep"
            raise InvalidInput(message, constraint=ValidationConstraint.DEPTH, path=["filter"])
        times = {
            name: limit.resolve_time(info)
            for name in TIME_FIELDS
            if (limit := getattr(self, name) or None)
        }
        values = {
            name: value
            for name in PLAIN_FIELDS
            if (value := value_or_none(getattr(self, name))) is not None
        }
        all_of = self._conditions_of_filters(self.and_, info, depth)
        if (terms := self.parsed_query_terms(info.context.environment.now())) is not None:
            del values["query"]
            all_of = (*(all_of or ()), filter_from_json(terms).to_conditions(info, depth + 1))
        for name in ("uids", "seqs"):
            if getattr(self, name) and not self.mailbox:
                message = f"{name} go with a mailbox"
                raise InvalidInput(
                    message, constraint=ValidationConstraint.REQUIRED, path=["filter", name]
                )
        return MessageConditions(
            every=all_of,
            some=self._conditions_of_filters(self.or_, info, depth),
            none=self.not_.to_conditions(info, depth + 1) if self.not_ else None,
            thread_id=id_from_ref(self.thread, "filter", "thread") if self.thread else None,
            **self._compound_conditions(),
            **values,
            **times,
        )

    def parsed_query_terms(self, now: datetime) -> dict[str, Any] | None:
        """Return the filter fields, in JSON, that the terms of `query` mean.

        None if it has words only. Raises Invalid if a term is not valid, or if the text selects
        every message.
        """
        if not self.query or self.has_words_only or has_only_words(self.query):
            return None
        path = ["filter", "query"]
        if found := fields_from_valid_query(self.query, now, path):
            return found
        raise InvalidInput(
            "this text selects every message", constraint=ValidationConstraint.REQUIRED, path=path
        )

    @staticmethod
    def _conditions_of_filters(
        filters: "list[MessageFilter] | None", info: Info, depth: int
    ) -> tuple[MessageConditions, ...] | None:
        """Convert the filters of a group to conditions; None if the group is absent."""
        return (
            tuple(one.to_conditions(info, depth + 1) for one in filters or ())
            if is_given(filters)
            else None
        )

    def _compound_conditions(self) -> dict[str, Any]:
        """Return the conditions that have more than one value. An empty list selects nothing.

        Raises Invalid if a list is too long.
        """
        conditions: dict[str, Any] = {}
        for name in LIST_FIELDS:
            items = getattr(self, name)
            if not is_given(items):
                continue
            if len(items) > MAX_LIST_LENGTHS[name]:
                message = f"at most {MAX_LIST_LENGTHS[name]} of {name}"
                raise InvalidInput(
                    message, constraint=ValidationConstraint.MAX, path=["filter", name]
                )
            conditions[name] = tuple(items)
        if "mailboxes" in conditions:
            refs = conditions["mailboxes"]
            conditions["mailboxes"] = tuple(
                mailbox_selector_from_ref(ref, path=["filter", "mailboxes"], index=index)
                for index, ref in enumerate(refs)
            )
        _check_pattern_lengths(conditions.get("mailbox_patterns", ()))
        if self.mailbox:
            conditions["mailbox"] = mailbox_selector_from_ref(
                self.mailbox, path=["filter", "mailbox"]
            )
        if self.submission_states is not None and self.submission_states is not UNSET:
            conditions["submission_states"] = tuple(self.submission_states)
        if self.header:
            conditions["header"] = self.header.name, value_or_none(self.header.contains)
        if self.attachment:
            file = self.attachment
            conditions["attachment"] = (
                value_or_none(file.filename),
                value_or_none(file.content_type),
            )
        return conditions


def _check_pattern_lengths(patterns: Sequence[str]) -> None:
    """Raise Invalid if a pattern is too long."""
    for index, pattern in enumerate(patterns):
        if len(pattern) > MAX_PATTERN_LENGTH:
            message = f"a pattern has at most {MAX_PATTERN_LENGTH} characters"
            raise InvalidInput(
                message,
                constraint=ValidationConstraint.MAX,
                path=["filter", "mailboxPatterns"],
                index=index,
            )


PLAIN_FIELDS = (
    "query", "text", "body", "from_", "to", "to_only", "cc", "bcc", "recipient", "subject",
    "list_id", "message_id", "searchable", "uids", "seqs", "seen", "flagged", "answered", "draft",
    "deleted", "forwarded", "keyword", "tier", "larger", "smaller", "has_attachment",
    "modified_since", "snoozed",
)  # fmt: skip
TIME_FIELDS = (
    "received_since", "received_before", "sent_since", "sent_before", "saved_since",
    "saved_before", "expires_before",
)  # fmt: skip
MAX_LIST_LENGTHS = {"mailboxes": 250, "mailbox_patterns": 50, "email_ids": 1000}
LIST_FIELDS = tuple(MAX_LIST_LENGTHS)


FIELD_BY_JSON_NAME = {  # field names of the API to attribute names
    to_camel_case(field.python_name.removesuffix("_")): field.python_name
    for field in get_object_definition(MessageFilter, strict=True).fields
}
GROUP_JSON_NAMES = ("and", "or")
TIME_JSON_NAMES = frozenset(map(to_camel_case, TIME_FIELDS))


def filter_from_json(fields: Mapping[str, Any]) -> MessageFilter:
    """Return the filter with these JSON fields. Its `query` is read as words, not as terms."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        key = FIELD_BY_JSON_NAME[name]
        if name in GROUP_JSON_NAMES:
            values[key] = [filter_from_json(item) for item in value]
        elif name == "not":
            values[key] = filter_from_json(value)
        elif name in TIME_JSON_NAMES:
            values[key] = _past_time_from_json(value)
        elif name == "mailbox":
            values[key] = _mailbox_ref_from_json(value)
        elif name == "mailboxes":
            values[key] = [_mailbox_ref_from_json(item) for item in value]
        elif name == "thread":
            values[key] = ThreadRef(id=strawberry.Some(value["id"]))
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


def _past_time_from_json(value: Mapping[str, str]) -> PastTimeInput:
    """Return the time bound of a JSON object with `at` or `ago`."""
    if "at" in value:
        return PastTimeInput(at=strawberry.Some(datetime.fromisoformat(value["at"])), ago=None)
    return PastTimeInput(
        at=None, ago=strawberry.Some(Duration(quantities.parse_duration(value["ago"])))
    )


def _mailbox_ref_from_json(value: Mapping[str, Any]) -> MailboxRef:
    """Return the mailbox reference of a JSON object."""
    wrapped = {name: strawberry.Some(member) for name, member in value.items()}
    special_use = wrapped.get("specialUse")
    return MailboxRef(
        id=wrapped.get("id"),
        path=wrapped.get("path"),
        special_use=strawberry.Some(SpecialUse(special_use.value)) if special_use else None,
        object_id=wrapped.get("objectId"),
    )


class MessageListRequest(NamedTuple):
    """The arguments of a list of messages."""

    filter: MessageFilter | None
    order: MessageOrder
    page_arguments: PageArguments
    query_problems: Sequence[QueryProblem] = ()  # of the query text that was parsed into the filter


@strawberry.input(
    description="Selects messages by exactly one of ids, mailbox with uids, mailbox alone (all "
    "messages in it), filter, and all. An empty list selects nothing; an empty object is an error."
)
class MessageSelection(ConditionsInput):
    ids: list[strawberry.ID] | None = attribute_field("Global ids.", default=UNSET)
    mailbox: MailboxRef | None = attribute_field(
        "Folder for uids, or everything in it.", default=UNSET
    )
    uids: str | None = attribute_field('"1,2,3", "3:15", "3:*".', default=UNSET)
    filter: MessageFilter | None = attribute_field("All that match.", default=UNSET)
    all: bool | None = attribute_field(
        "Selects every message that lies in a folder of the account.", default=UNSET
    )
    users: UserSelection | None = attribute_field(
        "Whose mail, default the viewer's; others' only for administrators. A folder named by "
        "path or role is that of each.",
        default=UNSET,
    )

    def to_selection(self, info: Info) -> MessageSelector:
        """Convert the input to a selection of the resolvers.

        Raises Invalid if it selects in two ways, or names too many or invalid IDs.
        """
        if self.filter and self.all:
            text = "select by ids, by mailbox, by filter, or all: by one of them"
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["select", "all"]
            )
        keys = None
        if self.ids is not UNSET and self.ids is not None:
            if len(self.ids) > MAX_SELECTED_IDS:
                raise InvalidInput(
                    f"at most {MAX_SELECTED_IDS} ids; select more by mailbox or filter",
                    constraint=ValidationConstraint.MAX,
                    path=["select", "ids"],
                )
            keys = global_ids.decode_all("Message", self.ids, path=["select", "ids"])
        return MessageSelector(
            keys,
            mailbox_selector_from_ref(self.mailbox) if self.mailbox else None,
            self.uids or None,
            self.filter.to_conditions(info)
            if self.filter
            else MessageConditions()
            if self.all
            else None,
            user_selector_from_selection(self.users or None),
        )
