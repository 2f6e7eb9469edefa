"""Host names in the allow list and the deny list: resolution, failures of DNS, and bad answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import httpx
import pytest

from graph.app import create_app
from mail.throttling import list_hosts
from mail.throttling.ban_changes import refresh_refused_networks_from_database
from mail.throttling.list_hosts import resolve_due_hosts, resolve_list_hosts_until_worker_stops
from merganser.server.components.worker_component import WorkerComponent, WorkerDefinition
from merganser.server.shutdown import GracefulShutdown
from models.runtime.components import ComponentState, HoldReason
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.clients.change_followers import wait_for_followers
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import wait_until
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.ban_operations import (
    POLICY_FIELDS,
    POLICY_UPDATE,
    open_other_process,
    update_policy,
)
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

ATTACKER = "attacker.example.net"
CALLER_IP = "198.51.100.7"
HOSTS = f"{{ banPolicy {{ {POLICY_FIELDS} }} }}"


@pytest.fixture
async def zone(environment: Environment) -> AsyncIterator[DnsZoneServer]:
    """A DNS server that the environment asks."""
    server = make_dns_zone({}, A={ATTACKER: "203.0.113.7"})
    async with run_dns_zone(server) as address:
        options = replace(environment.options, dns_resolver=address)
        environment.use_options_unless_outdated(
            CommittedOptions(options, environment.options_position)
        )
        yield server


async def test_new_host_is_effective_with_the_change(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment
) -> None:
    zone.records[ATTACKER, "AAAA"] = ["2001:db8::7"]
    policy = await update_policy(admin_client, denylist=["Attacker.Example.NET."])
    assert policy["denylist"] == [ATTACKER]
    assert policy["permanentBans"] == ["2001:db8::7/128", "203.0.113.7/32"]
    hosts = [{"name": ATTACKER, "addresses": ["2001:db8::7", "203.0.113.7"], "problem": None}]
    assert policy["hosts"] == hosts
    assert environment.refuses_ip("203.0.113.7")
    assert environment.refuses_ip("2001:db8::7")
    await update_policy(admin_client, allowlist=[ATTACKER])
    assert not environment.refuses_ip("203.0.113.7")


async def test_hosts_are_resolved_every_five_minutes_and_last_answer_is_kept(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_policy(admin_client, denylist=[ATTACKER])
    zone.records[ATTACKER, "A"] = ["203.0.113.8"]
    clock.tick(minutes=4)
    await resolve_due_hosts(environment)
    assert environment.refuses_ip("203.0.113.7")
    clock.tick(minutes=1)
    await resolve_due_hosts(environment)
    assert environment.refuses_ip("203.0.113.8")
    assert not environment.refuses_ip("203.0.113.7")
    for problem_names in (zone.servfail_names, zone.silent_names):
        problem_names.add(ATTACKER)
        clock.tick(minutes=5)
        await resolve_due_hosts(environment)
        assert environment.refuses_ip("203.0.113.8")
        host = (await admin_client(HOSTS))["banPolicy"]["hosts"][0]
        assert host["problem"] == list_hosts.NO_RESPONSE
        problem_names.clear()
    other = open_other_process(environment)  # as after a restart while DNS is down
    await refresh_refused_networks_from_database(other)
    assert other.refuses_ip("203.0.113.8")
    await other.database.close()


async def test_name_that_is_not_resolved_is_queried_by_the_worker(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    records = zone.records.pop((ATTACKER, "A"))
    policy = await update_policy(admin_client, denylist=[ATTACKER])
    assert policy["permanentBans"] == []
    assert policy["hosts"][0]["problem"] == list_hosts.NO_ADDRESS
    zone.records[ATTACKER, "A"] = records
    clock.tick(minutes=5)
    worker = asyncio.create_task(resolve_list_hosts_until_worker_stops(environment))
    await wait_until(lambda: environment.refuses_ip("203.0.113.7"))
    worker.cancel()
    await asyncio.wait([worker])
    await update_policy(admin_client, denylist=[])
    await resolve_due_hosts(environment)
    assert await select_rows(environment, "SELECT name FROM ban_list_hosts") == []


async def test_stopped_worker_stores_the_answers_that_it_waits_for(
    zone: DnsZoneServer,
    admin_client: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(list_hosts, "POLL_SECONDS", 10 * HANG_SECONDS)
    records = zone.records.pop((ATTACKER, "A"))
    await update_policy(admin_client, denylist=[ATTACKER])
    zone.records[ATTACKER, "A"] = records
    clock.tick(minutes=5)
    answer, has_query = zone.datagram_received, asyncio.Event()

    def answer_later(data: bytes, address: tuple[str, int]) -> None:
        has_query.set()
        asyncio.get_running_loop().call_later(0.3, answer, data, address)

    object.__setattr__(zone, "datagram_received", answer_later)
    definition = WorkerDefinition(
        "listHosts", lambda _: resolve_list_hosts_until_worker_stops(environment)
    )
    worker = WorkerComponent(definition, environment, GracefulShutdown())
    await worker.start()
    await has_query.wait()
    await worker.hold(HoldReason.COMPONENT_STOP)
    assert worker.state is ComponentState.STOPPED
    assert environment.refuses_ip("203.0.113.7")
    await worker.release(HoldReason.COMPONENT_STOP)
    await wait_for_followers(environment)
    async with asyncio.timeout(HANG_SECONDS):
        await worker.hold(HoldReason.COMPONENT_STOP)
    await worker.close()


async def test_answers_are_stored_for_names_of_the_current_lists(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment
) -> None:
    """A name that is added or removed during a query is as in the policy."""
    zone.records["second.example.net", "A"] = ["203.0.113.8"]
    await update_policy(admin_client, denylist=[ATTACKER])
    other = open_other_process(environment)
    await refresh_refused_networks_from_database(other)
    answers = await list_hosts.query_hosts(environment, [ATTACKER])
    await update_policy(admin_client, denylist=["second.example.net"])
    store = partial(list_hosts.store_answers_and_delete_unlisted_hosts, answers=answers)
    await other.run_transaction(store)
    assert await select_rows(environment, "SELECT name FROM ban_list_hosts") == [
        ("second.example.net",)
    ]
    await other.database.close()


async def test_host_with_many_addresses_is_not_used(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment
) -> None:
    zone.records[ATTACKER, "A"] = [f"203.0.{n >> 8}.{n & 255}" for n in range(3000)]
    policy = await update_policy(admin_client, denylist=[ATTACKER])
    assert policy["permanentBans"] == []
    assert policy["hosts"][0]["problem"] in {list_hosts.TOO_MANY_ADDRESSES, list_hosts.NO_RESPONSE}
    assert not environment.refuses_ip("203.0.0.1")


async def test_host_that_resolves_to_loopback_or_proxy_bans_neither(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment
) -> None:
    environment.refused_networks.replace_never_refused_addresses(proxies=["10.0.0.0/8"])
    zone.records[ATTACKER, "A"] = ["127.0.0.1", "0.0.0.0", "224.0.0.1", "10.1.2.3", "203.0.113.9"]  # noqa: S104
    zone.records[ATTACKER, "AAAA"] = ["::1", "::", "::ffff:127.0.0.1", "ff02::1"]
    policy = await update_policy(admin_client, denylist=[ATTACKER])
    assert policy["permanentBans"] == ["10.1.2.3/32", "203.0.113.9/32"]
    assert environment.refuses_ip("203.0.113.9")
    for ip in ("127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"):
        assert not environment.refuses_ip(ip)


async def test_caller_is_not_locked_out_by_name_of_own_host(
    zone: DnsZoneServer, admin_client: GraphQLClient, environment: Environment, tmp_path: object
) -> None:
    zone.records["office.example.net", "A"] = [CALLER_IP]
    app = create_app(environment, spool_folder=tmp_path / "remote")  # type: ignore[operator]
    transport = httpx.ASGITransport(app=app, client=(CALLER_IP, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        client = replace(admin_client, http=http)
        values = {"denylist": [ATTACKER, "office.example.net"]}
        _, (error,) = await run_mutation(client, POLICY_UPDATE, set=values)
        assert (error["code"], error["path"]) == ("FORBIDDEN", ["set", "denylist"])
        assert CALLER_IP in error["message"]
        values = {"denylist": ["198.51.100.0/24"], "allowlist": ["office.example.net"]}
        assert (await update_policy(client, **values))["hosts"][0]["addresses"] == [CALLER_IP]
    await app.end_subscriptions()
