"""Documents of metrics and statistics, and other processes that answer for them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from models.events.wakeups import Wakeups
from models.metrics.usage_recorder import UsageRecorder
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration
from models.sessions.live_sessions import LiveSessionRegistry
from resolvers.cluster import process_requests
from resolvers.metrics.request_kinds import METRICS_REQUEST_KINDS

METRICS = """
query Metrics ($type: MetricSetKind!, $filter: MetricFilter, $orderBy: MetricSetOrder, $first: Int,
    $after: String, $last: Int, $before: String) {
  metrics(type: $type, filter: $filter, orderBy: $orderBy, first: $first, after: $after,
      last: $last, before: $before) {
    totalCount unresponsiveNodes
    pageInfo { endCursor startCursor hasNextPage hasPreviousPage }
    nodes { type key updatedAt resetAt counters { name value unit description resetAt } } } }
"""
STATISTICS = """
query Statistics ($names: [StatisticName!]!, $since: DateTime!, $before: DateTime, $step: Duration,
    $domain: DomainRef) {
  statistics(names: $names, since: $since, before: $before, step: $step, domain: $domain) {
    startsAt endsAt step unresponsiveNodes series { name points } } }
"""
METRICS_RESET = """
mutation MetricsReset ($input: MetricsResetInput!) {
  metricsReset(input: $input) {
    resetAt errors { __typename code path ... on ValidationError { constraint } } } }
"""


DocumentClient = Callable[..., Awaitable[Any]]  # runs a document and returns its data


async def list_metrics(
    client: DocumentClient, metric_type: str = "GLOBAL", **variables: Any
) -> Any:
    """Return a page of metrics."""
    return (await client(METRICS, type=metric_type, **variables))["metrics"]


async def counters_by_key(
    client: DocumentClient, metric_type: str = "GLOBAL", **variables: Any
) -> dict[str | None, dict[str, float]]:
    """Return the values of the counters of a page by key and name."""
    page = await list_metrics(client, metric_type, **({"first": 250} | variables))
    assert page["unresponsiveNodes"] == []
    return {
        node["key"]: {counter["name"]: counter["value"] for counter in node["counters"]}
        for node in page["nodes"]
    }


async def read_series(
    client: DocumentClient, *names: str, from_time: datetime, **variables: Any
) -> dict[str, list[float | None]]:
    """Return series of statistics by name."""
    variables = {"since": from_time.isoformat(), "names": list(names), **variables}
    statistics = (await client(STATISTICS, **variables))["statistics"]
    assert statistics["unresponsiveNodes"] == []
    return {series["name"]: series["points"] for series in statistics["series"]}


@asynccontextmanager
async def other_process(
    environment: Environment, name: str = "other"
) -> AsyncGenerator[Environment]:
    """Yield the environment of another process on the same store, which answers for its metrics."""
    environment.process.answers_requests = True
    await leases.ensure_process_registered(environment)
    other = replace(
        environment,
        process=ProcessRegistration(name=name, answers_requests=True),
        wakeups=Wakeups(),
        live_sessions=LiveSessionRegistry(),
        usage=UsageRecorder(),
    )
    await leases.ensure_process_registered(other)
    task = asyncio.create_task(
        process_requests.answer_requests_until_cancelled(other, METRICS_REQUEST_KINDS)
    )
    try:
        yield other
    finally:
        task.cancel()
        await asyncio.wait([task])
