"""Inputs that filter lists of messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, Optional

import strawberry
from strawberry import UNSET
from strawberry.types import get_object_definition
from strawberry.utils.str_converters import to_camel_case

from graph.messages.message_order import MessageOrder
from graph.messages.references import ThreadRef
from graph.types.connections import PageArguments
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.object_references import id_from_ref
from graph.types.references import (
    MailboxRef,
    is_given,
    mailbox_selector_from_ref,
    mailbox_selectors_from_refs,
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
from resolvers.messages.filters.filter_lookups import MAX_DEPTH, MAX_PARTS
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search.query_parser import QueryProblem, fields_from_valid_query, has_only_words

TESTS_CONTENT = (  # the end of the descriptions of `CONTENT_FIELDS` of the resolvers
    "An administrator below ROOT gets FORBIDDEN for mail of other users, except in the list of a "
    "mailbox that they share with READ."
)
READS_MESSAGES = (
    "The messages are read for it: if the other conditions leave more than 2,000, the error is "
    f"LIMIT_REACHED. {TESTS_CONTENT}"
)


@strawberry.input(
    one_of=True, description="Time, absolute or as a duration before the current time."
)
class PastTimeInput:
    at: strawberry.Maybe[datetime] = attribute_field("Absolute time, in the past or in the future.")
    ago: strawberry.Maybe[Duration] = attribute_field(
        "Duration before the current time (ISO 8601), such as P30D for 30 days ago."
    )

    def resolve_time(self, info: Info) -> datetime:
        """Return the absolute time. Raises InvalidInput if it is too long ago."""
        if self.at:
            return self.at.value
        ago = self.ago.value if self.ago else timedelta(0)  # one of the two is given
        try:
            return info.context.environment.now() - ago
        except OverflowError as problem:
            raise InvalidInput(
                "The time is too long ago.", constraint=ValidationConstraint.MIN, path=["ago"]
            ) from problem


@strawberry.input(description="Condition on a header field of a message.")
class HeaderMatch(ConditionsInput):
    name: str = attribute_field("Name of the header field (case is ignored).")
    contains: str | None = attribute_field(
        "Text that the decoded value of the header field contains (case is ignored). Default: the "
        "header field only has to exist.",
        default=UNSET,
    )


@strawberry.input(
    description=(
        "Conditions on an attachment. One attachment of the message must meet all of them. Files "
        "inside multipart/related count, too."
    )
)
class AttachmentMatch(ConditionsInput):
    filename: str | None = attribute_field(
        "Text that the file name of the attachment contains (case is ignored).", default=UNSET
    )
    content_type: str | None = attribute_field(
        "Text that the media type of the attachment contains (case is ignored), such as `image/`.",
        default=UNSET,
    )


@strawberry.input(
    description=(
        "Conditions on messages. A message must meet all of them. An empty list selects no "
        "message. Inside `not`, at any depth, an empty list is an error. An empty object or an "
        "empty text is always an error. Case and accents are ignored, except in `messageIdHeader` "
        "and `keyword`. A filter has at most 250 conditions and inner filters in total, in at most "
        "8 levels. Texts have at most 1,000 characters, except in `query`. For conditions without "
        "an index, each page tests at most 10,000 messages. A page can then have fewer messages "
        "than requested, or none, while `pageInfo.hasNextPage` is true."
    )
)
class MessageFilter(ConditionsInput):
    max_part_count: ClassVar[int | None] = MAX_PARTS
    has_words_only: ClassVar[bool] = False  # `query` is read as words, not as terms

    and_: list["MessageFilter"] | None = attribute_field(
        "Selects messages that match all of these filters.", name="and", default=UNSET
    )
    or_: list["MessageFilter"] | None = attribute_field(
        "Selects messages that match at least one of these filters.", name="or", default=UNSET
    )
    not_: Optional["MessageFilter"] = attribute_field(
        "Selects messages that don't match this filter.", name="not", default=UNSET
    )
    query: str | None = attribute_field(
        "Selects messages with these words in subject, people, file names or body (by default the "
        'first 262,144 characters), by the text index, ignoring case and accents: `"…"` for a '
        "phrase, `word*` for a prefix, `-word` to exclude. Also a search text with terms, such as "
        "`subject:bill OR larger:5M`; an invalid term is an error. UNAVAILABLE while more than "
        "5,000 messages are not indexed yet. Words alone have at most 1,024 characters, and 32 "
        "words or phrases; a text with terms has at most 4,096 characters. For words in mail of "
        "other users, an administrator below ROOT gets FORBIDDEN, except in the list of a mailbox "
        "that they share with READ.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        f"Selects messages with this text in the header or body. {READS_MESSAGES}", default=UNSET
    )
    body: str | None = attribute_field(
        f"Selects messages with this text in the body. {READS_MESSAGES}", default=UNSET
    )
    from_: str | None = attribute_field(
        "Selects messages with this text in the name or address of the first author in From (case "
        "is ignored).",
        name="from",
        default=UNSET,
    )
    to: str | None = attribute_field(
        "Selects messages with this text in a name or address of To, not of Cc (case is ignored).",
        default=UNSET,
    )
    to_or_cc: str | None = attribute_field(
        "Selects messages with this text in a name or address of To or Cc (case is ignored).",
        default=UNSET,
    )
    cc: str | None = attribute_field(
        "Selects messages with this text in a name or address of Cc (case is ignored).",
        default=UNSET,
    )
    bcc: str | None = attribute_field(
        "Selects messages with this text in a name or address of Bcc (case is ignored).",
        default=UNSET,
    )
    any_recipient: str | None = attribute_field(
        "Selects messages with this text in To, Cc, Bcc or an SMTP recipient (case is ignored).",
        default=UNSET,
    )
    subject: str | None = attribute_field(
        f"Selects messages with this text in the subject (case is ignored). {TESTS_CONTENT}",
        default=UNSET,
    )
    list_id: str | None = attribute_field(
        "Selects messages of mailing lists with this text in the identifier of the header field "
        "List-ID (RFC 2919), without its description (case is ignored).",
        default=UNSET,
    )
    header: HeaderMatch | None = attribute_field(
        f"Selects messages with a header field that meets this condition. {READS_MESSAGES}",
        default=UNSET,
    )
    message_id_header: str | None = attribute_field(
        "Selects messages with exactly this Message-ID (RFC 5322), in angle brackets. Case counts.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Selects messages in this mailbox, or deleted messages that were deleted from it. The "
        "case of a path is ignored if no mailbox has exactly this path. A mailbox that does not "
        "exist selects no message; in a saved search it is an error.",
        default=UNSET,
    )
    mailboxes: list[MailboxRef] | None = attribute_field(
        "Selects messages in one of these mailboxes, at most 250. An empty list selects no "
        "message.",
        default=UNSET,
    )
    mailbox_patterns: list[str] | None = attribute_field(
        "Selects messages in mailboxes whose path matches one of these patterns: `*` matches any "
        "characters, `%` any characters except `/`. Case is ignored. At most 50 patterns of 1,000 "
        "characters.",
        default=UNSET,
    )
    searchable: bool | None = attribute_field(
        "True selects messages outside of Junk and Trash, false those in Junk or Trash.",
        default=UNSET,
    )
    thread: ThreadRef | None = attribute_field("Selects messages of this thread.", default=UNSET)
    uids: str | None = attribute_field(
        "Selects messages with these UIDs, in IMAP notation (RFC 9051), such as `1,3:15,40:*`: at "
        "most 1,000 numbers and ranges, and at most 250 ranges after adjacent ones are joined. "
        "Requires `mailbox`.",
        default=UNSET,
    )
    seqs: str | None = attribute_field(
        "Selects messages with these sequence numbers, in IMAP notation (RFC 9051), such as "
        "`1,3:15,40:*`: at most 1,000 numbers and ranges, and at most 250 ranges after adjacent "
        "ones are joined. Requires `mailbox`.",
        default=UNSET,
    )
    email_ids: list[str] | None = attribute_field(
        "Selects messages with these EMAILIDs (RFC 8474), at most 1,000. An empty list "
        "selects no message.",
        default=UNSET,
    )
    seen: bool | None = attribute_field(
        "True selects messages with the flag \\Seen, false unread ones: those without it.",
        default=UNSET,
    )
    flagged: bool | None = attribute_field(
        "True selects messages with the flag \\Flagged, false those without it.", default=UNSET
    )
    answered: bool | None = attribute_field(
        "True selects messages with the flag \\Answered, false those without it.", default=UNSET
    )
    draft: bool | None = attribute_field(
        "True selects messages with the flag \\Draft, false those without it.", default=UNSET
    )
    deleted: bool | None = attribute_field(
        "True selects messages with the flag \\Deleted, false those without it.", default=UNSET
    )
    forwarded: bool | None = attribute_field(
        "True selects messages with the keyword $Forwarded, false those without it.", default=UNSET
    )
    keyword: str | None = attribute_field(
        "Selects messages with this keyword, such as that of a label. Case is ignored, but only "
        "that of ASCII characters.",
        default=UNSET,
    )
    tier: StorageTier | None = attribute_field(
        "Selects messages whose body is in this storage tier.", default=UNSET
    )
    received_since: PastTimeInput | None = attribute_field(
        "Selects messages that were received, or returned from a snooze, at this time or later.",
        default=UNSET,
    )
    received_before: PastTimeInput | None = attribute_field(
        "Selects messages that were received, or returned from a snooze, before this time.",
        default=UNSET,
    )
    sent_since: PastTimeInput | None = attribute_field(
        "Selects messages with a valid header field Date of this time or later.", default=UNSET
    )
    sent_before: PastTimeInput | None = attribute_field(
        "Selects messages with a valid header field Date before this time.", default=UNSET
    )
    saved_since: PastTimeInput | None = attribute_field(
        "Selects messages that were added to their mailbox at this time or later.", default=UNSET
    )
    saved_before: PastTimeInput | None = attribute_field(
        "Selects messages that were added to their mailbox before this time.", default=UNSET
    )
    expires_before: PastTimeInput | None = attribute_field(
        "Selects messages with an expiry time before this time.", default=UNSET
    )
    larger: ByteSize | None = attribute_field(
        "Selects messages with more than this number of bytes.", default=UNSET
    )
    smaller: ByteSize | None = attribute_field(
        "Selects messages with less than this number of bytes.", default=UNSET
    )
    has_attachment: bool | None = attribute_field(
        "True selects messages with attachments, false those without. Files inside "
        "multipart/related, usually images that the HTML shows, don't count.",
        default=UNSET,
    )
    attachment: AttachmentMatch | None = attribute_field(
        f"Selects messages with an attachment that meets all of these conditions. {TESTS_CONTENT}",
        default=UNSET,
    )
    modified_since: BigInt | None = attribute_field(
        "Selects messages whose MODSEQ (RFC 7162) is higher than this number.", default=UNSET
    )
    snoozed: bool | None = attribute_field(
        "True selects snoozed messages, false the others.", default=UNSET
    )
    submission_states: list[SubmissionState] | None = attribute_field(
        "Selects stored copies of messages with a submission in one of these states, such as "
        "SCHEDULED for messages that are not sent yet. An empty list selects no message.",
        default=UNSET,
    )

    def to_validated_conditions(self, info: Info, depth: int = 0) -> MessageConditions:
        """Convert the filter to conditions of the resolvers.

        Raises InvalidInput if filters are nested too deep, or if a condition is not valid.
        """
        if depth > MAX_DEPTH:
            message = f"`and`, `or` and `not` are nested at most {MAX_DEPTH} levels deep."
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
        if (
            terms := self.query_terms_as_fields_unless_only_words(info.context.environment.now())
        ) is not None:
            del values["query"]
            all_of = (
                *(all_of or ()),
                filter_from_json_with_query_as_words(terms).to_validated_conditions(
                    info, depth + 1
                ),
            )
        for name in ("uids", "seqs"):
            if getattr(self, name) and not self.mailbox:
                message = f"`{name}` requires a mailbox."
                raise InvalidInput(
                    message, constraint=ValidationConstraint.REQUIRED, path=["filter", name]
                )
        return MessageConditions(
            every=all_of,
            some=self._conditions_of_filters(self.or_, info, depth),
            none=self.not_.to_validated_conditions(info, depth + 1) if self.not_ else None,
            thread_id=id_from_ref(self.thread, "filter", "thread") if self.thread else None,
            **self._compound_conditions(),
            **values,
            **times,
        )

    def query_terms_as_fields_unless_only_words(self, now: datetime) -> dict[str, Any] | None:
        """Return the filter fields, in JSON, that the terms of `query` mean.

        None if it has words only. Raises InvalidInput if a term is not valid, or if the text
        selects every message.
        """
        if not self.query or self.has_words_only or has_only_words(self.query):
            return None
        path = ["filter", "query"]
        if fields := fields_from_valid_query(self.query, now, path):
            return fields
        raise InvalidInput(
            "This text selects every message.", constraint=ValidationConstraint.REQUIRED, path=path
        )

    @staticmethod
    def _conditions_of_filters(
        filters: "list[MessageFilter] | None", info: Info, depth: int
    ) -> tuple[MessageConditions, ...] | None:
        """Convert the filters of a group to conditions; None if the group is absent."""
        return (
            tuple(filter_.to_validated_conditions(info, depth + 1) for filter_ in filters or ())
            if is_given(filters)
            else None
        )

    def _compound_conditions(self) -> dict[str, Any]:
        """Return the conditions that have more than one value. An empty list selects nothing.

        Raises InvalidInput if a list is too long.
        """
        conditions: dict[str, Any] = {}
        for name in LIST_FIELDS:
            items = getattr(self, name)
            if not is_given(items):
                continue
            if len(items) > MAX_LIST_LENGTHS[name]:
                message = f"At most {MAX_LIST_LENGTHS[name]} values of {name} are allowed."
                raise InvalidInput(
                    message, constraint=ValidationConstraint.MAX, path=["filter", name]
                )
            conditions[name] = tuple(items)
        if "mailboxes" in conditions:
            refs = conditions["mailboxes"]
            conditions["mailboxes"] = tuple(
                mailbox_selectors_from_refs(refs, path=["filter", "mailboxes"])
            )
        _require_short_patterns(conditions.get("mailbox_patterns", ()))
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


def _require_short_patterns(patterns: Sequence[str]) -> None:
    """Raise InvalidInput if a pattern is too long."""
    for index, pattern in enumerate(patterns):
        if len(pattern) > MAX_PATTERN_LENGTH:
            message = f"A pattern has at most {MAX_PATTERN_LENGTH} characters."
            raise InvalidInput(
                message,
                constraint=ValidationConstraint.MAX,
                path=["filter", "mailboxPatterns"],
                index=index,
            )


PLAIN_FIELDS = (
    "query", "text", "body", "from_", "to", "to_or_cc", "cc", "bcc", "any_recipient", "subject",
    "list_id", "message_id_header", "searchable", "uids", "seqs", "seen", "flagged", "answered",
    "draft", "deleted", "forwarded", "keyword", "tier", "larger", "smaller", "has_attachment",
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


def filter_from_json_with_query_as_words(fields: Mapping[str, Any]) -> MessageFilter:
    """Return the filter with these JSON fields. Its `query` is read as words, not as terms."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        key = FIELD_BY_JSON_NAME[name]
        if name in GROUP_JSON_NAMES:
            values[key] = [filter_from_json_with_query_as_words(item) for item in value]
        elif name == "not":
            values[key] = filter_from_json_with_query_as_words(value)
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
        at=None, ago=strawberry.Some(Duration(quantities.parse_iso_duration(value["ago"])))
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
