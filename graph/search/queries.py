"""Queries that search messages, and that convert filters from and to text."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON
from strawberry.utils.str_converters import to_camel_case

from graph.messages.filter_inputs import (
    FIELD_BY_JSON_NAME,
    GROUP_JSON_NAMES,
    TIME_JSON_NAMES,
    MessageFilter,
    MessageListRequest,
    filter_from_json_with_query_as_words,
)
from graph.messages.message_order import MessageOrder
from graph.messages.references import ThreadRef
from graph.messages.types import MessageConnection, load_message_page
from graph.types.connections import PageArguments
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.object_access import MANAGED
from graph.types.references import (
    MailboxRef,
    UserSelection,
    maybe_value,
    user_selector_from_selection,
)
from models import quantities
from models.errors import RequestError
from models.users.roles import AdminPermission, Scope
from resolvers.messages.filters.filter_conditions import (
    search_words_if_index_alone_suffices,
    validate_filter_values,
)
from resolvers.search import search_scope
from resolvers.search.query_keys import format_instant
from resolvers.search.query_parser import QueryProblem, parse_search_query
from resolvers.search.query_printer import query_from_fields

MAILBOX_FIELDS = ("mailbox", "mailboxes")
MAX_PROBLEMS = 250  # that are listed of one search
# filters that `messages(filter:)` accepts, unlike an empty object or an empty list below `not`
ALL_MESSAGES_FIELDS: Mapping[str, Any] = {"or": [{"seen": True}, {"seen": False}]}
NO_MESSAGES_FIELDS: Mapping[str, Any] = {"and": [{"seen": True}, {"seen": False}]}
VOID_FIELDS: Mapping[str, Any] = {"or": []}  # of a text without a valid term

QueryTextArgument = Annotated[
    str | None,
    strawberry.argument(
        description='Search text, such as `from:ann has:attachment -in:trash "exact words"`. '
        "With `filter`, both must match. An invalid term is left out and reported in the result. "
        "If no term is valid, nothing matches. At most 4,096 characters; a longer text is invalid "
        "as a whole. Default, and if empty: no search text."
    ),
]


@strawberry.type(description="Search in two forms: as text and as filter.")
class ParsedSearch:
    text: str = attribute_field(
        "Search in the language of `messages(query:)`, such as `from:ann has:attachment`."
    )
    filter: JSON = attribute_field(
        "Filter as JSON, in the form of the input `MessageFilter`, which `messages(filter:)` "
        "accepts. Terms of the search text that are not valid are left out. If all are left out, "
        "the filter selects no message."
    )
    uses_index: bool = attribute_field(
        "True if the text index alone can answer the search. False if messages or their columns "
        "must be read too, or if the filter is not valid."
    )
    problems: list[str] = attribute_field(
        "Problems of the search text, each with its position, and of the filter, in "
        "English: at most the first 250. `problemCount` counts all. Empty if both are valid."
    )
    problem_count: int = attribute_field(
        "Number of problems of the search text and of the filter, including those that `problems` "
        "leaves out."
    )


def json_from_filter(message_filter: MessageFilter, now: datetime) -> dict[str, Any]:
    """Return a filter as JSON, with the terms of `query` as fields.

    Raises InvalidInput if `query` is not valid.
    """
    values: dict[str, Any] = {}
    for name, key in FIELD_BY_JSON_NAME.items():
        value = getattr(message_filter, key)
        if value is UNSET or value is None:
            continue
        if name in GROUP_JSON_NAMES:
            value = [json_from_filter(part, now) for part in value]
        elif name == "not":
            value = json_from_filter(value, now)
        elif name in TIME_JSON_NAMES:
            time, ago = maybe_value(value.at), maybe_value(value.ago)
            value = (
                {"at": format_instant(time)}
                if time
                else {"ago": quantities.format_iso_duration(ago)}
            )
        elif name in REF_CONVERTERS:
            value = REF_CONVERTERS[name](value)
        elif name == "mailboxes":
            value = [_mailbox_ref_json(part) for part in value]
        elif name in ("header", "attachment"):
            value = {
                to_camel_case(field): field_value
                for field, field_value in vars(value).items()
                if field_value is not UNSET and field_value is not None
            }
        values[name] = value
    if (terms := message_filter.query_terms_as_fields_unless_only_words(now)) is not None:
        del values["query"]
        values["and"] = [*values.get("and", ()), terms]
    return values


def _mailbox_ref_json(mailbox_ref: MailboxRef) -> dict[str, Any]:
    """Return a mailbox reference as JSON."""
    special_use = maybe_value(mailbox_ref.special_use)
    if special_use:
        return {"specialUse": special_use.value}
    values = {name: maybe_value(getattr(mailbox_ref, name)) for name in ("path", "id")}
    values["objectId"] = maybe_value(mailbox_ref.object_id)
    return {name: value for name, value in values.items() if value is not None}


def _thread_ref_json(thread_ref: ThreadRef) -> dict[str, Any]:
    """Return a thread reference as JSON."""
    return {"id": maybe_value(thread_ref.id)}


REF_CONVERTERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "mailbox": _mailbox_ref_json,
    "thread": _thread_ref_json,
}


def _parsed_search_from_json(
    info: Info, fields: Mapping[str, Any], problems: list[str]
) -> ParsedSearch:
    """Return the GraphQL object of a filter in JSON: its text, index use and problems.

    The filter of the result has no empty object and no empty list below `not`, which
    `require_valid_conditions` refuses.
    """
    valid_fields = _without_refused_filters(fields)
    try:
        uses_index = (
            search_words_if_index_alone_suffices(
                filter_from_json_with_query_as_words(valid_fields).to_validated_conditions(info)
            )
            is not None
        )
    except RequestError as problem:
        uses_index, problems = False, [*problems, problem.message]
    now = info.context.environment.now()
    return ParsedSearch(
        text=query_from_fields(fields, now),
        filter=JSON(valid_fields),
        uses_index=uses_index,
        problems=problems[:MAX_PROBLEMS],
        problem_count=len(problems),
    )


def _without_refused_filters(
    fields: Mapping[str, Any], *, is_negated: bool = False
) -> Mapping[str, Any]:
    """Return an equal filter without empty objects and without empty lists below `not`."""
    if not fields:
        return ALL_MESSAGES_FIELDS
    if is_negated and [] in fields.values():
        return NO_MESSAGES_FIELDS
    valid_fields = dict(fields)
    for name in GROUP_JSON_NAMES:
        if name in fields:
            valid_fields[name] = [
                _without_refused_filters(part, is_negated=is_negated) for part in fields[name]
            ]
    if "not" in fields:
        valid_fields["not"] = _without_refused_filters(fields["not"], is_negated=True)
    return valid_fields


def _has_mailbox_condition(fields: Mapping[str, Any]) -> bool:
    """True if the filter, or one within it, has a condition on mailboxes."""
    inner = [*fields.get("and", ()), *fields.get("or", ()), fields.get("not", {})]
    return not fields.keys().isdisjoint(MAILBOX_FIELDS) or any(
        map(_has_mailbox_condition, filter(None, inner))
    )


async def _load_filter_and_query_problems(
    info: Info, query_text: str, user_ids: Sequence[int]
) -> tuple[MessageFilter, Sequence[QueryProblem]]:
    """Return the valid terms of a text as a filter, and the problems of the others.

    The filter finds nothing if no term is valid.
    """
    ctx = info.context
    now = ctx.environment.now()
    has_mailbox = _has_mailbox_condition(parse_search_query(query_text, now).fields)
    known_mailboxes = (
        await search_scope.load_known_mailboxes(ctx, user_ids) if has_mailbox else frozenset()
    )

    def check_fields(fields: Mapping[str, Any]) -> None:
        conditions = filter_from_json_with_query_as_words(fields).to_validated_conditions(info)
        search_scope.require_known_mailboxes(conditions, known_mailboxes)
        validate_filter_values(conditions)

    parsed = parse_search_query(query_text, now, check_fields)
    return filter_from_json_with_query_as_words(
        VOID_FIELDS if parsed.is_void else parsed.fields
    ), parsed.problems


@strawberry.type
class SearchQuery:
    @query(
        "Converts a search text to a filter, or a filter to a search text, without searching. "
        "With both arguments, returns a search that meets both. Without both, returns one that "
        "matches every message. Problems of the search text are part of the result and no error. "
        "Whether mailboxes exist is not checked.",
        scope=Scope.MAIL_READ,
    )
    def search_parse(
        self,
        info: Info,
        query: QueryTextArgument = UNSET,
        filter: Annotated[
            MessageFilter | None,
            strawberry.argument(
                description="Filter to convert to a search text. With `query`, the result has "
                "the conditions of both. Default: no filter."
            ),
        ] = UNSET,
    ) -> ParsedSearch:
        now = info.context.environment.now()

        def check_fields(fields: Mapping[str, Any]) -> None:
            validate_filter_values(
                filter_from_json_with_query_as_words(fields).to_validated_conditions(info)
            )

        parsed = parse_search_query(query or "", now, check_fields)
        query_fields = VOID_FIELDS if parsed.is_void else parsed.fields
        problems = list(map(str, parsed.problems))
        if not filter:
            return _parsed_search_from_json(info, query_fields, problems)
        fields = json_from_filter(filter, now)
        if query_fields:
            fields = {"and": [query_fields, fields]}
        return _parsed_search_from_json(info, fields, problems)

    @query(
        "Returns messages of the signed-in user or of at most 100 selected users, more are "
        "LIMIT_REACHED. Messages in all mailboxes are contained, also Junk and Trash, but no "
        "deleted messages that can be restored. Messages in mailboxes that other users share with "
        "them are left out. Of messages of other users, an administrator below ROOT sees flags, "
        "dates, sizes and addresses. Subject and content are FORBIDDEN for them, and so are words "
        "in `query` and the conditions `query`, `subject`, `text`, `body`, `header` and "
        "`attachment`. A read by ROOT is in the security log of the user. UNAVAILABLE if words "
        "are searched while more than 5,000 messages of these users are not indexed.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def messages(
        self,
        info: Info,
        users: Annotated[
            UserSelection | None,
            strawberry.argument(
                description="Users whose messages are returned, at most 100. Default: the "
                "signed-in user."
            ),
        ] = UNSET,
        filter: MessageFilter | None = UNSET,
        query: QueryTextArgument = UNSET,
        order_by: Annotated[
            MessageOrder,
            strawberry.argument(
                description="Sort order of the messages. Default: RECEIVED_AT_DESC, newest first."
            ),
        ] = MessageOrder.RECEIVED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        ctx = info.context
        user_ids = await search_scope.require_searchable_user_ids(
            ctx, user_selector_from_selection(users or None)
        )
        page_arguments = PageArguments(first, after, last, before)
        if not query:
            request = MessageListRequest(filter or None, order_by, page_arguments)
        else:
            query_filter, problems = await _load_filter_and_query_problems(info, query, user_ids)
            combined = MessageFilter(and_=[query_filter, filter]) if filter else query_filter
            request = MessageListRequest(combined, order_by, page_arguments, problems)
        return await load_message_page(info, request, user_ids=user_ids)
