"""GraphQL types, mutations and subscription of saved searches."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import (
    MessageFilter,
    MessageListRequest,
    MessageOrder,
    filter_from_json,
)
from graph.messages.types import MessageConnection, load_message_page
from graph.search.queries import json_from_filter
from graph.types import global_ids
from graph.types.connections import PageArguments
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, load_id_from_ref, load_ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from models.errors import InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches, search_scope
from resolvers.search.query_parser import fields_from_valid_query
from resolvers.search.query_printer import query_from_fields
from resolvers.search.saved_searches import SavedSearchChange


def _conditions_from_json(info: Info, fields: Mapping[str, Any]) -> MessageConditions:
    """Convert a filter in JSON to conditions of the resolvers. Raises Invalid."""
    return filter_from_json(fields).to_conditions(info)


@strawberry.type(
    description="Saved search: a named filter of messages, shown as a virtual folder.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class SavedSearch(NodeView):
    name: str = attribute_field("Name of the saved search, unique in any case.")
    filter: JSON = attribute_field("Filter as JSON, in the form of the input `MessageFilter`.")

    load_batch = staticmethod(saved_searches.load_own_saved_searches_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SavedSearch")}

    @field("Filter as search text, as in `messages(query:)`.", "filter")
    def query(self, info: Info) -> str:
        return query_from_fields(self.row.filter, info.context.environment.now())

    @field("Number of unread messages that the search matches.", "filter", "user_id", cost=20)
    async def unseen_count(self, info: Info) -> int:
        return await self._count_messages(info, only_unseen=True)

    @field("Number of messages that the search matches.", "filter", "user_id", cost=20)
    async def message_count(self, info: Info) -> int:
        return await self._count_messages(info)

    async def _count_messages(self, info: Info, *, only_unseen: bool = False) -> int:
        """Count the messages that the search finds, or only the unread ones."""
        if counted := vars(self).get("counted"):
            return int(counted.unseen if only_unseen else counted.total)
        conditions = _conditions_from_json(info, self.row.filter)
        page_key = saved_searches.listing_for_count(
            self.row.user_id, conditions, only_unseen=only_unseen
        )
        return await info.context.load(message_loaders.count_listings, page_key)

    @field("Messages that the search matches.", "filter", "user_id")
    async def messages(
        self,
        info: Info,
        order_by: MessageOrder = MessageOrder.RECEIVED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(
            filter_from_json(self.row.filter), order_by, PageArguments(first, after, last, before)
        )
        return await load_message_page(info, request, user_ids=[self.row.user_id])


@strawberry.input(one_of=True, description="Reference to one saved search of the signed-in user.")
class SavedSearchRef(ObjectRef):
    name: strawberry.Maybe[str] = attribute_field("Name of the saved search, in any case.")


FILTER_DESCRIPTION = (
    "Messages that the search matches. Conditions on text, body and header are an error. With "
    "`query`, both must match."
)
QUERY_DESCRIPTION = "Search text, as in `messages(query:)`. With `filter`, both must match."


@strawberry.input(description="Input of savedSearchCreate. `filter`, `query` or both are required.")
class SavedSearchCreateInput(Options):
    name: str = attribute_field(
        "Name of the saved search, at most 128 characters, unique in any case."
    )
    filter: MessageFilter | None = attribute_field(FILTER_DESCRIPTION, default=UNSET)
    query: str | None = attribute_field(QUERY_DESCRIPTION, default=UNSET)


@strawberry.input(
    description="New values of saved searches. An absent field leaves the value unchanged. "
    "`filter` and `query` together replace the stored filter."
)
class SavedSearchPatch:
    name: strawberry.Maybe[str] = attribute_field(
        "Name of the saved search, at most 128 characters, unique in any case. Only for one saved "
        "search."
    )
    filter: strawberry.Maybe[MessageFilter] = attribute_field(FILTER_DESCRIPTION)
    query: strawberry.Maybe[str] = attribute_field(QUERY_DESCRIPTION)


@strawberry.input(description="Input of savedSearchUpdate.")
class SavedSearchUpdateInput(Options):
    saved_searches: list[SavedSearchRef] = attribute_field("Saved searches to change.")
    set: SavedSearchPatch = attribute_field("New values for all of the saved searches.")


@strawberry.input(description="Input of savedSearchDelete.")
class SavedSearchDeleteInput(Options):
    saved_searches: list[SavedSearchRef] = attribute_field("Saved searches to delete.")


@strawberry.type(description="Payload of savedSearchCreate.")
class SavedSearchPayload(MutationPayload):
    saved_search: SavedSearch | None = attribute_field("Created saved search.", default=None)


@strawberry.type(description="Payload of savedSearchUpdate.")
class SavedSearchesPayload(MutationPayload):
    saved_searches: list[SavedSearch] = attribute_field(
        "Saved searches in the order of the references.", default_factory=list
    )


@strawberry.type
class SavedSearchMutation:
    @mutation(
        "Saves a search under a name. An account has at most 100 saved searches.", scope=Scope.MAIL
    )
    async def saved_search_create(
        self, info: Info, input: SavedSearchCreateInput
    ) -> SavedSearchPayload:
        ctx = info.context
        fields = _filter_json(info, value_or_none(input.filter), value_or_none(input.query), ())
        conditions = await _valid_conditions(info, fields)
        search_id = await saved_searches.create_saved_search(ctx, input.name, fields, conditions)
        row = await ctx.load(saved_searches.load_own_saved_searches_by_id, search_id)
        return SavedSearchPayload(saved_search=SavedSearch.from_row_or_none(row))

    @mutation("Updates the name or filter of saved searches, all or none.", scope=Scope.MAIL)
    async def saved_search_update(
        self, info: Info, input: SavedSearchUpdateInput
    ) -> SavedSearchesPayload:
        ctx = info.context
        search_ids = await _ids_from_refs(info, input.saved_searches)
        fields = conditions = None
        if input.set.filter or input.set.query:
            fields = _filter_json(
                info, maybe_value(input.set.filter), maybe_value(input.set.query), ("set",)
            )
            conditions = await _valid_conditions(info, fields)
        change = SavedSearchChange(maybe_value(input.set.name), fields, conditions)
        await saved_searches.update_saved_searches(ctx, search_ids, change)
        rows = await ctx.load_many(saved_searches.load_own_saved_searches_by_id, search_ids)
        return SavedSearchesPayload(
            saved_searches=[SavedSearch.from_row(row) for row in rows if row]
        )

    @mutation("Deletes saved searches, all or none.", scope=Scope.MAIL)
    async def saved_search_delete(self, info: Info, input: SavedSearchDeleteInput) -> DeletePayload:
        search_ids = await _ids_from_refs(info, input.saved_searches)
        await saved_searches.delete_saved_searches(info.context, search_ids)
        return DeletePayload(
            deleted_ids=[global_ids.encode("SavedSearch", search_id) for search_id in search_ids]
        )


async def _ids_from_refs(info: Info, refs: list[SavedSearchRef]) -> list[int]:
    """Return the row IDs of saved searches, in the order of the references."""
    return await load_ids_from_refs(
        info, refs, "savedSearches", name_field="name", load_ids=saved_searches.load_ids_by_name
    )


async def _valid_conditions(info: Info, fields: Mapping[str, Any]) -> MessageConditions:
    """Convert a filter in JSON to conditions. Raises InvalidInput if a mailbox doesn't exist."""
    conditions = _conditions_from_json(info, fields)
    user_ids = [require_user_id(info.context)]
    await search_scope.validate_mailboxes_of_search(info.context, conditions, user_ids)
    return conditions


