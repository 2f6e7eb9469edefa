"""Tests of rate budgets and concurrency limits, and of the errors above them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http.admission_control import AdmissionControl
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from graph.http.rate_budgets import (
    CAPACITY_SECONDS,
    MIN_CAPACITY,
    PointRates,
    RateBudgets,
    budget_capacity,
    document_reading_points,
    min_capacity_of_viewer,
    network_key,
)
from graph.http.upload_body import UploadLimits as Uploads
from merganser.server import http_server
from merganser.server.processes.process_shares import settings_with_process_share_of_limits
from merganser.settings.settings import Settings as Operators
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.viewer import Viewer
from tests.support.case_loop import each_case
from tests.support.loop_clock import LoopClock
from tests.support.servers.live_server import wait_until
from tests.support.servers.small_schema_server import (
    authenticate_by_header,
    init_connection,
    make_environment,
    make_schema,
    open_http_client,
    read_frame,
    run_small_schema_server,
    send_frame,
    wait_for_close_code,
)
from tests.support.time_limits import HANG_SECONDS

ITEMS_QUERY = "query ($n: Int!) { items(first: $n) { nodes { name } } }"
USER_HEADERS = {"Authorization": "Bearer user"}


@dataclass
class ManualClock:
    """A clock that the test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    async with make_environment(tmp_path) as environment:
        yield environment


def make_admission_control(clock: ManualClock, **options: Any) -> AdmissionControl:
    return AdmissionControl(RateBudgets(PointRates(100, 1000, 0), clock=clock), **options)


def test_rate_budget_starts_full_and_refills() -> None:
    clock = ManualClock()
    budgets, capacity = RateBudgets(clock=clock), budget_capacity(1000)
    assert capacity == 1000 * CAPACITY_SECONDS
    assert budgets.take_points_if_enough("a", 1000, capacity) == (0, 0)
    assert budgets.take_points_if_enough("a", 1000, 500) == (0, 0.5)
    clock.now = 0.4
    assert pytest.approx((400, 0.1)) == budgets.take_points_if_enough("a", 1000, 500)
    clock.now = 0.6
    assert pytest.approx((100, 0)) == budgets.take_points_if_enough("a", 1000, 500)
    assert budgets.take_points_if_enough("b", 1000, 1) == (capacity - 1, 0)
    clock.now = 1e9
    assert budgets.take_points_if_enough("a", 1000, 0) == (capacity, 0)


def test_smallest_budget_covers_most_expensive_operation() -> None:
    assert budget_capacity(1) == MIN_CAPACITY
    assert make_schema().limits.max_cost + document_reading_points("x" * 10**6) < MIN_CAPACITY
    assert budget_capacity(PointRates().users) > make_schema().limits.max_cost_of_admins
    limits = make_schema().limits
    for role in Role:
        smallest = budget_capacity(1, min_capacity_of_viewer(Viewer(7, role)))
        assert limits.max_cost_of_role(role) + document_reading_points("x" * 10**6) < smallest


def test_limits_are_divided_between_processes() -> None:
    cases: list[int] = [2, 3, 8]
    for case in each_case(cases):
        with case as process_count:
            total_settings = Operators(cost_budget_admin=0, concurrent_operations_per_client=2)
            process_settings = settings_with_process_share_of_limits(total_settings, process_count)
            for name in (
                "http_connections",
                "http_connections_per_client",
                "subscriptions_per_user",
                "concurrent_operations",
            ):
                assert (
                    0
                    < getattr(process_settings, name) * process_count
                    <= getattr(total_settings, name)
                ), name
            for name in ("cost_budget_anonymous", "cost_budget_user"):
                assert (
                    0
                    < getattr(process_settings, name) * process_count
                    <= getattr(total_settings, name)
                ), name
            assert (
                process_settings.password_hashing_memory
                == total_settings.password_hashing_memory // process_count
            )
            assert process_settings.cost_budget_admin == 0  # unlimited
            # connections of one client can all reach the same process
            assert process_settings.concurrent_operations_per_client == 2
            assert (
                http_server.upload_limits_of_process(total_settings, process_count).memory_budget
                == Uploads().memory_budget // process_count
            )
            assert (
                http_server.upload_limits_of_process(total_settings, 100).memory_budget
                == total_settings.upload_max_size
            )
            admission_control = http_server.graphql_endpoint_settings(process_settings).guards
            assert (
                admission_control.operation_limiter.limit
                == total_settings.concurrent_operations // process_count
            )
            assert (
                admission_control.budgets.rates.users
                == total_settings.cost_budget_user // process_count
            )
            assert (
                http_server.create_connection_tracker(process_settings).limiter.limit
                == total_settings.http_connections // process_count
            )


def test_number_of_budgets_is_limited_by_least_recent_use() -> None:
    budgets = RateBudgets(clock=ManualClock(), max_budgets=3)
    for key in ("a", "b", "c", "a", "d"):
        budgets.take_points_if_enough(key, 1, 10)
    assert len(budgets) == 3
    assert budgets.take_points_if_enough("a", 1, 0) == (MIN_CAPACITY - 20, 0)
    assert budgets.take_points_if_enough("b", 1, 0) == (MIN_CAPACITY, 0)


