"""Nodes of users: hash, pins, lists, flushes, and the sessions that they end."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from resolvers.cluster import affinities
from tests.conftest import GraphQLClient, ManualClock, make_user
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.cluster_operations import (
    AFFINITIES,
    AFFINITY,
    AFFINITY_SET,
    NODE_COUNTS,
    NODE_FLUSH,
    NODE_REMOVE,
    add_node,
    insert_node,
    load_affinities,
    load_affinity,
    pin_users,
    run_successful_mutation,
    set_node_values,
    update_node,
)
from tests.support.stores.counter_check import load_journal_entries
from tests.support.stores.recorded_statements import record_sql

HOSTS = ("a.example.org", "b.example.org", "c.example.org")


@pytest.fixture
async def nodes(environment: Environment) -> list[str]:
    """Three nodes that are UP."""
    for host in HOSTS:
        await insert_node(environment, host)
    return list(HOSTS)


async def hosts_of_users(client: GraphQLClient, **arguments: Any) -> dict[str, str]:
    """Return the hosts of all users by username."""
    page = await load_affinities(client, first=100, **arguments)
    return {node["user"]["username"]: node["node"]["host"] for node in page["nodes"]}


@pytest.mark.usefixtures("ada")
async def test_hash_decides_without_pins(root: GraphQLClient, nodes: list[str]) -> None:
    affinity = await load_affinity(root, "ada")
    assert affinity["node"] == affinity["hashedNode"]
    assert affinity["node"]["host"] in nodes
    assert (affinity["pinnedNode"], affinity["pinned"], affinity["expiresAt"]) == (
        None,
        False,
        None,
    )
    assert len(affinity["hash"]) == 16
    assert affinity["sessionNodes"] == []
    unknown = await load_affinity(root, "nobody@example.net")
    assert (unknown["user"], unknown["node"]) == (None, unknown["hashedNode"])
    unknown_id = global_ids.encode("User", 4711)
    assert (await root(AFFINITY, user={"id": unknown_id}))["userAffinity"] is None


@pytest.mark.usefixtures("ada")
async def test_pin_moves_a_user_and_is_removed(root: GraphQLClient, nodes: list[str]) -> None:
    hashed = (await load_affinity(root, "ada"))["node"]["host"]
    other = next(host for host in nodes if host != hashed)
    payload = await pin_users(root, other, "ada")
    (affinity,) = payload["userAffinities"]
    assert affinity["node"]["host"] == affinity["pinnedNode"]["host"] == other
    assert (affinity["pinned"], affinity["hashedNode"]["host"]) == (True, hashed)
    assert await load_affinity(root, "ada") == affinity
    await pin_users(root, None, "ada")
    assert (await load_affinity(root, "ada"))["node"]["host"] == hashed


@pytest.mark.usefixtures("ada")
async def test_pin_ends_after_its_duration(
    root: GraphQLClient, nodes: list[str], clock: ManualClock
) -> None:
    hashed = (await load_affinity(root, "ada"))["node"]["host"]
    other = next(host for host in nodes if host != hashed)
    payload = await pin_users(root, other, "ada", duration="PT10M")
    assert payload["userAffinities"][0]["expiresAt"] is not None
    clock.tick(minutes=11)
    assert (await load_affinity(root, "ada"))["pinnedNode"] is None
    assert await hosts_of_users(root, filter={"users": {"usernames": ["ada"]}}) == {"ada": hashed}


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"state": "DOWN"}, "DOWN"),
        ({"state": "DRAINING"}, "DRAINING"),
        ({"unreachable_at": True}, "UNREACHABLE"),
    ],
)
@pytest.mark.usefixtures("ada", "nodes")
async def test_only_usable_nodes_get_users(
    root: GraphQLClient,
    environment: Environment,
    values: dict[str, Any],
    state: str,
) -> None:
    host = (await load_affinity(root, "ada"))["node"]["host"]
    await pin_users(root, host, "ada")
    if "unreachable_at" in values:
        values = {"unreachable_at": environment.now()}
    await set_node_values(environment, host, **values)
    affinity = await load_affinity(root, "ada")
    assert affinity["pinnedNode"]["host"] == host
    assert affinity["pinned"] is False
    assert affinity["node"]["host"] != host
    users, ref = {"usernames": ["ada"]}, {"host": host}
    _, errors = await run_mutation(root, AFFINITY_SET, users=users, node=ref)
    assert [(error["code"], error["path"]) for error in errors] == [("CONFLICT", ["node"])]
    assert state in errors[0]["message"]


@pytest.mark.usefixtures("ada")
async def test_users_are_not_pinned_to_load_balancers(root: GraphQLClient) -> None:
    await add_node(root, "lb.example.org", kind="FRONT")
    fields = {"users": {"usernames": ["ada"]}, "node": {"host": "lb.example.org"}}
    _, errors = await run_mutation(root, AFFINITY_SET, **fields)
    assert [error["code"] for error in errors] == ["CONFLICT"]
    assert (await load_affinity(root, "ada"))["node"] is None


async def test_list_by_node_has_the_same_users_as_the_whole_list(
    root: GraphQLClient,
    environment: Environment,
    nodes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(affinities, "SCANNED_ROWS", 7)
    for number in range(30):
        await make_user(environment, f"user{number:02}")
    every = await hosts_of_users(root)
    assert len(every) == 30
    counts = Counter(every.values())
    for host in nodes:
        expected = sorted(name for name, node in every.items() if node == host)
        ref = {"node": {"host": host}}
        page = await load_affinities(root, filter=ref, first=100)
        assert [node["user"]["username"] for node in page["nodes"]] == expected
        assert page["totalCount"] == len(expected)
        pages, arguments = list[str](), dict[str, Any]()
        while True:
            page = await load_affinities(root, filter=ref, first=3, **arguments)
            pages += [node["user"]["username"] for node in page["nodes"]]
            if not page["pageInfo"]["hasNextPage"]:
                break
            arguments = {"after": page["pageInfo"]["endCursor"]}
        assert pages == expected
        last = await load_affinities(root, filter=ref, last=3, before=None)
        assert [node["user"]["username"] for node in last["nodes"]] == expected[-3:]
        descending = await load_affinities(root, filter=ref, orderBy="USERNAME_DESC", first=100)
        assert [node["user"]["username"] for node in descending["nodes"]] == expected[::-1]
    shown = {
        node["host"]: node["userCount"]
        for node in (await root(NODE_COUNTS))["clusterNodes"]["nodes"]
    }
    assert shown == {host: counts[host] for host in nodes}


async def test_search_for_users_of_a_node_has_a_limit(
    root: GraphQLClient,
    environment: Environment,
    nodes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("SCANNED_ROWS", 5), ("MAX_SCANNED_ROWS", 10)):
        monkeypatch.setattr(affinities, name, value)
    for number in range(40):
        await make_user(environment, f"user{number:02}")
    await insert_node(environment, "small.example.org")
    for host in nodes:
        await set_node_values(environment, host, weight=1000)
    await pin_users(root, "small.example.org", "user03", "user37")
    every = await hosts_of_users(root)
    expected = sorted(name for name, host in every.items() if host == "small.example.org")
    assert {"user03", "user37"} <= set(expected)
    ref = {"node": {"host": "small.example.org"}}
    statements = record_sql(environment.database)
    for size, cursor_name, has_more, cursor_field in (
        ("first", "after", "hasNextPage", "endCursor"),
        ("last", "before", "hasPreviousPage", "startCursor"),
    ):
        found, page_count, arguments = list[str](), 0, dict[str, Any]()
        while True:
            statements.clear()
            document = AFFINITIES.replace("totalCount", "")
            page = (await root(document, filter=ref, **{size: 3}, **arguments))["userAffinities"]
            assert len([text for text in statements if "LIMIT" in text]) <= 3
            found += [node["user"]["username"] for node in page["nodes"]]
            page_count += 1
            if not page["pageInfo"][has_more]:
                break
            arguments = {cursor_name: page["pageInfo"][cursor_field]}
        assert sorted(found) == expected
        assert page_count >= 4
    assert (await load_affinities(root, filter=ref))["totalCount"] == len(expected)


@pytest.mark.usefixtures("ada", "nodes")
async def test_node_that_is_down_has_no_users(root: GraphQLClient) -> None:
    host = (await load_affinity(root, "ada"))["node"]["host"]
    await update_node(root, host, state="DOWN")
    page = await load_affinities(root, filter={"node": {"host": host}})
    assert (page["totalCount"], page["nodes"]) == (0, [])


@pytest.mark.usefixtures("nodes")
async def test_number_of_statements_does_not_depend_on_users(
    root: GraphQLClient, environment: Environment
) -> None:
    for number in range(20):
        await make_user(environment, f"user{number:02}")
    document = AFFINITIES.replace("pinned }", "pinned hashedNode { host } sessionNodes { host } }")
    counts = []
    for first in (1, 20):
        await root(document, first=first)
        statements = record_sql(environment.database)
        await root(document, first=first)
        counts.append(len(statements))
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("ada", "bob", "nodes")
async def test_flush_removes_the_pins_of_one_node(root: GraphQLClient) -> None:
    before = await hosts_of_users(root)
    await pin_users(root, "a.example.org", "ada")
    await pin_users(root, "b.example.org", "bob")
    payload = await run_successful_mutation(root, NODE_FLUSH, node={"host": "a.example.org"})
    assert payload["redistributedCount"] == 1
    assert (await load_affinity(root, "ada"))["node"]["host"] == before["ada"]
    assert (await load_affinity(root, "bob"))["pinned"] is True


@pytest.mark.usefixtures("ada", "nodes")
async def test_removal_of_a_node_deletes_its_pins_with_events(
    root: GraphQLClient, environment: Environment
) -> None:
    await pin_users(root, "a.example.org", "ada")
    await run_successful_mutation(root, NODE_REMOVE, nodes=[{"host": "a.example.org"}])
    assert (await load_affinity(root, "ada"))["pinned"] is False
    entries = await load_journal_entries(environment, PLATFORM)
    assert [kind for kind, _ in entries].count(EventType.CLUSTER_AFFINITY_DELETED) == 1


@pytest.mark.usefixtures("ada")
async def test_simultaneous_pins_leave_one(root: GraphQLClient, nodes: list[str]) -> None:
    payloads = await asyncio.gather(*(pin_users(root, host, "ada") for host in nodes))
    assert len(payloads) == 3
    affinity = await load_affinity(root, "ada")
    assert affinity["pinnedNode"]["host"] in nodes


@pytest.mark.parametrize(
    ("fields", "code", "path"),
    [
        ({"duration": "PT1S", "node": {"host": "a.example.org"}}, "VALIDATION", ["duration"]),
        ({"duration": "P1D"}, "VALIDATION", ["duration"]),
        ({"node": {"host": "z.example.org"}}, "NOT_FOUND", ["node"]),
        (
            {"users": {"usernames": ["nobody"]}, "node": {"host": "a.example.org"}},
            "NOT_FOUND",
            ["users", "usernames", "0"],
        ),
    ],
)
@pytest.mark.usefixtures("ada", "nodes")
async def test_bad_pin_is_refused(
    root: GraphQLClient,
    fields: dict[str, Any],
    code: str,
    path: list[str],
) -> None:
    _, errors = await run_mutation(root, AFFINITY_SET, **{"users": {"usernames": ["ada"]}} | fields)
    assert [(error["code"], error["path"]) for error in errors] == [(code, path)]
    assert (await load_affinity(root, "ada"))["pinnedNode"] is None


async def test_only_root_pins_and_only_administrators_read(
    admin_client: GraphQLClient, ada: GraphQLClient, nodes: list[str]
) -> None:
    users, ref = {"usernames": ["ada"]}, {"host": nodes[0]}
    for client in (admin_client, ada):
        for document, fields in (
            (AFFINITY_SET, {"users": users, "node": ref}),
            (NODE_FLUSH, {"node": ref}),
        ):
            _, errors = await run_mutation(client, document, **fields)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]
    assert (await load_affinity(admin_client, "ada"))["pinnedNode"] is None
    response = await ada.execute(AFFINITIES)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
