"""Who may do how much: buckets, crowds, and what a client hears that wants more."""

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
from merganser.server.processes.process_shares import settings_of_process
from merganser.settings.settings import Settings as Operators
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.context import Viewer
from tests.support.servers.small_schema_server import (
    a_world,
    client_of,
    closing,
    greet,
    hear,
    make_schema,
    say,
    serving,
    sign_in,
)

ITEMS = "query ($n: Int!) { items(first: $n) { nodes { name } } }"
USER = {"Authorization": "Bearer user"}


@dataclass
class Seconds:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Environment]:
    async with a_world(tmp_path) as world:
        yield world


def guards(clock: Seconds, **more: Any) -> AdmissionControl:
    return AdmissionControl(RateBudgets(PointRates(100, 1000, 0), clock=clock), **more)


def test_a_bucket_is_full_at_first_and_fills_again() -> None:
    clock = Seconds()
    budgets, most = RateBudgets(clock=clock), budget_capacity(1000)
    assert most == 1000 * CAPACITY_SECONDS
    assert budgets.take_points("a", 1000, most) == (0, 0)
    assert budgets.take_points("a", 1000, 500) == (0, 0.5)
    clock.now = 0.4
    assert pytest.approx((400, 0.1)) == budgets.take_points("a", 1000, 500)
    clock.now = 0.6
    assert pytest.approx((100, 0)) == budgets.take_points("a", 1000, 500)
    assert budgets.take_points("b", 1000, 1) == (most - 1, 0)
    clock.now = 1e9
    assert budgets.take_points("a", 1000, 0) == (most, 0)


def test_the_smallest_bucket_pays_for_the_dearest_document_and_operation() -> None:
    assert budget_capacity(1) == MIN_CAPACITY
    assert make_schema().limits.max_cost + document_reading_points("x" * 10**6) < MIN_CAPACITY
    assert budget_capacity(PointRates().users) > make_schema().limits.max_cost_of_admins
    limits = make_schema().limits
    for role in Role:
        smallest = budget_capacity(1, min_capacity_of_viewer(Viewer(7, role)))
        assert limits.max_cost_of_role(role) + document_reading_points("x" * 10**6) < smallest


@pytest.mark.parametrize("many", [2, 3, 8])
def test_several_processes_allow_together_what_one_would(many: int) -> None:
    whole = Operators(budget_admins=0, operations_each=2)
    mine = settings_of_process(whole, many)
    for name in ("connections", "connections_each", "followers_each", "operations"):
        assert 0 < getattr(mine, name) * many <= getattr(whole, name), name
    for name in ("budget_strangers", "budget_users"):
        assert 0 < getattr(mine, name) * many <= getattr(whole, name), name
    assert mine.login_memory == whole.login_memory // many
    assert mine.budget_admins == 0  # unlimited
    assert mine.operations_each == 2  # one connection may be at the same process as the other
    assert (
        http_server.upload_limits_of_process(whole, many).memory_budget
        == Uploads().memory_budget // many
    )
    assert http_server.upload_limits_of_process(whole, 100).memory_budget == whole.upload_max
    guards = http_server.graphql_endpoint_settings(mine).guards
    assert guards.operation_limiter.limit == whole.operations // many
    assert guards.budgets.rates.users == whole.budget_users // many
    assert http_server.create_connection_tracker(mine).limiter.limit == whole.connections // many


def test_buckets_are_bounded_and_the_one_unused_longest_goes() -> None:
    budgets = RateBudgets(clock=Seconds(), max_budgets=3)
    for who in ("a", "b", "c", "a", "d"):
        budgets.take_points(who, 1, 10)
    assert len(budgets) == 3
    assert budgets.take_points("a", 1, 0) == (MIN_CAPACITY - 20, 0)
    assert budgets.take_points("b", 1, 0) == (MIN_CAPACITY, 0)


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        (None, ""),
    ],
)
def test_who_has_a_network_has_one_bucket(address: str | None, same: str) -> None:
    assert network_key(address) == same


