"""Registration and heartbeats of servers, probes of load balancers, and stale nodes."""

import asyncio
import socket
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.throttling.ban_changes import apply_server_addresses
from models.cluster.nodes import ClusterNode, UserAffinity
from models.cluster.own_node import NodeAddress
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.cluster import registration
from resolvers.cluster.front_probes import probe_address
from resolvers.cluster.registration import NodeNameInUse, register_node
from resolvers.cluster.worker import (
    delete_stale_nodes_and_ended_pins,
    keep_node_registered_forever,
)
from tests.conftest import GraphQLClient, ManualClock
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.ban_operations import BAN_ADD
from tests.support.operations.platform.cluster_operations import (
    NODE_REMOVE,
    add_node,
    insert_node,
    load_nodes,
    other_server,
    pin_users,
    register_server,
    run_successful_mutation,
    set_node_values,
    update_node,
)

ADDRESS = NodeAddress("mx1.example.org", 8025)
BUSY_MACHINE_SECONDS = 60.0


async def load_rows(environment: Environment) -> dict[str, ColumnRow]:
    """Load the rows of all nodes by host."""
    statement = select(
        col(ClusterNode.host),
        col(ClusterNode.server),
        col(ClusterNode.heartbeat_count),
        col(ClusterNode.unreachable_at),
        col(ClusterNode.weight),
        col(ClusterNode.ip_addresses),
        col(ClusterNode.last_failure),
    )
    return {row.host: row for row in await environment.database.read(statement)}


async def wait_until_reachable(
    environment: Environment, host: str, *, is_reachable: bool = True
) -> ColumnRow:
    """Wait until another process sees the node in this state; return its row."""
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while True:
            row = (await load_rows(environment)).get(host)
            if row is not None and (row.unreachable_at is None) is is_reachable:
                return row
            await asyncio.sleep(0.05)


async def wait_for_heartbeats(environment: Environment, host: str, count: int) -> None:
    """Wait until a node has written this number of further heartbeats."""
    last = (await load_rows(environment))[host].heartbeat_count + count
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while (  # noqa: ASYNC110 - rows have no event
            await load_rows(environment)
        )[host].heartbeat_count < last:
            await asyncio.sleep(0.05)


async def stop_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_restart_keeps_weight_and_state(
    root: GraphQLClient, environment: Environment
) -> None:
    first_id = await register_server(environment, "mx1.example.org")
    await update_node(root, "mx1.example.org", weight=7, state="DOWN", tag="blue")
    await registration.mark_own_node_stopped(environment)
    (stopped,) = (await load_nodes(root))["nodes"]
    assert (stopped["state"], stopped["administrativeState"]) == ("UNREACHABLE", "DOWN")
    assert await register_node(environment, ADDRESS) == first_id
    (node,) = (await load_nodes(root))["nodes"]
    assert (node["weight"], node["state"], node["tag"]) == (7, "DOWN", "blue")


async def test_second_server_with_the_same_name_is_refused(environment: Environment) -> None:
    await register_server(environment, "mx1.example.org")
    beating = asyncio.create_task(keep_node_registered_forever(environment, ADDRESS))
    try:
        with pytest.raises(NodeNameInUse, match=r"Another server runs as node mx1\.example\.org"):
            await register_node(other_server(environment), ADDRESS)
        other_port = await register_node(
            other_server(environment), NodeAddress("mx1.example.org", 8026)
        )
        assert other_port != environment.own_node.node_id
    finally:
        await stop_task(beating)


async def test_name_of_a_load_balancer_is_refused(
    root: GraphQLClient, environment: Environment
) -> None:
    await add_node(root, "lb.example.org", port=443, kind="FRONT")
    with pytest.raises(NodeNameInUse, match="load balancer"):
        await register_node(environment, NodeAddress("lb.example.org", 443))


async def test_name_of_an_ended_server_is_taken_over(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "UNREACHABLE_AFTER_SECONDS", 0.3)
    first_id = await register_server(environment, "mx1.example.org")  # without a heartbeat
    other = other_server(environment)
    assert await register_node(other, ADDRESS) == first_id
    rows = await load_rows(environment)
    assert rows["mx1.example.org"].server == other.process.server_id


async def test_renamed_server_leaves_no_node_behind(environment: Environment) -> None:
    await register_server(environment, "old.example.org")
    await register_node(environment, ADDRESS)
    assert list(await load_rows(environment)) == ["mx1.example.org"]


