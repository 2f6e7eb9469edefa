"""GraphQL types, mutations and subscription of saved searches."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import (
    MessageFilter,
    MessageListRequest,
    filter_from_json_with_query_as_words,
)
from graph.messages.message_order import MessageOrder
from graph.messages.types import MessageConnection, load_message_page
from graph.search.queries import json_from_filter
from graph.types.connections import PageArguments
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_access import OWN
from graph.types.object_references import (
    ObjectRef,
    resolve_id_from_ref_or_raise,
    resolve_ids_from_refs_or_raise,
)
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from graph.types.scalars import BigInt
from models.errors import InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches
from resolvers.search.query_parser import fields_from_valid_query
from resolvers.search.query_printer import query_from_fields
from resolvers.search.saved_searches import SavedSearchChange


def _conditions_from_json(info: Info, fields: Mapping[str, Any]) -> MessageConditions:
    """Convert a filter in JSON to conditions of the resolvers. Raises InvalidInput."""
    return filter_from_json_with_query_as_words(fields).to_validated_conditions(info)


@strawberry.type(
    description="Saved search: a named filter of messages, shown as a virtual mailbox. Only its "
    "user sees it.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class SavedSearch(NodeView):
    name: str = attribute_field(
        "Name of the saved search. The names of two saved searches of a user differ not only in "
        "case."
    )
    filter: JSON = attribute_field("Filter as JSON, in the form of the input `MessageFilter`.")

    load_batch = staticmethod(saved_searches.load_own_saved_searches_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SavedSearch")}

    @field(
        "Stored filter, written as a search text in the language of `messages(query:)`.", "filter"
    )
    def query(self, info: Info) -> str:
        return query_from_fields(self.row.filter, info.context.environment.now())

    @field(
        "Number of unread messages that the saved search matches: those without the flag \\Seen. "
        "Deleted messages do not count. Null with an error if they can't be counted.",
        "filter",
        "user_id",
        cost=20,
        can_fail=True,
    )
    async def unseen_count(self, info: Info) -> BigInt:
        return BigInt(await self._count_messages(info, only_unseen=True))

    @field(
        "Number of messages in mailboxes that the saved search matches. Deleted messages do not "
        "count. Null with an error if they can't be counted.",
        "filter",
        "user_id",
        cost=20,
        can_fail=True,
    )
    async def message_count(self, info: Info) -> BigInt:
        return BigInt(await self._count_messages(info))

    async def _count_messages(self, info: Info, *, only_unseen: bool = False) -> int:
        """Count the messages that the search finds, or only the unread ones."""
        if counted := vars(self).get("counted"):
            return int(counted.unseen_count if only_unseen else counted.message_count)
        conditions = _conditions_from_json(info, self.row.filter)
        page_key = saved_searches.listing_for_count(
            self.row.user_id, conditions, only_unseen=only_unseen
        )
        return await info.context.load(message_loaders.count_visible_messages_of_listings, page_key)

    @field(
        "Messages in mailboxes of the user that the saved search matches, without deleted ones. "
        "Default: newest first.",
        "filter",
        "user_id",
    )
    async def messages(
        self,
        info: Info,
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
        request = MessageListRequest(
            filter_from_json_with_query_as_words(self.row.filter),
            order_by,
            PageArguments(first, after, last, before),
        )
        return await load_message_page(info, request, user_ids=[self.row.user_id])


@strawberry.input(one_of=True, description="Reference to one saved search of the signed-in user.")
class SavedSearchRef(ObjectRef):
    name: strawberry.Maybe[str] = attribute_field(
        "Name of the saved search. Case, and spaces around the name, are ignored."
    )


FILTER_DESCRIPTION = (
    "Filter of the saved search. The conditions `text`, `body` and `header`, and mailboxes that "
    "the user does not own, are not allowed in it. With `query`, both must match."
)
QUERY_DESCRIPTION = (
    "Search text of the saved search, as in `messages(query:)`, at most 4,096 characters. An "
    "invalid term is an error. With `filter`, both must match."
)


@strawberry.input(description="Input of savedSearchCreate. `filter`, `query` or both are required.")
class SavedSearchCreateInput(Options):
    name: str = attribute_field(
        "Name of the saved search, 1 to 128 characters without the spaces around it. Another one "
        "with this name, in any case, is a CONFLICT."
    )
    filter: MessageFilter | None = attribute_field(FILTER_DESCRIPTION, default=UNSET)
    query: str | None = attribute_field(QUERY_DESCRIPTION, default=UNSET)


@strawberry.input(
    description="Changes to saved searches. An omitted field is unchanged, null is refused. At "
    "least one field is required. `filter` and `query`, if one or both are given, replace the "
    "stored search."
)
class SavedSearchPatch:
    name: strawberry.Maybe[str] = attribute_field(
        "New name of the saved search, 1 to 128 characters. VALIDATION if the input names more "
        "than one saved search. CONFLICT if another saved search of the user has this name; case "
        "is ignored. Null is refused. Omitted: unchanged."
    )
    filter: strawberry.Maybe[MessageFilter] = attribute_field(FILTER_DESCRIPTION)
    query: strawberry.Maybe[str] = attribute_field(QUERY_DESCRIPTION)


@strawberry.input(description="Input of savedSearchUpdate.")
class SavedSearchUpdateInput(Options):
    saved_searches: list[SavedSearchRef] = attribute_field(
        "Saved searches to change, 1 to 1,000 by default."
    )
    set: SavedSearchPatch = attribute_field(
        "Values to change, the same for all saved searches. At least one is required."
    )


@strawberry.input(description="Input of savedSearchDelete.")
class SavedSearchDeleteInput(Options):
    saved_searches: list[SavedSearchRef] = attribute_field(
        "Saved searches to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of savedSearchCreate.")
class SavedSearchPayload(MutationPayload):
    saved_search: SavedSearch | None = attribute_field(
        "Created saved search. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of savedSearchUpdate.")
class SavedSearchesPayload(MutationPayload):
    saved_searches: list[SavedSearch] = attribute_field(
        "Changed saved searches, in the order of the input. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class SavedSearchMutation:
    @mutation(
        "Stores a filter of messages under a name, as a virtual mailbox of the signed-in user. "
        "`filter`, `query` or both are required. VALIDATION if the filter has a condition `text`, "
        "`body` or `header`, or a mailbox that the user does not own. `query` searches words in "
        "messages. CONFLICT if another saved search of the user has the name, in any case. "
        "LIMIT_REACHED if the user has 100 saved searches, or if the filter has more than 16,384 "
        "characters as JSON. UNAVAILABLE if the filter searches for words while more than 5,000 "
        "messages of the user are not indexed yet: retry later.",
        scope=Scope.MAIL,
    )
    async def saved_search_create(
        self, info: Info, input: SavedSearchCreateInput
    ) -> SavedSearchPayload:
        ctx = info.context
        fields = await _validated_filter_json_to_store(
            info, value_or_none(input.filter), value_or_none(input.query), ()
        )
        conditions = _conditions_from_json(info, fields)
        search_id = await saved_searches.create_saved_search(ctx, input.name, fields, conditions)
        row = await ctx.load(saved_searches.load_own_saved_searches_by_id, search_id)
        return SavedSearchPayload(saved_search=SavedSearch.from_row_or_none(row))

    @mutation(
        "Changes saved searches of the signed-in user, all or none. A new filter can be given for "
        "several saved searches, a new name only for one. Both can be given together. `filter` "
        "and `query` replace the stored filter; if both are given, a message must match both. "
        "CONFLICT if another saved search of the user has the name, in any case. VALIDATION if a "
        "filter has a condition `text`, `body` or `header`, or a mailbox that the user does not "
        "own. UNAVAILABLE if the filter searches for words while more than 5,000 messages of the "
        "user are not indexed yet. LIMIT_REACHED for more than 1,000 references (by default), or "
        "for a filter of more than 16,384 characters as JSON.",
        scope=Scope.MAIL,
    )
    async def saved_search_update(
        self, info: Info, input: SavedSearchUpdateInput
    ) -> SavedSearchesPayload:
        ctx = info.context
        search_ids = await _resolve_saved_search_ids_or_raise(info, input.saved_searches)
        fields = conditions = None
        if input.set.filter or input.set.query:
            fields = await _validated_filter_json_to_store(
                info, maybe_value(input.set.filter), maybe_value(input.set.query), ("set",)
            )
            conditions = _conditions_from_json(info, fields)
        change = SavedSearchChange(maybe_value(input.set.name), fields, conditions)
        await saved_searches.update_saved_searches(ctx, search_ids, change)
        rows = await ctx.load_many(saved_searches.load_own_saved_searches_by_id, search_ids)
        return SavedSearchesPayload(
            saved_searches=[SavedSearch.from_row(row) for row in rows if row]
        )

    @mutation(
        "Deletes saved searches of the signed-in user, all or none. The messages that they match "
        "are kept. LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.MAIL,
    )
    async def saved_search_delete(self, info: Info, input: SavedSearchDeleteInput) -> DeletePayload:
        search_ids = await _resolve_saved_search_ids_or_raise(info, input.saved_searches)
        await saved_searches.delete_saved_searches(info.context, search_ids)
        return DeletePayload.of_keys("SavedSearch", search_ids)


async def _resolve_saved_search_ids_or_raise(info: Info, refs: list[SavedSearchRef]) -> list[int]:
    """Return the row IDs of saved searches, in the order of the references."""
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        "savedSearches",
        name_field="name",
        load_ids=saved_searches.load_own_saved_search_ids_by_name,
    )


async def _validated_filter_json_to_store(
    info: Info, message_filter: MessageFilter | None, query: str | None, path: Sequence[str]
) -> dict[str, Any]:
    """Return the filter to store, in JSON: both conditions if filter and query are given.

    Raises InvalidInput if neither is given, if `query` is not valid, or for a condition that a
    saved search can't have. `path` is the path of the input that has them.
    """
    now = info.context.environment.now()
    query_fields = fields_from_valid_query(query, now, [*path, "query"]) if query else {}
    fields = json_from_filter(message_filter, now) if message_filter else {}
    for name, part in (("query", query_fields), ("filter", fields)):
        await saved_searches.require_storable_conditions(
            info.context, _conditions_from_json(info, part), path=[*path, name]
        )
    combined = (
        {"and": [query_fields, fields]} if query_fields and fields else query_fields or fields
    )
    if not combined:
        text = "`filter` or `query` is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=[*path, "filter"])
    return combined


@strawberry.type
class SavedSearchSubscription:
    @subscription(
        "Returns a saved search with its message counts: at once, and again when the saved search "
        "or a count changes. Results come at most once a second, and less often if counting takes "
        "long. Ends when the saved search is deleted. A saved search that the signed-in user does "
        "not have is the error NOT_FOUND.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def saved_search_counters(
        self,
        info: Info,
        saved_search: Annotated[
            SavedSearchRef, strawberry.argument(description="Saved search to follow.")
        ],
    ) -> AsyncIterator[SavedSearch]:
        key = await resolve_id_from_ref_or_raise(
            info,
            saved_search,
            "savedSearch",
            name_field="name",
            load_ids=saved_searches.load_own_saved_search_ids_by_name,
        )
        results = saved_searches.follow_saved_search(
            info.context, key, lambda fields: _conditions_from_json(info, fields)
        )
        async for row, counted in results:
            search = SavedSearch.from_row(row)
            vars(search)["counted"] = counted
            yield search
