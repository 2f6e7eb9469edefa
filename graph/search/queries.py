"""Queries that search messages, and that convert filters from and to text."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON
from strawberry.utils.str_converters import to_camel_case

from graph.messages.filter_inputs import (
    BOUNDS,
    GROUPS,
    NAMES,
    MessageFilter,
    MessageOrder,
    Wanted,
    filter_of,
)
from graph.messages.types import MessageConnection, message_page
from graph.types.errors import leaf
from graph.types.fields import Info, query
from graph.types.references import MailboxRef, UserSelection, given, users_named
from models import quantities
from models.errors import Refused
from models.users.roles import Scope
from resolvers.messages.filters.filter_conditions import check_values, words_of
from resolvers.search import search_scope
from resolvers.search.query_keys import spelled
from resolvers.search.query_parser import QueryProblem, read
from resolvers.search.query_printer import written

PLACES = ("mailbox", "mailboxes")

Text = Annotated[
    str | None,
    strawberry.argument(
        description='The text form of a filter: from:ann has:attachment -in:trash "exact words".'
    ),
]


@strawberry.type(description="Both forms of one search.")
class ParsedSearch:
    text: str = leaf("Text form.")
    filter: JSON = leaf("MessageFilter as JSON.")
    uses_index: bool = leaf("Answered by the index alone.")
    problems: list[str] = leaf("What could not be understood.")


def fields_of(filter_: MessageFilter, now: datetime) -> dict[str, Any]:
    """Return a filter as JSON, with the terms of `query` as fields.

    Raises Invalid if `query` is not valid.
    """
    values: dict[str, Any] = {}
    for name, key in NAMES.items():
        value = getattr(filter_, key)
        if value is UNSET or value is None:
            continue
        if name in GROUPS:
            value = [fields_of(part, now) for part in value]
        elif name == "not":
            value = fields_of(value, now)
        elif name in BOUNDS:
            time, ago = given(value.at), given(value.ago)
            value = {"at": spelled(time)} if time else {"ago": quantities.long(ago)}
        elif name == "mailbox":
            value = _box(value)
        elif name == "mailboxes":
            value = [_box(part) for part in value]
        elif name in ("header", "attachment"):
            value = {
                to_camel_case(field): field_value
                for field, field_value in vars(value).items()
                if field_value is not UNSET and field_value is not None
            }
        values[name] = value
    if (terms := filter_.terms(now)) is not None:
        del values["query"]
        values["and"] = [*values.get("and", ()), terms]
    return values


def _box(ref: MailboxRef) -> dict[str, Any]:
    """Return a mailbox reference as JSON."""
    special_use = given(ref.special_use)
    if special_use:
        return {"specialUse": special_use.value}
    values = {name: given(getattr(ref, name)) for name in ("path", "id", "guid")}
    return {name: value for name, value in values.items() if value is not None}


def _described(info: Info, fields: Mapping[str, Any], problems: list[str]) -> ParsedSearch:
    """Return the GraphQL object of a filter in JSON: its text, index use and problems."""
    try:
        uses_index = words_of(filter_of(fields).where(info)) is not None
    except Refused as problem:
        uses_index, problems = False, [*problems, problem.message]
    now = info.context.world.now()
    return ParsedSearch(
        text=written(fields, now), filter=JSON(fields), uses_index=uses_index, problems=problems
    )


def _names_mailbox(fields: Mapping[str, Any]) -> bool:
    """True if the filter, or one within it, has a condition on mailboxes."""
    inner = [*fields.get("and", ()), *fields.get("or", ()), fields.get("not", {})]
    return not fields.keys().isdisjoint(PLACES) or any(map(_names_mailbox, filter(None, inner)))


async def _valid_part(
    info: Info, query: str, owners: Sequence[int]
) -> tuple[MessageFilter, Sequence[QueryProblem]]:
    """Return the valid terms of a text as a filter, and the problems of the others.

    The filter finds nothing if no term is valid.
    """
    ctx = info.context
    now = ctx.world.now()
    has_mailbox = _names_mailbox(read(query, now).fields)
    known_mailboxes = await search_scope.known_places(ctx, owners) if has_mailbox else frozenset()

    def check_fields(fields: Mapping[str, Any]) -> None:
        where = filter_of(fields).where(info)
        search_scope.check_known(where, known_mailboxes)
        check_values(where)

    parsed = read(query, now, check_fields)
    return filter_of({"or": []} if parsed.is_void else parsed.fields), parsed.problems


@strawberry.type
class SearchQuery:
    @query("Text to filter, or filter to text; of both, what has both.", scope=Scope.MAIL_READ)
    def search_parse(
        self, info: Info, query: Text = UNSET, filter: MessageFilter | None = UNSET
    ) -> ParsedSearch:
        parsed = read(query or "", info.context.world.now())
        problems = list(map(str, parsed.problems))
        if not filter:
            return _described(info, parsed.fields, problems)
        fields = fields_of(filter, info.context.world.now())
        if query:
            fields = {"and": [parsed.fields, fields]}
        return _described(info, fields, problems)

    @query(
        "Search in one's own account; administrators in many, of which they see records.",
        scope=Scope.MAIL_READ,
    )
    async def messages(
        self,
        info: Info,
        users: UserSelection | None = UNSET,
        filter: MessageFilter | None = UNSET,
        query: Text = UNSET,
        order_by: MessageOrder = MessageOrder.RECEIVED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        ctx = info.context
        user_ids = await search_scope.owners(ctx, users_named(users or None))
        page_arguments = (first, after, last, before)
        if not query:
            request = Wanted(filter or None, order_by, page_arguments)
        else:
            query_filter, problems = await _valid_part(info, query, user_ids)
            combined = MessageFilter(and_=[query_filter, filter]) if filter else query_filter
            request = Wanted(combined, order_by, page_arguments, problems)
        return await message_page(info, request, users=user_ids)