async def test_heartbeat_is_written_and_removed_node_registers_again(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    await update_node(root, "mx1.example.org", weight=9)
    beating = asyncio.create_task(keep_node_registered_forever(environment, ADDRESS))
    try:
        await wait_for_heartbeats(environment, "mx1.example.org", 2)
        (node,) = (await load_nodes(root))["nodes"]
        assert node["processCount"] == 1
        payload = await run_successful_mutation(
            root, NODE_REMOVE, nodes=[{"host": "mx1.example.org"}]
        )
        assert payload["deletedIds"] == [node["id"]]
        again = await wait_until_reachable(environment, "mx1.example.org")
        assert again.weight == 100
    finally:
        await stop_task(beating)


@pytest.mark.usefixtures("clock")
async def test_node_without_heartbeat_becomes_unreachable_whatever_its_clock(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    other = other_server(environment)
    ahead = environment.now() + timedelta(minutes=10)
    await insert_node(
        environment,
        "mx2.example.org",
        server=other.process.server_id,
        last_heartbeat_at=ahead,
    )
    beating = asyncio.create_task(keep_node_registered_forever(environment, ADDRESS))
    try:
        await wait_for_heartbeats(environment, "mx1.example.org", 2)  # a third of the limit
        assert (await load_rows(environment))["mx2.example.org"].unreachable_at is None
        dead = await wait_until_reachable(environment, "mx2.example.org", is_reachable=False)
        assert dead.last_failure == "No heartbeat for 5 seconds."
        nodes = {node["host"]: node for node in (await load_nodes(root))["nodes"]}
        assert nodes["mx2.example.org"]["state"] == "UNREACHABLE"
        assert nodes["mx2.example.org"]["lastFailureAt"] is not None
        assert nodes["mx1.example.org"]["state"] == "UP"
        await set_node_values(environment, "mx2.example.org", heartbeat_count=5)
        other.own_node.node_id = None
        await register_node(other, NodeAddress("mx2.example.org", 8025))
        assert (await load_rows(environment))["mx2.example.org"].unreachable_at is None
    finally:
        await stop_task(beating)


async def test_load_balancers_are_probed(root: GraphQLClient, environment: Environment) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    open_port = server.sockets[0].getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed_port = unused.getsockname()[1]
    await register_server(environment, "mx1.example.org")
    beating = asyncio.create_task(keep_node_registered_forever(environment, ADDRESS))
    try:
        await add_node(root, "localhost", port=open_port, kind="FRONT")
        await add_node(root, "127.0.0.2", port=closed_port, kind="FRONT")
        reachable = await wait_until_reachable(environment, "localhost")
        assert "127.0.0.1" in reachable.ip_addresses
        async with asyncio.timeout(BUSY_MACHINE_SECONDS):
            while (  # noqa: ASYNC110 - rows have no event
                await load_rows(environment)
            )["127.0.0.2"].last_failure is None:
                await asyncio.sleep(0.05)
        nodes = {node["host"]: node for node in (await load_nodes(root))["nodes"]}
        assert nodes["localhost"]["state"] == "UP"
        assert nodes["127.0.0.2"]["state"] == "UNREACHABLE"
        assert nodes["127.0.0.2"]["lastFailureAt"] is not None
        server.close()
        await server.wait_closed()
        await wait_until_reachable(environment, "localhost", is_reachable=False)
    finally:
        await stop_task(beating)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1"])
async def test_failed_probe_has_a_reason(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    result = await probe_address(host, port)
    assert result.failure
    assert result.failure.endswith(".")


async def test_load_balancers_and_servers_are_never_banned(
    root: GraphQLClient, environment: Environment
) -> None:
    await add_node(root, "203.0.113.9", port=443, kind="FRONT")
    await insert_node(environment, "mx2.example.org", ip_addresses=["203.0.113.10"])
    await apply_server_addresses(environment)
    for address in ("203.0.113.9", "203.0.113.10"):
        _, errors = await run_mutation(root, BAN_ADD, networks=[address])
        assert [error["code"] for error in errors] == ["VALIDATION"], address
    assert (await run_mutation(root, BAN_ADD, networks=["203.0.113.11"]))[1] == []


@pytest.mark.usefixtures("ada")
async def test_stale_nodes_and_ended_pins_are_deleted(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await insert_node(environment, "mx1.example.org")
    await pin_users(root, "mx1.example.org", "ada", duration="PT1H")
    now = environment.now()
    await insert_node(environment, "gone.example.org", unreachable_at=now)
    await add_node(root, "added.example.org")
    await delete_stale_nodes_and_ended_pins(environment)
    assert len(await load_rows(environment)) == 3
    clock.tick(days=8)
    await delete_stale_nodes_and_ended_pins(environment)
    assert set(await load_rows(environment)) == {"mx1.example.org", "added.example.org"}
    assert await environment.database.read(select(col(UserAffinity.user_id))) == []