def _filter_json(
    info: Info, message_filter: MessageFilter | None, query: str | None, path: Sequence[str]
) -> dict[str, Any]:
    """Return the filter to store, in JSON: both conditions if filter and query are given.

    Raises InvalidInput if neither is given or `query` is not valid. `path` is the path of the input
    that has them.
    """
    now = info.context.environment.now()
    query_fields = fields_from_valid_query(query, now, [*path, "query"]) if query else {}
    fields = json_from_filter(message_filter, now) if message_filter else {}
    combined = (
        {"and": [query_fields, fields]} if query_fields and fields else query_fields or fields
    )
    if not combined:
        text = "filter or query is required"
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=[*path, "filter"])
    return combined


@strawberry.type
class SavedSearchSubscription:
    @subscription(
        "Streams a saved search with its counters at once, and again when they change, at most "
        "once a second. It ends when the saved search is deleted.",
        scope=Scope.MAIL_READ,
    )
    async def saved_search_counters(
        self,
        info: Info,
        saved_search: Annotated[
            SavedSearchRef, strawberry.argument(description="Saved search to follow.")
        ],
    ) -> AsyncIterator[SavedSearch]:
        key = await load_id_from_ref(
            info,
            saved_search,
            "savedSearch",
            name_field="name",
            load_ids=saved_searches.load_ids_by_name,
        )
        results = saved_searches.follow_saved_search(
            info.context, key, lambda fields: _conditions_from_json(info, fields)
        )
        async for row, counted in results:
            search = SavedSearch.from_row(row)
            vars(search)["counted"] = counted
            yield search
