"""GraphQL types, mutation and subscription of saved searches."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

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
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.row_mapping import NodeView, global_id_field
from models.errors import InvalidInput
from models.users.roles import Scope
from resolvers.access import require_user_id
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches, search_scope
from resolvers.search.query_parser import fields_from_valid_query
from resolvers.search.query_printer import query_from_fields


def _conditions_from_json(info: Info, fields: Mapping[str, Any]) -> MessageConditions:
    """Convert a filter in JSON to conditions of the resolvers. Raises Invalid."""
    return filter_from_json(fields).to_conditions(info)


@strawberry.type(
    description="A search that is kept: a virtual folder.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class SavedSearch(NodeView):
    name: str = attribute_field("The same in any case.")
    filter: JSON = attribute_field("MessageFilter as JSON.")

    load_batch = staticmethod(saved_searches.load_own_saved_searches_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SavedSearch")}

    @field("The filter in its text form.", "filter")
    def query(self, info: Info) -> str:
        return query_from_fields(self.row.filter, info.context.environment.now())

    @field("Unread messages it finds now.", "filter", "user_id", cost=20)
    async def unseen(self, info: Info) -> int:
        return await self._count_messages(info, only_unseen=True)

    @field("Messages it finds now.", "filter", "user_id", cost=20)
    async def total(self, info: Info) -> int:
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

    @field("What it finds now.", "filter", "user_id")
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


@strawberry.input(description="Input of savedSearchSet: a filter, a query, or both.")
class SavedSearchSetInput(Options):
    name: str = attribute_field("At most 128 characters; a search of this name is replaced.")
    filter: MessageFilter | None = attribute_field(
        "What it finds, without text, body and header.", default=UNSET
    )
    query: str | None = attribute_field("The same in text form.", default=UNSET)
    delete: bool = attribute_field("Keep it no longer.", default=False)


@strawberry.type(description="Answer of savedSearchSet.")
class SavedSearchPayload(MutationPayload):
    saved_searches: list[SavedSearch] = attribute_field(
        "All there are now, by name.", default_factory=list
    )


@strawberry.type
class SavedSearchMutation:
    @mutation("Keeps a search under a name, or keeps it no longer.", scope=Scope.MAIL)
    async def saved_search_set(self, info: Info, input: SavedSearchSetInput) -> SavedSearchPayload:
        ctx = info.context
        if input.delete:
            if input.filter or input.query:
                text = "what is deleted finds nothing"
                raise InvalidInput(text, constraint="exclusive", path=["delete"])
            await saved_searches.delete_saved_search(ctx, input.name)
        else:
            fields = _filter_json_from_input(info, input)
            conditions = _conditions_from_json(info, fields)
            await search_scope.validate_mailboxes_of_search(ctx, conditions, [require_user_id(ctx)])
            await saved_searches.save_search(ctx, input.name, fields, conditions)
        rows = await ctx.load(
            saved_searches.load_visible_saved_searches_by_user, require_user_id(ctx)
        )
        return SavedSearchPayload(saved_searches=[SavedSearch.from_row(row) for row in rows])


def _filter_json_from_input(info: Info, input: SavedSearchSetInput) -> dict[str, Any]:
    """Return the filter to store, in JSON: both conditions if `filter` and `query` are given.

    Raises Invalid if neither is given or `query` is not valid.
    """
    query_fields = (
        fields_from_valid_query(input.query, info.context.environment.now()) if input.query else {}
    )
    fields = json_from_filter(input.filter, info.context.environment.now()) if input.filter else {}
    combined = (
        {"and": [query_fields, fields]} if query_fields and fields else query_fields or fields
    )
    if not combined:
        text = "say what it finds: a filter or a query"
        raise InvalidInput(text, constraint="required", path=["filter"])
    return combined


@strawberry.type
class SavedSearchSubscription:
    @subscription(
        "A search with its counts, now and whenever they have changed; at most once a second. "
        "It ends when the search is kept no longer.",
        scope=Scope.MAIL_READ,
    )
    async def saved_search(self, info: Info, id: strawberry.ID) -> AsyncIterator[SavedSearch]:
        key = global_ids.decode("SavedSearch", id)
        results = saved_searches.follow_saved_search(
            info.context, key, lambda fields: _conditions_from_json(info, fields)
        )
        async for row, counted in results:
            search = SavedSearch.from_row(row)
            vars(search)["counted"] = counted
            yield search
