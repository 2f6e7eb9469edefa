"""SQL conditions of message filters and of the selections of bulk operations."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    case,
    column,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql
from sqlmodel import col

from mail.search.tokenizer import AllOf, AnyOf, SearchExpression
from models.errors import InvalidInput
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.keywords import MessageKeyword
from models.messages.tables import Message
from models.store.columns import core_table
from models.store.query_hints import without_index
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.filters.column_conditions import (
    FLAG_COLUMNS,
    flag_conditions,
    has_attachments_sql,
    highest_uid_sql,
    message_id_from_email_id_or_raise,
    range_conditions,
    text_conditions,
)
from resolvers.messages.filters.filter_lookups import (
    READ_FIELDS,
    FilterLookups,
    ScopedMessageFilter,
    iterate_nested_conditions_requiring_limits,
    load_lookups,
)
from resolvers.messages.filters.indexed_conditions import (
    has_key_condition,
    required_parts,
    split_ordered_conditions,
)
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.filters.sequence_sets import is_in_set_sql
from resolvers.search.index_query import (
    expression_from_query_or_raise,
    matches_words_sql,
    requires_any_word,
)
from resolvers.sql_text import contains_text_sql
from resolvers.users.selection import VIEWER_ONLY, UserSelector

MAX_TERMS = 250  # per filter; SQLite allows expressions of at most 1000 levels
TOO_MANY_TERMS_MESSAGE = f"A filter has at most {MAX_TERMS} terms."
UNSEARCHED_SPECIAL_USES = (SpecialUse.JUNK, SpecialUse.TRASH)
ATTACHMENT_KEYS = ("filename", "content_type")  # the keys of a stored attachment
VALUELESS_FIELDS = (
    *FLAG_COLUMNS,
    "forwarded",
    "snoozed",
    "submission_states",
    "has_attachment",
    "tier",
)


@dataclass(frozen=True, slots=True)
class FilterSql:
    """A filter as SQL over messages of the accounts it was made for. Several lists can use it.

    `index_matches` is what the search index finds by `search_words`, which all messages must have.
    It is None if there are none.
    """

    lookups: FilterLookups
    search_words: SearchExpression | None
    index_matches: ColumnElement[bool] | None
    conditions: Sequence[ColumnElement[bool]]
    uses_key_index: bool = False  # a UID set, a thread or IDs find the rows
    keyword: str | None = None  # all messages have it; in lower case, as in the table of keywords
    ordered_conditions: Sequence[ColumnElement[bool]] = ()  # rows with them have an ordered index
    tested_conditions: Sequence[ColumnElement[bool]] = ()  # conditions that no index answers

    @property
    def finds_rows_by_key_or_word(self) -> bool:
        """True if keys or the search index find the messages, instead of a scan in list order."""
        return self.uses_key_index or self.index_matches is not None

    def combine_with(
        self, ctx: Context, other_conditions: Sequence[ColumnElement[bool]]
    ) -> list[ColumnElement[bool]]:
        """Combine other conditions with those of the filter; the search index is asked first."""
        if self.keyword is not None:
            with_keyword = select(col(MessageKeyword.id)).where(
                col(MessageKeyword.user_id).in_(self.lookups.unindexed.user_ids),
                col(MessageKeyword.keyword) == self.keyword,
            )
            other = without_index(*other_conditions, *self.conditions)
            return [col(Message.id).in_(with_keyword), other]
        if self.index_matches is None:
            return (
                [*self.conditions, without_index(*other_conditions)]
                if self.uses_key_index
                else [*other_conditions, *self.conditions]
            )
        all_conditions = [*other_conditions, *self.conditions]
        if ctx.environment.database.dialect != "sqlite":
            return [*all_conditions, self.index_matches]
        # A CASE hides columns from the planner: SQLite would otherwise scan a whole mailbox,
        # and test for each message whether the index found it.
        return [self.index_matches, case((and_(*all_conditions), 1), else_=0) == 1]


async def load_lookups_of_scoped_filter(ctx: Context, scope: ScopedMessageFilter) -> FilterLookups:
    """Look up what this filter needs before its statement."""
    (lookups,) = (
        await load_lookups(
            ctx, [scope], lambda conditions, lookups: build_conditions(ctx, conditions, lookups)
        )
    ).values()
    return lookups


async def load_filter_sql(ctx: Context, scopes: list[ScopedMessageFilter]) -> list[FilterSql]:
    """Build the filters of these scopes as SQL, in this order. Equal filters are built once.

    Raises LimitReached as `load_lookups` does.
    """
    lookups = await load_lookups(
        ctx, scopes, lambda conditions, lookups: build_conditions(ctx, conditions, lookups)
    )
    sql_by_filter = {key: _build_filter_sql(ctx, key[0], lookup) for key, lookup in lookups.items()}
    return [sql_by_filter[scope.conditions, scope.is_deleted] for scope in scopes]


def _build_filter_sql(
    ctx: Context, message_conditions: MessageConditions, lookups: FilterLookups
) -> FilterSql:
    search_words, other_conditions = split_search_words(message_conditions)
    if search_words is None or not requires_any_word(search_words):
        is_of_users = col(Message.user_id).in_(lookups.unindexed.user_ids)
        conditions = build_conditions(ctx, message_conditions, lookups)
        if has_key_condition(message_conditions):
            return FilterSql(lookups, None, None, conditions, uses_key_index=True)
        if any(part.message_id_header for part in required_parts(message_conditions)):
            conditions.append(is_of_users)
            return FilterSql(lookups, None, None, conditions, uses_key_index=True)
        keyword, ordered, rest = split_ordered_conditions(message_conditions)
        ordered_conditions = build_conditions(ctx, ordered, lookups)
        if ordered.snoozed:  # no mailbox has an index of them
            ordered_conditions.append(is_of_users)
        return FilterSql(
            lookups,
            None,
            None,
            conditions,
            keyword=None if lookups.is_deleted else keyword,
            ordered_conditions=ordered_conditions,
            tested_conditions=[] if rest.is_empty else build_conditions(ctx, rest, lookups),
        )
    condition = matches_words_sql(ctx, lookups.unindexed, search_words)
    return FilterSql(
        lookups, search_words, condition, build_conditions(ctx, other_conditions, lookups)
    )


def build_conditions(
    ctx: Context, message_conditions: MessageConditions, lookups: FilterLookups
) -> list[ColumnElement[bool]]:
    """Build the SQL of a filter over messages of the accounts in `lookups`.

    Raises InvalidInput for wrong values or too many conditions.
    """
    return list(_ConditionBuilder(ctx, lookups).build(message_conditions))


def validate_filter_values(message_conditions: MessageConditions) -> None:
    """Raise InvalidInput if `build_conditions` would refuse a value or their number."""
    value_count = 0
    for condition in iterate_nested_conditions_requiring_limits(message_conditions):
        if condition.query:
            expression_from_query_or_raise(condition.query)
        for name in ("uids", "seqs"):
            if value := getattr(condition, name):
                is_in_set_sql(value, col(Message.uid), highest_uid_sql, input_name=name)
        for nth, text in enumerate(condition.email_ids or ()):
            message_id_from_email_id_or_raise(text, nth)
        value_count += 1 + sum(value is not None for value in condition)
    if value_count > MAX_TERMS:
        raise InvalidInput(
            TOO_MANY_TERMS_MESSAGE, constraint=ValidationConstraint.MAX, path=["filter"]
        )


def search_words_if_index_alone_suffices(
    message_conditions: MessageConditions,
) -> SearchExpression | None:
    """Return the search words of a filter that the index alone can answer, else None."""
    list(iterate_nested_conditions_requiring_limits(message_conditions))  # checks the limits
    search_words, rest = split_search_words(message_conditions)
    return (
        search_words
        if search_words is not None and requires_any_word(search_words) and rest.is_empty
        else None
    )


def has_only_flags(message_conditions: MessageConditions) -> bool:
    """True if the filter tests only flags, so that its SQL is always the same."""
    unmarked: dict[str, Any] = {**dict.fromkeys((*VALUELESS_FIELDS, "every", "some", "none"))}
    return all(
        condition.is_empty or condition._replace(**unmarked).is_empty
        for condition in iterate_nested_conditions_requiring_limits(message_conditions)
    )


def split_search_words(
    message_conditions: MessageConditions,
) -> tuple[SearchExpression | None, MessageConditions]:
    """Split a filter into the search words all its messages have, and the other conditions."""
    expressions: list[SearchExpression] = (
        [expression_from_query_or_raise(message_conditions.query)]
        if message_conditions.query
        else []
    )
    every = []
    for nested in message_conditions.every or ():
        inner_words, rest = split_search_words(nested)
        expressions += [inner_words] if inner_words else []
        every += [] if rest.is_empty else [rest]
    alternatives = [split_search_words(nested) for nested in message_conditions.some or ()]
    remaining = message_conditions.some
    if alternatives and all(
        inner_words and requires_any_word(inner_words) for inner_words, _ in alternatives
    ):
        expressions.append(
            AnyOf(tuple(inner_words for inner_words, _ in alternatives if inner_words))
        )
        remaining = (
            None if all(rest.is_empty for _, rest in alternatives) else message_conditions.some
        )
    kept_every = tuple(every) or (None if message_conditions.every else message_conditions.every)
    rest = message_conditions._replace(query=None, every=kept_every, some=remaining)
    return (
        AllOf(tuple(expressions))
        if len(expressions) > 1
        else expressions[0]
        if expressions
        else None
    ), rest


@dataclass(slots=True)
class _ConditionBuilder:
    """Builds the SQL of a filter, and counts its terms."""

    ctx: Context
    lookups: FilterLookups
    term_count: int = field(default=0, init=False)  # conditions built so far

    def build(self, message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
        terms = [
            *self._word_conditions(message_conditions),
            *text_conditions(message_conditions),
            *flag_conditions(message_conditions),
            *range_conditions(message_conditions),
        ]
        terms += self._mailbox_thread_and_number_conditions(message_conditions)
        if message_conditions.attachment:
            terms.append(self._has_attachment(*message_conditions.attachment))
        self.term_count += len(terms) + 1
        if self.term_count > MAX_TERMS:
            raise InvalidInput(
                TOO_MANY_TERMS_MESSAGE, constraint=ValidationConstraint.MAX, path=["filter"]
            )
        return [*self._group_conditions(message_conditions), *terms]

    def _group_conditions(self, message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
        terms = [self._all_hold(nested) for nested in message_conditions.every or ()]
        if message_conditions.every == ():
            terms.append(false())
        if message_conditions.some is not None:
            terms.append(
                or_(false(), *(self._all_hold(nested) for nested in message_conditions.some))
            )
        if message_conditions.none is not None:  # a NULL condition counts as not fulfilled
            terms.append(
                func.coalesce(self._all_hold(message_conditions.none), false()).is_(false())
            )
        return terms

    def _all_hold(self, message_conditions: MessageConditions) -> ColumnElement[bool]:
        return and_(true(), *self.build(message_conditions))

    def _word_conditions(self, message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if message_conditions.query:
            terms.append(
                matches_words_sql(
                    self.ctx,
                    self.lookups.unindexed,
                    expression_from_query_or_raise(message_conditions.query),
                )
            )
        for name in READ_FIELDS:
            value = getattr(message_conditions, name)
            if value is not None:
                terms.append(
                    col(Message.id).in_(self.lookups.message_ids_by_condition[name, value])
                )
        return terms

    def _mailbox_thread_and_number_conditions(
        self, message_conditions: MessageConditions
    ) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        archived = self.lookups.is_deleted
        mailbox = col(Message.deleted_mailbox_id if archived else Message.mailbox_id)
        if message_conditions.mailbox:
            terms.append(mailbox.in_(self._mailbox_ids(message_conditions.mailbox)))
        if message_conditions.mailboxes is not None:
            terms.append(
                or_(
                    false(),
                    *(
                        mailbox.in_(self._mailbox_ids(name))
                        for name in message_conditions.mailboxes
                    ),
                )
            )
        if message_conditions.mailbox_patterns is not None:
            keys = {
                key
                for pattern in message_conditions.mailbox_patterns
                for key in self.lookups.mailbox_ids_by_pattern[pattern]
            }
            terms.append(mailbox.in_(keys))
        if message_conditions.searchable is not None:
            hidden = _mailboxes_of_users(self.lookups.unindexed.user_ids).where(
                col(Mailbox.special_use).in_(UNSEARCHED_SPECIAL_USES)
            )
            terms.append(
                mailbox.not_in(hidden) if message_conditions.searchable else mailbox.in_(hidden)
            )
        if message_conditions.thread_id is not None:
            terms.append(col(Message.thread_id) == message_conditions.thread_id)
        if message_conditions.uids is not None:
            terms.append(
                is_in_set_sql(
                    message_conditions.uids, col(Message.uid), highest_uid_sql, input_name="uids"
                )
            )
        if message_conditions.seqs is not None and message_conditions.mailbox:
            terms.append(
                self._is_at_sequence_numbers(message_conditions.seqs, message_conditions.mailbox)
            )
        return terms

    def _mailbox_ids(self, selector: MailboxSelector) -> Select[int]:
        return select_mailbox_ids(self.lookups.unindexed.user_ids, selector)

    def _is_at_sequence_numbers(
        self, number_set_text: str, selector: MailboxSelector
    ) -> ColumnElement[bool]:
        """Build the condition on sequence numbers in a mailbox, counted from 1."""
        rows = core_table(Message).alias("placed")
        sequence_number = func.row_number().over(
            partition_by=rows.c.mailbox_id, order_by=rows.c.uid
        )
        message_count = func.count().over(partition_by=rows.c.mailbox_id)
        numbered = (
            select(rows.c.id, sequence_number.label("place"), message_count.label("many"))
            .where(rows.c.mailbox_id.in_(self._mailbox_ids(selector)))
            .subquery()
        )
        is_chosen = is_in_set_sql(
            number_set_text, numbered.c.place, lambda: numbered.c.many, input_name="seqs"
        )
        return col(Message.id).in_(select(numbered.c.id).where(is_chosen))

    def _has_attachment(
        self, filename: str | None, content_type: str | None
    ) -> ColumnElement[bool]:
        """Build the condition that an attachment's name and type contain these texts."""
        files: Any = col(Message.attachments)
        if self.ctx.environment.database.dialect == "sqlite":
            json_files = func.json_each(files).table_valued("value", name="file")
            value = [func.json_extract(json_files.c.value, f"$.{key}") for key in ATTACHMENT_KEYS]
        else:
            json_files = func.jsonb_array_elements(files).table_valued(
                column("value", postgresql.JSONB), name="file"
            )
            value = [json_files.c.value[key].as_string() for key in ATTACHMENT_KEYS]
        patterns = [
            contains_text_sql(func.coalesce(column_value, "", type_=String), part)
            for column_value, part in zip(value, (filename, content_type), strict=True)
            if part
        ]
        return (
            exists(select(1).select_from(json_files).where(*patterns))
            if patterns
            else has_attachments_sql()
        )