def test_rates_go_by_role() -> None:
    rates = PointRates(1, 2, 3)
    for role, rate in (
        (Role.PUBLIC, 1),
        (Role.USER, 2),
        (Role.DOMAIN_ADMIN, 2),
        (Role.ADMIN, 3),
        (Role.ROOT, 3),
    ):
        assert rates.rate_of_viewer(Viewer(7, role)) == rate


def test_a_crowd_counts_all_and_each() -> None:
    crowd = ConcurrencyLimiter(3, 2)
    first, second, third = crowd.acquire("a"), crowd.acquire("a"), crowd.acquire("b")
    assert first
    assert second
    assert third
    assert crowd.acquire("a") is None
    assert crowd.acquire("c") is None
    assert crowd.is_full
    first.release()
    first.release()
    assert (crowd.in_use_count, crowd.count_of_key("a"), crowd.is_full) == (2, 1, False)
    assert not third.move_to_key("a", 1)
    assert third.move_to_key("a", 2)
    assert (crowd.count_of_key("a"), crowd.count_of_key("b")) == (2, 0)
    assert crowd.acquire("d", 0) is None
    assert crowd.acquire("d")
    second.release()
    third.release()
    assert crowd._counts == {"d": 1}  # noqa: SLF001 - nobody is remembered


async def ask(http: httpx.AsyncClient, query: str, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await http.post("/graphql", json={"query": query, "variables": more}, headers=headers)


async def test_who_has_spent_all_waits_and_nobody_else(world: Environment) -> None:
    clock = Seconds()
    endpoint = GraphqlEndpoint(
        make_schema(), world, sign_in, EndpointSettings(guards=guards(clock))
    )
    async with client_of(endpoint) as http:
        first = await ask(http, ITEMS, n=9999)
        unread = document_reading_points(ITEMS)
        assert first.json()["extensions"]["cost"] == {
            "requested": 10_000,
            "maximum": 10_000,
            "available": 15_000 - unread,
            "restoreRate": 100,
        }
        assert (await ask(http, ITEMS, n=9999)).status_code == 200
        refused = await ask(http, ITEMS, n=9999)
        assert refused.status_code == 429  # in application/json too
        assert "data" not in refused.json()
        (error,) = refused.json()["errors"]
        wait = error["extensions"].pop("retryAfterSeconds")
        assert error["extensions"] == {"code": "RATE_LIMITED"}
        assert int(refused.headers["retry-after"]) == wait == pytest.approx(50, abs=2)
        assert (await ask(http, ITEMS, n=9999, headers=USER)).status_code == 200
        clock.now = float(wait)
        assert (await ask(http, ITEMS, n=9999)).status_code == 200


async def test_what_is_refused_costs_nothing_but_its_reading(world: Environment) -> None:
    endpoint = GraphqlEndpoint(
        make_schema(), world, sign_in, EndpointSettings(guards=guards(Seconds()))
    )
    async with client_of(endpoint) as http:
        assert (await ask(http, ITEMS, n=10_000)).json()["errors"]  # dearer than is allowed
        answer = await ask(http, ITEMS, n=1)
        left = MIN_CAPACITY - document_reading_points(ITEMS) - 2
        assert answer.json()["extensions"]["cost"]["available"] == left


async def test_unknown_texts_are_paid_for_before_they_are_read(world: Environment) -> None:
    schema = make_schema()
    endpoint = GraphqlEndpoint(schema, world, sign_in, EndpointSettings(guards=guards(Seconds())))
    async with client_of(endpoint) as http:
        await ask(http, "{ hello }")
        before = len(schema.documents.used_once), len(schema.documents.refused)
        codes = [
            (await ask(http, f"{{ hello #{'x' * 31_000}{n}\n }}")).status_code for n in range(10)
        ]
        assert codes == [200] * 6 + [429] * 4
        assert len(schema.documents.used_once) == before[0] + 6
        assert (
            await http.get("/graphql", params={"query": "{ hello #" + "y" * 30_000})
        ).status_code == 429
        assert len(schema.documents.refused) == before[1]
        assert (await ask(http, "{ hello }")).status_code == 200  # what is known costs little


async def test_a_socket_and_a_stream_pay_as_well(world: Environment) -> None:
    async with serving(world, EndpointSettings(guards=guards(Seconds()))) as server:
        async with server.connect() as ws:
            await greet(ws)
            for _ in range(3):
                await say(
                    ws, "subscribe", id="1", payload={"query": ITEMS, "variables": {"n": 9999}}
                )
                heard = await hear(ws)
                if heard["type"] == "next":
                    assert heard["payload"]["extensions"]["cost"]["restoreRate"] == 100
                    assert (await hear(ws))["type"] == "complete"
            assert heard["type"] == "error"
            assert heard["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
        body = {"query": ITEMS, "variables": {"n": 9999}}
        events = {"Accept": "text/event-stream"}
        async with httpx.AsyncClient(timeout=30) as http:
            text = (await http.post(server.url, json=body, headers=events)).text
        assert '"RATE_LIMITED"' in text


async def test_operations_at_once_are_counted(world: Environment) -> None:
    crowded = guards(Seconds(), operation_limiter=ConcurrencyLimiter(3, 2))
    endpoint = GraphqlEndpoint(
        make_schema(deadline=0.3), world, sign_in, EndpointSettings(guards=crowded)
    )
    async with client_of(endpoint) as http:
        slow = [asyncio.create_task(ask(http, "{ slow }")) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await ask(http, "{ hello }")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
        slow.append(asyncio.create_task(ask(http, "{ slow }", headers=USER)))
        await asyncio.sleep(0.05)
        refused = await ask(http, "{ hello }", headers=USER)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
        await asyncio.gather(*slow)
        assert (await ask(http, "{ hello }")).json()["data"] == {"hello": "world"}
    assert crowded.operation_limiter.in_use_count == 0


async def test_a_query_ends_when_its_client_leaves(world: Environment) -> None:
    crowded = guards(Seconds(), operation_limiter=ConcurrencyLimiter(5, 5))
    async with serving(world, EndpointSettings(guards=crowded), deadline=60) as server:
        sent = b'{"query": "{ slow }"}'
        head = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {len(sent)}\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + sent)
        async with asyncio.timeout(5):
            while not crowded.operation_limiter.in_use_count:  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.01)
            writer.close()
            while crowded.operation_limiter.in_use_count:  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.01)


