"""Matching of filters with messages that are not stored yet, and filters as JSON values."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from mail import mime
from mail.archives.source_message import SourceMessage
from mail.mailboxes import paths
from mail.mime import DecodedField, ParsedAddress
from mail.search.tokenizer import WordPositions, message_words
from mail.storage.message_flags import FORWARDED_KEYWORD, SYSTEM_FLAGS, fold_keyword
from mail.storage.received_messages import THREAD_THRESHOLD
from mail.storage.storable_message import StorableMessage
from models.errors import InvalidInput
from models.files.blobs import StorageTier
from models.mailboxes.tables import SpecialUse
from models.store.text_folding import fold_text
from models.submission.tables import SubmissionState
from models.validation_constraints import ValidationConstraint
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.filters.filter_lookups import iterate_nested_conditions_requiring_limits
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search.index_query import expression_from_query_or_raise

STORED_ONLY_FIELDS = {  # fields of stored messages only, with their API names
    "searchable": "searchable",
    "thread_id": "thread",
    "uids": "uids",
    "seqs": "seqs",
    "email_ids": "emailIds",
    "tier": "tier",
    "saved_since": "savedSince",
    "saved_before": "savedBefore",
    "expires_before": "expiresBefore",
    "modified_since": "modifiedSince",
    "snoozed": "snoozed",
    "submission_states": "submissionStates",
}
TIME_FIELDS = ("received_since", "received_before", "sent_since", "sent_before")
STORED_TIME_FIELDS = ("saved_since", "saved_before", "expires_before")


def validate_for_unstored(conditions: MessageConditions) -> None:
    """Raise InvalidInput if a filter is too large, or needs what only stored messages have."""
    list(iterate_nested_conditions_requiring_limits(conditions))  # checks the limits
    for part in _parts_with_input_paths(conditions, ("filter",), None):
        if part.conditions.query is not None:
            expression_from_query_or_raise(part.conditions.query)
        for name in _unsupported_fields(part.conditions):
            error_text = "This condition can only be tested on stored messages."
            raise InvalidInput(
                error_text,
                constraint=ValidationConstraint.UNSUPPORTED,
                path=[*part.input_path, name],
                index=part.index,
            )


def _unsupported_fields(conditions: MessageConditions) -> Iterator[str]:
    """Yield the input fields that can't be matched against a message that is not stored."""
    for name, input_name in STORED_ONLY_FIELDS.items():
        if getattr(conditions, name) is not None:
            yield input_name
    if conditions.mailbox and conditions.mailbox.path is None:
        yield "mailbox"
    if any(name.path is None for name in conditions.mailboxes or ()):
        yield "mailboxes"


@dataclass(frozen=True, slots=True)
class ConditionsAtPath:
    """A filter, with its path and index in the input."""

    input_path: Sequence[str]
    index: int | None
    conditions: MessageConditions


def _parts_with_input_paths(
    conditions: MessageConditions, input_path: Sequence[str], index: int | None
) -> Iterator[ConditionsAtPath]:
    """Yield the filter and those in it."""
    yield ConditionsAtPath(input_path, index, conditions)
    for name, nested_conditions in (("and", conditions.every), ("or", conditions.some)):
        for nth, nested in enumerate(nested_conditions or ()):
            yield from _parts_with_input_paths(nested, (*input_path, name), nth)
    if conditions.none:
        yield from _parts_with_input_paths(conditions.none, (*input_path, "not"), None)


def json_from_conditions(conditions: MessageConditions) -> dict[str, Any]:
    """Convert a filter to JSON values."""
    return {
        name: _json_value(value)
        for name, value in conditions._asdict().items()
        if value is not None
    }


def _json_value(value: Any) -> Any:
    match value:
        case MessageConditions():
            return json_from_conditions(value)
        case MailboxSelector():
            values = {field.name: getattr(value, field.name) for field in fields(value)}
            return {name: _json_value(part) for name, part in values.items() if part is not None}
        case tuple():
            return [_json_value(item) for item in value]
        case datetime():
            return value.isoformat()
        case StrEnum():
            return value.value
        case _:
            return value


