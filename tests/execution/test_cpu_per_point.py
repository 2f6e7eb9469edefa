"""The cost of a request limits its CPU time, also if its arguments are large.

A document with many aliases runs for each argument that is a text, a list or an input. Mutations
run with `validateOnly`. A field that fails here needs a higher `cost`, or less work.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from graphql import is_input_object_type

from graph.app import create_app
from graph.http.admission_control import AdmissionControl
from graph.http.graphql_endpoint import EndpointSettings
from graph.http.rate_budgets import PointRates, RateBudgets
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.lists.input_locations import schema
from tests.support.lists.large_inputs import (
    LONG_LISTS,
    LONG_TEXTS,
    OBJECT_QUERIES,
    SUBSCRIPTION_INPUTS,
    LargeRequest,
    ValueSize,
    input_types_in_values,
    large_requests,
)
from tests.support.operations.platform.legal_hold_operations import start_legal_hold
from tests.support.operations.resource_operations import create_resource
from tests.support.servers.webhook_receiver import create_webhook

RUN_COUNT = 2  # the first run reads the document
MAX_RATIO = 20  # of the CPU time per point of a request to the usual one; the highest is about 13
LARGE_SHARE = 0.25  # of the highest cost, from which a request is large


@dataclass(frozen=True)
class MeasuredRequest:
    """A request with its CPU time, and the client that may use the field."""

    request: LargeRequest
    client: GraphQLClient
    points: int
    seconds: float  # of CPU time: the smallest of the runs

    @property
    def seconds_per_point(self) -> float:
        """The CPU time for each point that the request costs."""
        return self.seconds / self.points

    @property
    def is_large(self) -> bool:
        """True if the arguments cost much, so that the fixed work of a request counts little."""
        return self.points >= LARGE_SHARE * self.request.max_cost


async def run_and_measure(
    client: GraphQLClient, request: LargeRequest
) -> tuple[float, dict[str, Any]]:
    """Run a request once. Return its CPU time in seconds, and the response."""
    start = time.process_time()
    response = await client.execute(request.document, **request.variables)
    return time.process_time() - start, response


async def measure(clients: Sequence[GraphQLClient], request: LargeRequest) -> MeasuredRequest:
    """Measure a request by the first client that may use the field, else by the last one."""
    client, runs, response = clients[0], list[float](), dict[str, Any]()
    for client in clients:
        seconds, response = await run_and_measure(client, request)
        runs = [seconds]
        if "FORBIDDEN" not in str(response):
            break
    while len(runs) < RUN_COUNT:
        seconds, response = await run_and_measure(client, request)
        runs.append(seconds)
    points: int = response["extensions"]["cost"]["requested"]
    return MeasuredRequest(request, client, points, min(runs))


def usual_seconds_per_point(measured: Sequence[MeasuredRequest]) -> float:
    """Return the median of all requests, or of the large ones if it is higher.

    Most requests with one long text are refused at once, and cost little CPU time per point.
    """
    all_times = [each.seconds_per_point for each in measured]
    large_times = [each.seconds_per_point for each in measured if each.is_large]
    return max(median(all_times), median(large_times or all_times))


@pytest.fixture
async def http(environment: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server without rate budgets, since all requests together exceed them."""
    settings = EndpointSettings(guards=AdmissionControl(budgets=RateBudgets(PointRates(0, 0, 0))))
    app = create_app(environment, spool_folder=tmp_path, settings=settings)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


@pytest.mark.parametrize(
    ("root_types", "sizes"),
    [
        (tuple(OBJECT_QUERIES), (LONG_LISTS,)),
        (tuple(OBJECT_QUERIES), (LONG_TEXTS,)),
        (("Mutation",), (LONG_LISTS, LONG_TEXTS)),
    ],
    ids=["queries-lists", "queries-texts", "mutations"],
)
async def test_cpu_time_per_point_is_limited_for_large_arguments(
    ada: GraphQLClient,
    root: GraphQLClient,
    root_types: Sequence[str],
    sizes: Sequence[ValueSize],
) -> None:
    """The test takes at most a minute: each request runs twice, and a slow one four times."""
    await create_resource(root, "Room")
    await create_webhook(root, "https://receiver.example.net/hook")
    await start_legal_hold(root, ada)
    measured = [
        await measure([ada, root], request)
        for size in sizes
        for root_type in root_types
        for request in large_requests(root_type, size)
    ]
    limit = MAX_RATIO * usual_seconds_per_point(measured)
    too_slow = {}
    for slow in measured:
        if slow.seconds_per_point <= limit:
            continue
        again = await measure([slow.client], slow.request)  # a garbage collection may have run
        if again.seconds_per_point > limit:
            ratio = MAX_RATIO * again.seconds_per_point / limit
            too_slow[slow.request.name] = (round(ratio, 1), slow.points)
    assert not too_slow  # ratio and points by name


def test_large_values_cover_every_input_type() -> None:
    input_types = {name for name, kind in schema.type_map.items() if is_input_object_type(kind)}
    assert input_types - input_types_in_values() == SUBSCRIPTION_INPUTS
