"""GraphQL types, mutation and subscription of saved searches."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.filter_inputs import MessageFilter, MessageOrder, Wanted, filter_of
from graph.messages.types import MessageConnection, message_page
from graph.search.queries import fields_of
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, subscription
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.row_mapping import Shape, identified
from models.errors import Invalid
from models.users.roles import Scope
from resolvers.access import own
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.search import saved_searches, search_scope
from resolvers.search.query_parser import understood
from resolvers.search.query_printer import written


def _meant(info: Info, fields: Mapping[str, Any]) -> MessageWhere:
    """Convert a filter in JSON to conditions of the resolvers. Raises Invalid."""
    return filter_of(fields).where(info)


@strawberry.type(
    description="A search that is kept: a virtual folder.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class SavedSearch(Shape):
    name: str = leaf("The same in any case.")
    filter: JSON = leaf("MessageFilter as JSON.")

    batch = staticmethod(saved_searches.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("SavedSearch")}

    @field("The filter in its text form.", "filter")
    def query(self, info: Info) -> str:
        return written(self.row.filter, info.context.world.now())

    @field("Unread messages it finds now.", "filter", "user_id", cost=20)
    async def unseen(self, info: Info) -> int:
        return await self._count(info, unseen=True)

    @field("Messages it finds now.", "filter", "user_id", cost=20)
    async def total(self, info: Info) -> int:
        return await self._count(info)

    async def _count(self, info: Info, *, unseen: bool = False) -> int:
        """Count the messages that the search finds, or only the unread ones."""
        if counted := vars(self).get("counted"):
            return int(counted.unseen if unseen else counted.total)
        where = _meant(info, self.row.filter)
        page_key = saved_searches.listing(self.row.user_id, where, unseen=unseen)
        return await info.context.load(message_loaders.counts, page_key)

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
        request = Wanted(filter_of(self.row.filter), order_by, (first, after, last, before))
        return await message_page(info, request, users=[self.row.user_id])


@strawberry.input(description="Input of savedSearchSet: a filter, a query, or both.")
class SavedSearchSetInput(Options):
    name: str = leaf("At most 128 characters; a search of this name is replaced.")
    filter: MessageFilter | None = leaf(
        "What it finds, without text, body and header.", default=UNSET
    )
    query: str | None = leaf("The same in text form.", default=UNSET)
    delete: bool = leaf("Keep it no longer.", default=False)


@strawberry.type(description="Answer of savedSearchSet.")
class SavedSearchPayload(MutationPayload):
    saved_searches: list[SavedSearch] = leaf("All there are now, by name.", default_factory=list)


@strawberry.type
class SavedSearchMutation:
    @mutation("Keeps a search under a name, or keeps it no longer.", scope=Scope.MAIL)
    async def saved_search_set(self, info: Info, input: SavedSearchSetInput) -> SavedSearchPayload:
        ctx = info.context
        if input.delete:
            if input.filter or input.query:
                text = "what is deleted finds nothing"
                raise Invalid(text, constraint="exclusive", path=["delete"])
            await saved_searches.remove(ctx, input.name)
        else:
            fields = _asked(info, input)
            where = _meant(info, fields)
            await search_scope.check_places(ctx, where, [own(ctx)])
            await saved_searches.keep(ctx, input.name, fields, where)
        rows = await ctx.load(saved_searches.of_users, own(ctx))
        return SavedSearchPayload(saved_searches=[SavedSearch.of(row) for row in rows])


def _asked(info: Info, input: SavedSearchSetInput) -> dict[str, Any]:
    """Return the filter to store, in JSON: both conditions if `filter` and `query` are given.

    Raises Invalid if neither is given or `query` is not valid.
    """
    query_fields = understood(input.query, info.context.world.now()) if input.query else {}
    fields = fields_of(input.filter, info.context.world.now()) if input.filter else {}
    combined = (
        {"and": [query_fields, fields]} if query_fields and fields else query_fields or fields
    )
    if not combined:
        text = "say what it finds: a filter or a query"
        raise Invalid(text, constraint="required", path=["filter"])
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
        results = saved_searches.follow(info.context, key, lambda fields: _meant(info, fields))
        async for row, counted in results:
            search = SavedSearch.of(row)
            vars(search)["counted"] = counted
            yield search
