"""GraphQL types and the query of cached values and pending writes."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.sessions.types import ProcessListSource
from graph.types.connections import Connection, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View
from graph.types.references import (
    UserSelection,
    optional_tuple,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.row_mapping import lazy_view_factory, link, objects_from_rows_with_links
from graph.types.scalars import ByteSize
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.cache import listing
from resolvers.cache.entries import CacheKind
from resolvers.cache.listing import CacheConditions, CacheEntryOrder
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

CACHE_COST = 50  # all processes answer
UNRESPONSIVE_NODES_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer in time. Empty if all processes "
    "answered."
)


@strawberry.type(
    description="Cached value of a process or node, or writes that a process has not yet written "
    "to the database.",
    directives=[Auth(role=Role.ADMIN)],
)
class CacheEntry(View):
    name: str = attribute_field(
        "Name of the entry. BLOB: path of the object in its object store. DNS_ANSWER: the query. "
        "Other kinds: a fixed text, such as `password check`. It never contains a secret or text "
        "of a message."
    )
    kind: CacheKind = attribute_field(
        "Kind of the cached value, or of the writes that are pending."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whom a credential, a password check or pending writes belong to. Null: "
        "the entry belongs to no user, or it is an object or a parsed message, which "
        "several users can share.",
    )
    size: ByteSize = attribute_field(
        "Size of the entry in bytes. It is exact for objects and DNS answers, and estimated for "
        "others."
    )
    last_used_at: datetime = attribute_field(
        "Time when a cached value was last used. Of pending writes, it is the time of the latest, "
        "or the present time for LOG_ENTRY and MESSAGE_STEP. For objects it is up to a minute old."
    )
    dirty: bool = attribute_field(
        "True if the entry is a group of pending writes: they are lost if the process crashes."
    )
    pending_count: int = attribute_field(
        "Number of pending writes of the entry. 0: it is a cached value."
    )
    node: str = attribute_field("Name (`host:port`) of the node that has the entry.")
    pid: int | None = attribute_field(
        "Process ID of the process that has the entry. Null: all processes of the node share it."
    )


@strawberry.type(description="A page of a list of cache entries.")
class CacheEntryConnection(Connection[CacheEntry]):
    unresponsive_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) with a process that did not answer within a second. Their entries "
        "are missing. Empty if the list is complete."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **Connection.derived_fields,
        "unresponsive_nodes": DerivedField((), lambda paged: list(paged.unresponsive_nodes)),
    }


@strawberry.input(description="Conditions on cache entries. All must hold.")
class CacheFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Returns only entries of these users: their credentials, password checks and pending "
        "writes, their parsed messages, and objects that their messages, files or exports have.",
        default=UNSET,
    )
    kinds: list[CacheKind] | None = attribute_field(
        "Returns only entries of one of these kinds. An empty list returns no entry.", default=UNSET
    )
    dirty: bool | None = attribute_field(
        "True returns only pending writes, false only cached values.", default=UNSET
    )

    def to_conditions(self) -> CacheConditions:
        """Return the conditions for the resolvers. Raises InvalidInput if an ID is malformed."""
        users = value_or_none(self.users)
        return CacheConditions(
            user_selector_from_selection(users, path="filter") if users else None,
            optional_tuple(self.kinds),
            value_or_none(self.dirty),
        )


@strawberry.type
class CacheQuery:
    @query(
        "Returns the cached values and pending writes of all processes and nodes. Values are "
        "objects in blob caches, credentials, password checks, DNS answers and parsed messages. "
        "Pending writes are rows that are collected before they are written.",
        role=Role.ADMIN,
        scope=Scope.READ,
        cost=CACHE_COST,
    )
    async def cache_entries(
        self,
        info: Info,
        filter: CacheFilter | None = UNSET,
        order_by: CacheEntryOrder = CacheEntryOrder.LAST_USED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> CacheEntryConnection:
        given_filter = value_or_none(filter)
        conditions = given_filter.to_conditions() if given_filter else CacheConditions()
        narrowing = None if conditions == CacheConditions() else conditions
        ordering = ordering_name(f"cache-entries-{order_by}", narrowing)
        requested_page = page_request(ordering, first, after, last, before)
        result = await listing.read_cache_entry_page(
            info.context, conditions, requested_page, order_by
        )

        async def return_total_count() -> int:
            return result.total_count

        return CacheEntryConnection.from_row(
            ProcessListSource(
                result.page,
                await objects_from_rows_with_links(info, CacheEntry, result.page.rows),
                lambda row: listing.LIST_ORDERS[order_by].cursor_of_row(row, ordering),
                return_total_count,
                unresponsive_nodes=result.unresponsive_nodes,
            )
        )
