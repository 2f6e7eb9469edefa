"""Queries and subscription of the health of servers."""

from collections.abc import AsyncIterator
from typing import Any

import strawberry
from strawberry import UNSET

from graph.health.types import (
    Component,
    ComponentConnection,
    ComponentFilter,
    Health,
    StorageReport,
)
from graph.sessions.types import SESSION_COST, ProcessListSource
from graph.types.connections import page_request
from graph.types.fields import Info, query, subscription
from graph.types.references import value_or_none
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.health import events, loaders, storage
from resolvers.health.loaders import ComponentConditions, ComponentOrder

READ_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.READ}


@strawberry.type
class HealthQuery:
    @query(
        "Returns the health of the server process that answers. Load balancers should ask "
        "`/health/ready` instead.",
        role=Role.PUBLIC,
        cost=SESSION_COST,
    )
    async def health(self, info: Info) -> Health | None:
        return Health.from_row(await loaders.probe_dependencies_and_read_health(info.context))

    @query(
        "Returns the components of all processes and nodes: listeners, background workers, and "
        "the services that each process depends on. The state of a service is the result of its "
        "latest probe. Processes repeat the probes while clients ask for components. A request "
        "waits at most 250 milliseconds for new results. A service that has not answered its "
        "probe by then is STARTING or FAILED.",
        **READ_GUARD,
        cost=SESSION_COST,
    )
    async def components(
        self,
        info: Info,
        filter: ComponentFilter | None = UNSET,
        order_by: ComponentOrder = ComponentOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> ComponentConnection:
        given_filter = value_or_none(filter)
        conditions = given_filter.to_conditions() if given_filter else ComponentConditions()
        ordering = ordering_name(
            f"components-{order_by}", None if conditions == ComponentConditions() else conditions
        )
        requested_page = page_request(ordering, first, after, last, before)
        result = await loaders.read_component_page(
            info.context, conditions, requested_page, order_by
        )

        async def return_total_count() -> int:
            return result.total_count

        return ComponentConnection.from_row(
            ProcessListSource(
                result.page,
                [Component.from_row(row) for row in result.page.rows],
                lambda row: loaders.cursor_of_component(row, ordering),
                return_total_count,
                unresponsive_nodes=result.unresponsive_nodes,
            )
        )

    @query(
        "Returns the stores of all nodes: the size in bytes of the database and the logs, and the "
        "free space of the disks. Null: the size of folders and buckets, and the free space of "
        "PostgreSQL and buckets. The values come from counters of the stores and file systems, so "
        "no stored data is scanned.",
        **READ_GUARD,
        cost=SESSION_COST,
    )
    async def storage_status(self, info: Info) -> StorageReport:
        return StorageReport.from_row(await storage.read_storage(info.context))


@strawberry.type
class HealthSubscription:
    @subscription(
        "Streams components of all nodes when their state changes, within about a second. It does "
        "not begin with the present states. A component of a new process is a change, and a "
        "component of an ended process is STOPPED. A client that is more than 1,000 changes "
        "behind misses the oldest.",
        **READ_GUARD,
    )
    async def health(self, info: Info) -> AsyncIterator[Component]:
        async for row in events.follow_component_changes(info.context):
            yield Component.from_row(row)