def test_addresses_of_one_network_share_a_budget() -> None:
    cases: list[tuple[str | None, str]] = [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        (None, ""),
    ]
    for case in each_case(cases):
        with case as (address, network):
            assert network_key(address) == network


def test_rate_depends_on_role() -> None:
    rates = PointRates(1, 2, 3)
    for role, rate in (
        (Role.PUBLIC, 1),
        (Role.USER, 2),
        (Role.DOMAIN_ADMIN, 2),
        (Role.ADMIN, 3),
        (Role.ROOT, 3),
    ):
        assert rates.points_per_second_of_viewer(Viewer(7, role)) == rate


def test_concurrency_limiter_counts_total_and_per_key() -> None:
    limiter = ConcurrencyLimiter(3, 2)
    first, second, third = limiter.acquire("a"), limiter.acquire("a"), limiter.acquire("b")
    assert first
    assert second
    assert third
    assert limiter.acquire("a") is None
    assert limiter.acquire("c") is None
    assert limiter.is_full
    first.release()
    first.release()
    assert (limiter.in_use_count, limiter.count_of_key("a"), limiter.is_full) == (2, 1, False)
    assert not third.try_move_to_key("a", 1)
    assert third.try_move_to_key("a", 2)
    assert (limiter.count_of_key("a"), limiter.count_of_key("b")) == (2, 0)
    assert limiter.acquire("d", 0) is None
    assert limiter.acquire("d")
    second.release()
    third.release()
    assert limiter._counts == {"d": 1}  # noqa: SLF001 - no unused key is kept


async def post_query(http: httpx.AsyncClient, query: str, **variables: Any) -> httpx.Response:
    headers = variables.pop("headers", {})
    return await http.post(
        "/graphql", json={"query": query, "variables": variables}, headers=headers
    )


async def test_exhausted_budget_refuses_only_its_caller(environment: Environment) -> None:
    clock = ManualClock()
    endpoint = GraphqlEndpoint(
        make_schema(),
        environment,
        authenticate_by_header,
        EndpointSettings(guards=make_admission_control(clock)),
    )
    async with open_http_client(endpoint) as http:
        first = await post_query(http, ITEMS_QUERY, n=9999)
        reading_points = document_reading_points(ITEMS_QUERY)
        assert first.json()["extensions"]["cost"] == {
            "requested": 10_000,
            "maximum": 10_000,
            "available": 15_000 - reading_points,
            "restoreRate": 100,
        }
        assert (await post_query(http, ITEMS_QUERY, n=9999)).status_code == 200
        refused_response = await post_query(http, ITEMS_QUERY, n=9999)
        assert refused_response.status_code == 429  # also with application/json
        assert "data" not in refused_response.json()
        (error,) = refused_response.json()["errors"]
        retry_seconds = error["extensions"].pop("retryAfterSeconds")
        assert error["extensions"] == {"code": "RATE_LIMITED"}
        assert (
            int(refused_response.headers["retry-after"])
            == retry_seconds
            == pytest.approx(50, abs=2)
        )
        assert (
            await post_query(http, ITEMS_QUERY, n=9999, headers=USER_HEADERS)
        ).status_code == 200
        clock.now = float(retry_seconds)
        assert (await post_query(http, ITEMS_QUERY, n=9999)).status_code == 200


async def test_refused_document_costs_only_its_reading(environment: Environment) -> None:
    endpoint = GraphqlEndpoint(
        make_schema(),
        environment,
        authenticate_by_header,
        EndpointSettings(guards=make_admission_control(ManualClock())),
    )
    async with open_http_client(endpoint) as http:
        # above the cost limit
        assert (await post_query(http, ITEMS_QUERY, n=10_000)).json()["errors"]
        response = await post_query(http, ITEMS_QUERY, n=1)
        available = MIN_CAPACITY - document_reading_points(ITEMS_QUERY) - 2
        assert response.json()["extensions"]["cost"]["available"] == available


async def test_unknown_documents_are_charged_before_parsing(environment: Environment) -> None:
    schema = make_schema()
    endpoint = GraphqlEndpoint(
        schema,
        environment,
        authenticate_by_header,
        EndpointSettings(guards=make_admission_control(ManualClock())),
    )
    async with open_http_client(endpoint) as http:
        await post_query(http, "{ hello }")
        counts_before = len(schema.documents.used_once), len(schema.documents.refused)
        codes = [
            (await post_query(http, f"{{ hello #{'x' * 31_000}{number}\n }}")).status_code
            for number in range(10)
        ]
        assert codes == [200] * 6 + [429] * 4
        assert len(schema.documents.used_once) == counts_before[0] + 6
        assert (
            await http.get("/graphql", params={"query": "{ hello #" + "y" * 30_000})
        ).status_code == 429
        assert len(schema.documents.refused) == counts_before[1]
        assert (
            await post_query(http, "{ hello }")
        ).status_code == 200  # a known document costs little