def _mailboxes_of_users(user_ids: Sequence[int]) -> Select[int]:
    return select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(user_ids))


def select_mailbox_ids(user_ids: Sequence[int], selector: MailboxSelector) -> Select[int]:
    """Select the IDs of the mailboxes of these users that a filter means."""
    mailboxes = _mailboxes_of_users(user_ids)
    if selector.path is not None:
        return mailboxes.where(_is_at_path(selector.path))
    column: Any
    value: int | str | None
    if selector.id is not None:
        column, value = col(Mailbox.id), selector.id
    elif selector.object_id is not None:
        column, value = col(Mailbox.object_id), selector.object_id
    else:
        column, value = col(Mailbox.special_use), selector.special_use
    return mailboxes.where(column == value)


def _is_at_path(path: str) -> ColumnElement[bool]:
    """Build the condition that a mailbox has this path.

    If an account has none, its mailboxes with the same folded path fulfill it.
    """
    exact = core_table(Mailbox).alias("exact")
    exists_at_path = exists(select(1).where(
        exact.c.user_id == col(Mailbox.user_id), exact.c.path == path,
    ))  # fmt: skip
    return or_(
        col(Mailbox.path) == path,
        and_(not_(exists_at_path), func.fold_text(col(Mailbox.path)) == fold_text(path)),
    )