def conditions_from_json(values: Mapping[str, Any]) -> MessageConditions:
    """Rebuild a filter from the values of `json_from_conditions`."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("every", "some"):
            fields[name] = tuple(conditions_from_json(item) for item in value)
        elif name == "none":
            fields[name] = conditions_from_json(value)
        elif name == "mailbox":
            fields[name] = _selector_from_json(value)
        elif name == "mailboxes":
            fields[name] = tuple(_selector_from_json(item) for item in value)
        elif name in (*TIME_FIELDS, *STORED_TIME_FIELDS):
            fields[name] = datetime.fromisoformat(value)
        elif name == "tier":
            fields[name] = StorageTier(value)
        elif name == "submission_states":
            fields[name] = tuple(map(SubmissionState, value))
        else:
            fields[name] = tuple(value) if isinstance(value, list) else value
    return MessageConditions(**fields)


def _selector_from_json(json_values: Mapping[str, Any]) -> MailboxSelector:
    use = json_values.get("special_use")
    values: dict[str, Any] = {**json_values, "special_use": SpecialUse(use) if use else None}
    return MailboxSelector(**values)


async def matches_unstored_message(
    conditions: MessageConditions,
    fetched_message: SourceMessage,
    parsed_message: StorableMessage,
    now: datetime,
) -> bool:
    """Return True if a fetched and parsed message matches the filter.

    Mailboxes are those of the source. A message without an arrival date arrives `now`.
    """
    message = _UnstoredMessage(fetched_message, parsed_message, now)
    if parsed_message.size < THREAD_THRESHOLD:
        return message.matches(conditions)
    return await asyncio.to_thread(message.matches, conditions)


@dataclass
class _UnstoredMessage:
    """A message that is not stored, with its texts parsed once for all conditions."""

    fetched_message: SourceMessage
    parsed_message: StorableMessage
    now: datetime

    def matches(self, conditions: MessageConditions) -> bool:
        """True if all conditions hold. A condition on a missing value does not hold."""
        return (
            (
                conditions.every is None
                or (bool(conditions.every) and all(map(self.matches, conditions.every)))
            )
            and (conditions.some is None or any(map(self.matches, conditions.some)))
            and (conditions.none is None or not self.matches(conditions.none))
            and all(self._condition_results(conditions))
        )

    def _condition_results(self, conditions: MessageConditions) -> Iterator[bool]:
        yield from self._flag_results(conditions)
        yield from self._range_results(conditions)
        yield from self._mailbox_results(conditions)
        yield from self._people_results(conditions)
        yield from self._text_results(conditions)
        if conditions.attachment:
            yield self._has_attachment(*conditions.attachment)

    def _flag_results(self, conditions: MessageConditions) -> Iterator[bool]:
        for name in SYSTEM_FLAGS:
            if (value := getattr(conditions, name)) is not None:
                yield (f"\\{name}" in self._folded_flags) is value
        if conditions.keyword:
            flags = map(fold_keyword, self.fetched_message.flags)
            yield conditions.keyword[0] != "\\" and fold_keyword(conditions.keyword) in flags
        if conditions.forwarded is not None:
            yield (FORWARDED_KEYWORD in self._folded_flags) is conditions.forwarded
        if conditions.has_attachment is not None:
            yield (self.parsed_message.facts.attachment_count > 0) is conditions.has_attachment

    def _range_results(self, conditions: MessageConditions) -> Iterator[bool]:
        received = self.fetched_message.received_at or self.now
        sent_at = self.parsed_message.facts.date
        if conditions.received_since:
            yield received >= conditions.received_since
        if conditions.received_before:
            yield received < conditions.received_before
        if conditions.sent_since:
            yield sent_at is not None and sent_at >= conditions.sent_since
        if conditions.sent_before:
            yield sent_at is not None and sent_at < conditions.sent_before
        if conditions.larger is not None:
            yield self.parsed_message.size > conditions.larger
        if conditions.smaller is not None:
            yield self.parsed_message.size < conditions.smaller

    def _mailbox_results(self, conditions: MessageConditions) -> Iterator[bool]:
        folder = fold_text(paths.canonical_path(self.fetched_message.folder))
        if conditions.mailbox:
            yield folder == fold_text(conditions.mailbox.path or "")
        if conditions.mailboxes is not None:
            yield any(folder == fold_text(name.path or "") for name in conditions.mailboxes)
        if conditions.mailbox_patterns is not None:
            yield any(
                paths.compile_folded_path_pattern(pattern).fullmatch(folder)
                for pattern in conditions.mailbox_patterns
            )

    def _people_results(self, conditions: MessageConditions) -> Iterator[bool]:
        facts = self.parsed_message.facts
        record = self.fetched_message.record
        envelope = record.recipients if record else ()
        if conditions.from_:
            yield _any_text_contains(conditions.from_, _names_and_addresses(facts.from_[:1]))
        for name, people in (
            ("to", facts.to),
            ("to_or_cc", [*facts.to, *facts.cc]),
            ("cc", facts.cc),
            ("bcc", facts.bcc),
            ("any_recipient", [*facts.to, *facts.cc, *facts.bcc]),
        ):
            if value := getattr(conditions, name):
                envelope_addresses = envelope if name == "any_recipient" else ()
                yield _any_text_contains(
                    value, [*_names_and_addresses(people), *envelope_addresses]
                )

    def _text_results(self, conditions: MessageConditions) -> Iterator[bool]:
        facts = self.parsed_message.facts
        if conditions.subject:
            yield _any_text_contains(conditions.subject, [facts.subject])
        if conditions.list_id:
            yield _any_text_contains(conditions.list_id, [facts.list_id or ""])
        if conditions.message_id_header:
            yield facts.message_id == conditions.message_id_header
        if conditions.query is not None:
            yield self._word_positions.matches(expression_from_query_or_raise(conditions.query))
        if conditions.header:
            yield self._has_header(*conditions.header)
        if conditions.body is not None:
            yield fold_text(conditions.body) in self._folded_body
        if conditions.text is not None:
            folded_text = fold_text(conditions.text)
            yield folded_text in self._folded_body or folded_text in self._folded_header

    def _has_header(self, name: str, value_part: str | None) -> bool:
        header_values = [
            field.value for field in self._header_fields if field.name.casefold() == name.casefold()
        ]
        return bool(header_values) and (
            value_part is None
            or any(fold_text(value_part) in fold_text(value) for value in header_values)
        )

    def _has_attachment(self, filename: str | None, content_type: str | None) -> bool:
        if not filename and not content_type:
            return self.parsed_message.facts.attachment_count > 0
        return any(
            _any_text_contains(filename or "", [file.filename or ""])
            and _any_text_contains(content_type or "", [file.content_type])
            for file in self.parsed_message.facts.attachments
        )

    @cached_property
    def _folded_flags(self) -> frozenset[str]:
        return frozenset(flag.casefold() for flag in self.fetched_message.flags)

    @cached_property
    def _word_positions(self) -> WordPositions:
        return WordPositions(message_words(self.parsed_message.facts.search_text))

    @cached_property
    def _header_fields(self) -> Sequence[DecodedField]:
        return mime.decoded_fields(self._raw_bytes, self.parsed_message.facts.structure)

    @cached_property
    def _folded_header(self) -> str:
        return fold_text("\n".join(f"{field.name}: {field.value}" for field in self._header_fields))

    @cached_property
    def _folded_body(self) -> str:
        return fold_text(mime.body_text(self._raw_bytes, self.parsed_message.facts.structure) or "")

    @property
    def _raw_bytes(self) -> bytes:
        return self.fetched_message.raw or b""


def _names_and_addresses(people: Iterable[ParsedAddress]) -> list[str]:
    return [f"{person.name or ''} {person.address}" for person in people]


def _any_text_contains(part: str, texts: Iterable[str]) -> bool:
    """True if one of the texts contains this part, like `texts.within` in SQL.

    An empty part is in each text; a part of invisible characters alone is in none.
    """
    folded_part = fold_text(part)
    return bool(folded_part or not part) and any(folded_part in fold_text(text) for text in texts)