async def test_websocket_and_sse_are_charged(environment: Environment) -> None:
    async with run_small_schema_server(
        environment, EndpointSettings(guards=make_admission_control(ManualClock()))
    ) as server:
        async with server.connect() as ws:
            await init_connection(ws)
            for _ in range(3):
                await send_frame(
                    ws,
                    "subscribe",
                    id="1",
                    payload={"query": ITEMS_QUERY, "variables": {"n": 9999}},
                )
                frame = await read_frame(ws)
                if frame["type"] == "next":
                    assert frame["payload"]["extensions"]["cost"]["restoreRate"] == 100
                    assert (await read_frame(ws))["type"] == "complete"
            assert frame["type"] == "error"
            assert frame["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
        body = {"query": ITEMS_QUERY, "variables": {"n": 9999}}
        events = {"Accept": "text/event-stream"}
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as http:
            text = (await http.post(server.url, json=body, headers=events)).text
        assert '"RATE_LIMITED"' in text


async def test_concurrent_operations_are_limited(environment: Environment) -> None:
    loop_clock = LoopClock()
    admission_control = make_admission_control(
        ManualClock(), operation_limiter=ConcurrencyLimiter(3, 2)
    )
    endpoint = GraphqlEndpoint(
        make_schema(deadline=10 * HANG_SECONDS),
        environment,
        authenticate_by_header,
        EndpointSettings(guards=admission_control),
    )
    async with open_http_client(endpoint) as http:
        slow_requests = [asyncio.create_task(post_query(http, "{ slow }")) for _ in range(2)]
        await wait_until(lambda: admission_control.operation_limiter.in_use_count == 2)
        refused_response = await post_query(http, "{ hello }")
        assert (refused_response.status_code, refused_response.headers["retry-after"]) == (429, "1")
        assert refused_response.json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
        slow_requests.append(
            asyncio.create_task(post_query(http, "{ slow }", headers=USER_HEADERS))
        )
        await wait_until(lambda: admission_control.operation_limiter.in_use_count == 3)
        refused_response = await post_query(http, "{ hello }", headers=USER_HEADERS)
        assert (refused_response.status_code, refused_response.headers["retry-after"]) == (503, "1")
        assert refused_response.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
        all_requests = asyncio.gather(*slow_requests)
        await loop_clock.advance_until(all_requests.done, step_seconds=HANG_SECONDS)
        await all_requests
        assert (await post_query(http, "{ hello }")).json()["data"] == {"hello": "world"}
    assert admission_control.operation_limiter.in_use_count == 0


async def test_query_is_cancelled_when_client_disconnects(environment: Environment) -> None:
    admission_control = make_admission_control(
        ManualClock(), operation_limiter=ConcurrencyLimiter(5, 5)
    )
    async with run_small_schema_server(
        environment, EndpointSettings(guards=admission_control), deadline=10 * HANG_SECONDS
    ) as server:
        body = b'{"query": "{ slow }"}'
        request_head = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        async with asyncio.timeout(HANG_SECONDS):
            while not admission_control.operation_limiter.in_use_count:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
            writer.close()
            while admission_control.operation_limiter.in_use_count:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)


async def test_sockets_of_one_user_are_limited(
    environment: Environment,
) -> None:
    admission_control = make_admission_control(
        ManualClock(), stream_limiter=ConcurrencyLimiter(100, 2)
    )
    async with run_small_schema_server(
        environment, EndpointSettings(guards=admission_control)
    ) as server:
        async with server.connect() as first_socket, server.connect() as second_socket:
            await init_connection(first_socket, {"token": "user"})
            await init_connection(second_socket, {"token": "user"})
            async with server.connect() as refused_socket:
                await send_frame(refused_socket, "connection_init", payload={"token": "user"})
                assert await wait_for_close_code(refused_socket) == 1013
            async with server.connect() as anonymous_socket:
                await init_connection(anonymous_socket)
        async with server.connect() as next_socket:
            await init_connection(next_socket, {"token": "user"})
    assert admission_control.stream_limiter.in_use_count == 0


def test_default_settings_equal_defaults_of_server() -> None:
    from_settings = http_server.graphql_endpoint_settings(Operators())
    defaults = EndpointSettings()
    assert from_settings.guards.budgets.rates == defaults.guards.budgets.rates == PointRates()
    for actual, expected in (
        (from_settings.guards.operation_limiter, defaults.guards.operation_limiter),
        (
            from_settings.guards.stream_limiter,
            ConcurrencyLimiter(10_000, defaults.guards.stream_limiter.limit_per_key),
        ),
    ):
        assert (actual.limit, actual.limit_per_key) == (expected.limit, expected.limit_per_key)
    assert (from_settings.receive_timeout, from_settings.init_timeout) == (
        defaults.receive_timeout,
        defaults.init_timeout,
    )
    assert from_settings.guards.introspection == defaults.guards.introspection == "open"
