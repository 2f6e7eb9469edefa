"""Queries and subscription of usage counters and statistics."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Any

import strawberry
from strawberry import UNSET

from graph.metrics.types import MetricFilter, MetricSet, MetricSetConnection, Statistics
from graph.sessions.types import SESSION_COST, ProcessListSource
from graph.types import global_ids
from graph.types.connections import page_request
from graph.types.fields import Info, query, subscription
from graph.types.object_access import DOMAINS
from graph.types.references import (
    DomainRef,
    domain_selector_from_ref,
    optional_tuple,
    value_or_none,
)
from graph.types.row_mapping import objects_from_rows_with_links
from graph.types.scalars import Duration
from models.metrics.names import MetricName, MetricSetKind, StatisticName
from models.observability.metrics import OTHER
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.metrics import live_metrics, loaders
from resolvers.metrics import statistics as statistics_reader
from resolvers.metrics.key_references import resolve_metric_key
from resolvers.metrics.loaders import MetricConditions
from resolvers.metrics.set_orders import MetricSetOrder
from resolvers.metrics.statistics import StatisticsRequest, require_visible_domain_or_platform_id
from resolvers.metrics.validation import require_interval, require_key, require_names

READ_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.READ}
DEFAULT_INTERVAL = timedelta(seconds=5)
DEFAULT_STEP = timedelta(hours=1)


async def _resolve_valid_conditions_or_raise(
    info: Info, metric_type: MetricSetKind, metric_filter: MetricFilter | None
) -> MetricConditions:
    """Convert the filter to conditions of the resolvers. Raises InvalidInput for bad values."""
    given_filter = value_or_none(metric_filter)
    if given_filter is None:
        return MetricConditions(metric_type)
    names = optional_tuple(given_filter.names)
    require_names(names, ["filter", "names"])
    key = value_or_none(given_filter.key)
    require_key(key)
    if key is not None and metric_type is MetricSetKind.SESSION and key != OTHER:
        key = str(global_ids.decode("Session", key, path=("filter", "key")))
    return MetricConditions(
        metric_type,
        None if key is None else await resolve_metric_key(info.context, metric_type, key),
        names,
        value_or_none(given_filter.updated_since),
    )


@strawberry.type
class MetricQuery:
    @query(
        "Returns sets of usage counters, summed over all processes and nodes. They count in "
        "memory since the last `metricsReset`, and at the earliest since the start of each "
        "process. For series of values over time see `statistics`. If `orderBy` names a counter, "
        "a set whose value changes between two pages can be on both of them, or on none. A "
        "counter that sets of this `type` don't have is an error there.",
        cost=SESSION_COST,
        **READ_GUARD,
    )
    async def metrics(
        self,
        info: Info,
        type: Annotated[
            MetricSetKind,
            strawberry.argument(
                description="Kind of the returned sets: one for each user, each domain, or another "
                "kind. Default: GLOBAL, which is one set for the platform."
            ),
        ] = MetricSetKind.GLOBAL,
        filter: MetricFilter | None = UNSET,
        order_by: MetricSetOrder = MetricSetOrder.KEY_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MetricSetConnection:
        conditions = await _resolve_valid_conditions_or_raise(info, type, filter)
        ordering = ordering_name(f"metrics-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        result = await loaders.read_metric_set_page(
            info.context, conditions, requested_page, order_by
        )
        return MetricSetConnection.from_row(
            ProcessListSource(
                result.page,
                await objects_from_rows_with_links(info, MetricSet, result.page.rows),
                lambda row: row.cursor(ordering),
                lambda: loaders.count_metric_sets(info.context, conditions),
                unresponsive_nodes=result.unresponsive_nodes,
            )
        )

    @query(
        "Returns series of statistics for charts, of the platform or of one domain. Values of "
        "steps shorter than PT1H are kept for 14 days, those of other steps for 400 days. The "
        "last step contains what was counted up to now. If a process crashes, its counts of the "
        "last minute can be missing. A DOMAIN_ADMIN must name a domain (else FORBIDDEN). A domain "
        "that the caller doesn't administer is NOT_FOUND.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
        cost=SESSION_COST,
    )
    async def statistics(
        self,
        info: Info,
        names: Annotated[
            list[StatisticName],
            strawberry.argument(
                description="Statistics to return, each once, 1 to 20. A repeated name is an error."
            ),
        ],
        since: Annotated[
            datetime,
            strawberry.argument(
                description="Start of the first step. It is rounded down to a multiple of `step` "
                "since 1970 in UTC.",
            ),
        ],
        before: Annotated[
            datetime | None,
            strawberry.argument(
                description=(
                    "End of the last step, rounded up to a multiple of `step` since 1970 in UTC. "
                    "It must be after `since`. A series has at most 2,000 points; more are an "
                    "error. Default: now."
                )
            ),
        ] = UNSET,
        step: Annotated[
            Duration | None,
            strawberry.argument(
                description=(
                    "Length of each step, from PT5M to P400D: a multiple of PT5M, above PT1H a "
                    "multiple of PT1H. Default: PT1H. Counts are added up over the step. A sampled "
                    "value, such as the used storage, is the highest one of the step."
                )
            ),
        ] = UNSET,
        domain: Annotated[
            DomainRef | None,
            strawberry.argument(
                description="Domain whose statistics are returned. Default: the whole platform, "
                "for an ADMIN."
            ),
        ] = UNSET,
    ) -> Statistics:
        ref, given_step = value_or_none(domain), value_or_none(step)
        request = StatisticsRequest(
            tuple(names),
            since,
            value_or_none(before) or info.context.environment.now(),
            DEFAULT_STEP if given_step is None else given_step,
            await require_visible_domain_or_platform_id(
                info.context, domain_selector_from_ref(ref, path="domain") if ref else None
            ),
        )
        return Statistics.from_statistics_row(
            await statistics_reader.read_statistics(info.context, request)
        )


@strawberry.type
class MetricSubscription:
    @subscription(
        "Streams the usage counters of the whole platform, summed over all processes and nodes: "
        "at once, and after each interval. Counts of a process that does not answer within a "
        "second are missing.",
        **READ_GUARD,
    )
    async def metrics(
        self,
        info: Info,
        names: Annotated[
            list[MetricName] | None,
            strawberry.argument(
                description="Counters to return, 1 to 100. Default: all. An empty list is an error."
            ),
        ] = UNSET,
        interval: Annotated[
            Duration | None,
            strawberry.argument(
                description="Time between two results, from PT1S to PT5M. Default: PT5S."
            ),
        ] = UNSET,
    ) -> AsyncIterator[MetricSet]:
        chosen = optional_tuple(names)
        require_names(chosen, ["names"])
        pause = interval if isinstance(interval, timedelta) else DEFAULT_INTERVAL
        require_interval(pause)
        async for row in live_metrics.follow_platform_metrics(info.context, chosen, pause):
            yield MetricSet.from_metric_row(row)
