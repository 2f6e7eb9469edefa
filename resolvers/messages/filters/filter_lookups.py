"""What a filter asks that no column answers: search words, texts, header fields and path patterns.

It is looked up before the statement that selects the messages.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, select
from sqlmodel import col

from mail import mime
from mail.mailboxes import paths
from mail.mime import ByteSource, ParsedPart
from mail.search.index_worker import BATCH_SIZE, body_text
from mail.storage import message_content, message_open
from mail.storage.blobs.errors import BytesInBlob, CorruptBlob
from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, LimitReached
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import select_columns
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint
from resolvers.access import can_see_managed_mail_records, is_visible_or_managed
from resolvers.context import Context
from resolvers.messages.content_access import (
    load_ids_of_readable_shared_mailboxes,
    require_root_and_log_reads,
)
from resolvers.messages.filters.indexed_conditions import required_mailboxes
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search.index_query import UnindexedMessages, load_unindexed_messages_within_limit
from resolvers.sql_text import MAX_SEARCH_LENGTH

MAX_READ_MESSAGES = 2000  # messages that are read for one filter
READ_FIELDS = ("text", "body", "header")  # conditions that need the message to be read
# conditions on what an administrator below ROOT can't read in messages of other users
CONTENT_FIELDS = (*READ_FIELDS, "query", "subject", "attachment")
# conditions with texts; those of `query` have limits of their own
TEXT_FIELDS = (
    *("text", "body", "from_", "to", "to_or_cc", "cc", "bcc", "any_recipient", "subject"),
    *("list_id", "header", "message_id_header", "keyword", "attachment"),
)

ReadCondition = tuple[str, Any]  # one of READ_FIELDS, and its value


class ScopedMessageFilter(NamedTuple):
    """A message filter for an account, or for one of its mailboxes or threads."""

    conditions: MessageConditions
    user_id: int
    mailbox_id: int | None = None
    thread_id: int | None = None
    is_deleted: bool = False  # searches deleted messages, by the mailboxes they were in

    @property
    def required_mailbox_ids(self) -> set[int]:
        """The IDs of mailboxes that have all matches. Empty for deleted messages."""
        if self.is_deleted:
            return set()
        ids = {self.mailbox_id, *(ref.id for ref in required_mailboxes(self.conditions))}
        return {key for key in ids if key is not None}


@dataclass(frozen=True, slots=True)
class FilterLookups:
    """The results of the lookups of a filter."""

    unindexed: UnindexedMessages
    is_deleted: bool = False
    # messages
    message_ids_by_condition: Mapping[ReadCondition, Sequence[int]] = field(default_factory=dict)
    # folders by patterns
    mailbox_ids_by_pattern: Mapping[str, Sequence[int]] = field(default_factory=dict)


MAX_DEPTH = 8  # levels of and, or and not
MAX_PARTS = 250  # in a filter

ConditionsFunction = Callable[[MessageConditions, FilterLookups], list[ColumnElement[bool]]]


def iterate_nested_conditions_requiring_limits(
    conditions: MessageConditions,
) -> Iterator[MessageConditions]:
    """Yield the filter and all filters in it.

    Raises InvalidInput if they are too many or too deep, or if a text is too long.
    """
    waiting = [(conditions, 0)]
    for condition_count, (nested, depth) in enumerate(waiting, 1):
        if depth > MAX_DEPTH:
            error_text = f"`and`, `or` and `not` are nested at most {MAX_DEPTH} levels deep."
            raise InvalidInput(error_text, constraint=ValidationConstraint.DEPTH, path=["filter"])
        if condition_count > MAX_PARTS:
            error_text = f"A filter has at most {MAX_PARTS} parts."
            raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=["filter"])
        _require_short_texts(nested)
        yield nested
        below = (
            *(nested.every or ()),
            *(nested.some or ()),
            *((nested.none,) if nested.none else ()),
        )
        waiting += ((part, depth + 1) for part in below)


def _require_short_texts(conditions: MessageConditions) -> None:
    """Raise InvalidInput if a text of the filter, without those in it, is too long."""
    for name in TEXT_FIELDS:
        value = getattr(conditions, name)
        if value is None:
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if text is not None and len(text) > MAX_SEARCH_LENGTH:
                error_text = f"The search text has at most {MAX_SEARCH_LENGTH} characters."
                raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=["filter"])


def _conditions_requiring_read(conditions: MessageConditions) -> set[ReadCondition]:
    """Return name and value of each nested condition that needs the message to be read."""
    return {
        (name, value)
        for condition in iterate_nested_conditions_requiring_limits(conditions)
        for name in READ_FIELDS
        if (value := getattr(condition, name)) is not None
    }


async def load_lookups(
    ctx: Context, scopes: Sequence[ScopedMessageFilter], build_conditions: ConditionsFunction
) -> dict[tuple[MessageConditions, bool], FilterLookups]:
    """Load the lookups of these filters, by the `conditions` and `is_deleted` of their scopes.

    Takes a fixed number of statements for each filter. `build_conditions` builds the SQL of the
    other conditions. Raises LimitReached if too many messages would have to be read: other
    conditions must narrow them.
    """
    scopes_by_filter: defaultdict[tuple[MessageConditions, bool], list[ScopedMessageFilter]] = (
        defaultdict(list)
    )
    for scope in scopes:
        scopes_by_filter[scope.conditions, scope.is_deleted].append(scope)
    return {
        key: await _load_lookups_and_log_reads_by_root(ctx, key[0], group, build_conditions)
        for key, group in scopes_by_filter.items()
    }


async def _load_lookups_and_log_reads_by_root(
    ctx: Context,
    conditions: MessageConditions,
    scopes: Sequence[ScopedMessageFilter],
    build_conditions: ConditionsFunction,
) -> FilterLookups:
    filters = list(iterate_nested_conditions_requiring_limits(conditions))
    if any(getattr(filter_, name) is not None for filter_ in filters for name in CONTENT_FIELDS):
        await _require_readable_and_log_reads_by_root(ctx, scopes)
    owners = sorted({scope.user_id for scope in scopes})
    by_words = any(filter_.query for filter_ in filters)
    waiting = (
        await load_unindexed_messages_within_limit(ctx, owners)
        if by_words
        else UnindexedMessages(owners)
    )
    lookups = FilterLookups(waiting, scopes[0].is_deleted)
    patterns = {pattern for filter_ in filters for pattern in filter_.mailbox_patterns or ()}
    if patterns:
        lookups = replace(
            lookups, mailbox_ids_by_pattern=await _mailbox_ids_by_pattern(ctx, owners, patterns)
        )
    leaves = _conditions_requiring_read(conditions)
    if leaves:
        sql_conditions = [
            *_messages_in_scopes_sql(ctx, scopes, owners),
            *build_conditions(_without_conditions_requiring_read(conditions), lookups),
        ]
        lookups = replace(
            lookups,
            message_ids_by_condition=await _find_matching_ids_by_reading(
                ctx, sql_conditions, leaves
            ),
        )
    return lookups


async def _require_readable_and_log_reads_by_root(
    ctx: Context, scopes: Sequence[ScopedMessageFilter]
) -> None:
    """Raise Forbidden if the viewer can't read the content that the filter tests.

    The matches of a filter tell what it tests. Reads by ROOT are logged.
    """
    foreign = {scope for scope in scopes if scope.user_id != ctx.viewer.user_id}
    if not foreign or not can_see_managed_mail_records(ctx):  # only shared messages can be found
        return
    mailbox_ids_by_scope = {scope: scope.required_mailbox_ids for scope in foreign}
    readable_ids = await load_ids_of_readable_shared_mailboxes(
        ctx, set().union(*mailbox_ids_by_scope.values())
    )
    await require_root_and_log_reads(
        ctx,
        {
            scope.user_id
            for scope, mailbox_ids in mailbox_ids_by_scope.items()
            if readable_ids.isdisjoint(mailbox_ids)
        },
    )


def _messages_in_scopes_sql(
    ctx: Context, scopes: Sequence[ScopedMessageFilter], owner_ids: Sequence[int]
) -> list[ColumnElement[bool]]:
    filters_sql = [is_visible_or_managed(ctx, Message), col(Message.user_id).in_(owner_ids)]
    for name in ("mailbox_id", "thread_id"):
        keys = {getattr(scope, name) for scope in scopes}
        if None not in keys:
            filters_sql.append(col(getattr(Message, name)).in_(keys))
    deleted_at = col(Message.deleted_at)
    return [*filters_sql, deleted_at.is_not(None) if scopes[0].is_deleted else deleted_at.is_(None)]


async def _mailbox_ids_by_pattern(
    ctx: Context, owner_ids: Sequence[int], patterns: Iterable[str]
) -> dict[str, list[int]]:
    statement = select(*select_columns(Mailbox, {"id", "path"}))
    rows = await ctx.read(
        statement.where(is_visible_or_managed(ctx, Mailbox), col(Mailbox.user_id).in_(owner_ids))
    )
    fits = {pattern: paths.compile_folded_path_pattern(pattern).fullmatch for pattern in patterns}
    folded = [(row.id, fold_text(row.path)) for row in rows]
    return {
        pattern: [key for key, path in folded if is_fulfilled(path)]
        for pattern, is_fulfilled in fits.items()
    }


def _without_conditions_requiring_read(conditions: MessageConditions) -> MessageConditions:
    """Return a wider filter, without the conditions that need a message to be read."""
    return conditions._replace(
        text=None,
        body=None,
        header=None,
        every=None
        if conditions.every is None
        else tuple(map(_without_conditions_requiring_read, conditions.every)),
        some=conditions.some
        if not any(map(_conditions_requiring_read, conditions.some or ()))
        else None,
        none=conditions.none
        if conditions.none and not _conditions_requiring_read(conditions.none)
        else None,
    )


async def _find_matching_ids_by_reading(
    ctx: Context,
    message_conditions: Sequence[ColumnElement[bool]],
    read_conditions: Iterable[ReadCondition],
) -> dict[ReadCondition, list[int]]:
    """Find the messages that fulfill each condition by reading them. Raises LimitReached."""
    statement = select(*select_columns(Message, {"id", "blob_id", "mime_structure"})).where(
        *message_conditions
    )
    rows = await ctx.read(statement.limit(MAX_READ_MESSAGES + 1))
    if len(rows) > MAX_READ_MESSAGES:
        raise LimitReached(
            f"`text`, `body` and `header` are searched in at most {MAX_READ_MESSAGES} "
            "messages: narrow the search, for example by a mailbox or a time, or "
            "search by words.",
            limit=MAX_READ_MESSAGES,
            used=len(rows),
            path=["filter"],
        )
    ids_by_condition: dict[ReadCondition, list[int]] = {leaf: [] for leaf in read_conditions}
    for start in range(0, len(rows), BATCH_SIZE):
        row_batch = rows[start : start + BATCH_SIZE]
        stored = await message_open.open_messages_and_log_damage(
            ctx.environment, row_batch, ctx.read, count_bytes_read=ctx.charge_bytes
        )
        examined = await message_content.run_on_message_sources_in_thread(
            stored, partial(_fulfilled_conditions, stored, ids_by_condition)
        )
        for message, results in zip(stored, examined, strict=True):
            for leaf in results:
                ids_by_condition[leaf].append(message.row.id)
    return ids_by_condition


def _fulfilled_conditions(
    messages: Sequence[StoredMessage],
    read_conditions: Iterable[ReadCondition],
    index: int,
    source: ByteSource | None,
) -> list[ReadCondition]:
    """Return the conditions that a message fulfills. A damaged message fulfills none."""
    if source is None:
        return []
    texts = _MessageTexts(source, messages[index].structure)
    return [leaf for leaf in read_conditions if texts.fulfills(leaf)]


@dataclass
class _MessageTexts:
    """The text and header fields of a message, parsed once for all conditions."""

    source: ByteSource
    structure: ParsedPart

    def fulfills(self, read_condition: ReadCondition) -> bool:
        """True if the message fulfills the condition. A damaged message does not."""
        name, statement = read_condition
        try:
            if name == "header":
                return self._has_header(*statement)
            within = fold_text(statement) in self._folded_body
            return within or (name == "text" and fold_text(statement) in self._folded_header)
        except (CorruptBlob, BytesInBlob):  # damage was logged where it was read
            return False

    def _has_header(self, name: str, value_part: str | None) -> bool:
        values = [
            field.value for field in self._header_fields if field.name.casefold() == name.casefold()
        ]
        return bool(values) and (
            value_part is None or any(fold_text(value_part) in fold_text(value) for value in values)
        )

    @cached_property
    def _folded_body(self) -> str:
        return fold_text(body_text(self.source, self.structure))

    @cached_property
    def _header_fields(self) -> Sequence[mime.DecodedField]:
        return mime.decoded_fields(self.source, self.structure)

    @cached_property
    def _folded_header(self) -> str:
        return fold_text("\n".join(f"{field.name}: {field.value}" for field in self._header_fields))