async def test_sockets_of_one_user_are_counted_and_clients_told_to_come_later(
    world: Environment,
) -> None:
    few = guards(Seconds(), stream_limiter=ConcurrencyLimiter(100, 2))
    async with serving(world, EndpointSettings(guards=few)) as server:
        async with server.connect() as one, server.connect() as two:
            await greet(one, {"token": "user"})
            await greet(two, {"token": "user"})
            async with server.connect() as three:
                await say(three, "connection_init", payload={"token": "user"})
                assert await closing(three) == 1013
            async with server.connect() as stranger:
                await greet(stranger)
        async with server.connect() as again:
            await greet(again, {"token": "user"})
    assert few.stream_limiter.in_use_count == 0


def test_what_an_operator_sets_is_what_the_server_does() -> None:
    made = http_server.graphql_endpoint_settings(Operators())
    usual = EndpointSettings()
    assert made.guards.budgets.rates == usual.guards.budgets.rates == PointRates()
    for mine, theirs in (
        (made.guards.operation_limiter, usual.guards.operation_limiter),
        (
            made.guards.stream_limiter,
            ConcurrencyLimiter(10_000, usual.guards.stream_limiter.limit_per_key),
        ),
    ):
        assert (mine.limit, mine.limit_per_key) == (theirs.limit, theirs.limit_per_key)
    assert (made.receive_timeout, made.init_timeout) == (usual.receive_timeout, usual.init_timeout)
    assert made.guards.introspection == usual.guards.introspection == "open"