@dataclass(frozen=True, slots=True)
class MessageSelector:
    """Messages of accounts, by exactly one of IDs, mailbox and conditions.

    UIDs narrow a mailbox. The mailbox is that of each account.
    """

    ids: Sequence[int] | None = None
    mailbox: MailboxSelector | None = None
    uids: str | None = None
    conditions: MessageConditions | None = None
    users: UserSelector = VIEWER_ONLY
    filter_sql: FilterSql | None = None

    async def validated_with_filter_sql(
        self, ctx: Context, owner_ids: Sequence[int]
    ) -> "MessageSelector":
        """Return the selector with the SQL of its filter.

        Raises InvalidInput unless one way is used.
        """
        given_count = sum(part is not None for part in (self.ids, self.mailbox, self.conditions))
        if given_count != 1 or (self.uids is not None and self.mailbox is None):
            raise InvalidInput(
                "Exactly one of `ids`, `mailbox` and `filter` is required.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=["select"],
            )
        if self.ids is not None or not owner_ids:
            return self
        conditions = self.conditions or MessageConditions(mailbox=self.mailbox, uids=self.uids)
        filter_sql, *_ = await load_filter_sql(
            ctx, [ScopedMessageFilter(conditions, owner) for owner in owner_ids]
        )
        return replace(self, filter_sql=filter_sql)

    def build_conditions(
        self, ctx: Context, other_conditions: Sequence[ColumnElement[bool]]
    ) -> list[ColumnElement[bool]]:
        """Build the SQL of the selection, combined with these conditions."""
        if self.filter_sql is None:
            return [*other_conditions, col(Message.id).in_(self.ids or ())]
        return self.filter_sql.combine_with(ctx, other_conditions)
