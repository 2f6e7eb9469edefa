"""Nodes by GraphQL: addition, changes, removal, lists, rights and bad input."""

from typing import Any

import pytest
from sqlalchemy import select

from graph.types import global_ids
from models.admin.audit_log import AuditLogEntry
from models.cluster.nodes import AdministrativeNodeState
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.cluster import loaders
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.cluster_operations import (
    CONFIG,
    NODE_ADD,
    NODE_REMOVE,
    NODE_UPDATE,
    add_node,
    insert_node,
    load_nodes,
    register_server,
    run_successful_mutation,
    set_node_values,
    update_node,
)
from tests.support.stores.counter_check import load_journal_entries


async def test_server_registers_and_node_is_shown(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    (node,) = (await load_nodes(root))["nodes"]
    assert {name: node[name] for name in ("host", "port", "kind", "state", "weight", "tag")} == {
        "host": "mx1.example.org",
        "port": 8025,
        "kind": "BACKEND",
        "state": "UP",
        "weight": 100,
        "tag": None,
    }
    assert (node["local"], node["permanent"], node["syncState"]) == (True, False, "SYNCED")
    assert node["version"] is not None
    assert node["lastHeartbeatAt"] is not None


async def test_node_is_added_changed_and_removed_with_logs(
    root: GraphQLClient, environment: Environment
) -> None:
    added = await add_node(root, "MX2.example.org", port=8030, tag="blue", weight=50)
    assert (added["host"], added["state"], added["permanent"]) == (
        "mx2.example.org",
        "UNREACHABLE",
        True,
    )
    assert added["administrativeState"] == "UP"
    changed = await update_node(root, "mx2.example.org", weight=70, tag=None, state="DOWN")
    assert (changed["weight"], changed["tag"], changed["administrativeState"]) == (
        70,
        None,
        "DOWN",
    )
    refs = [{"address": {"host": "mx2.example.org", "port": 8030}}]
    payload = await run_successful_mutation(root, NODE_REMOVE, nodes=refs)
    assert payload["deletedIds"] == [added["id"]]
    assert (await load_nodes(root))["nodes"] == []
    entries = await load_journal_entries(environment, PLATFORM)
    kinds = [kind for kind, _ in entries if kind.startswith("CLUSTER_NODE")]
    assert kinds == [
        EventType.CLUSTER_NODE_CREATED,
        EventType.CLUSTER_NODE_UPDATED,
        EventType.CLUSTER_NODE_DELETED,
    ]
    table = core_table(AuditLogEntry)
    rows = await environment.database.read(select(table).order_by(table.c.id))
    logged = [(row.mutation, row.before, row.after) for row in rows]
    assert ("clusterNodeUpdate", {"tag": "blue", "weight": 50, "state": "UP"}) in [
        entry[:2] for entry in logged
    ]
    assert [entry[0] for entry in logged][-1] == "clusterNodeRemove"


async def test_registered_node_can_be_added_once(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    added = await add_node(root, "mx1.example.org", weight=10, tag="red")
    assert (added["state"], added["weight"], added["local"]) == ("UP", 10, True)
    _, errors = await run_mutation(root, NODE_ADD, host="mx1.example.org")
    assert [(error["code"], error["path"]) for error in errors] == [("CONFLICT", ["host"])]


async def test_server_does_not_become_a_load_balancer(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    _, errors = await run_mutation(root, NODE_ADD, host="mx1.example.org", kind="FRONT")
    assert [(error["code"], error["path"]) for error in errors] == [("CONFLICT", ["kind"])]


async def test_config_rebuilds_the_same_registry(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, "mx1.example.org")
    await update_node(root, "mx1.example.org", weight=30)
    await add_node(root, "2001:db8::5", port=443, kind="FRONT", tag="edge")
    await add_node(root, "mx2.example.org", weight=5, state="DRAINING")
    before = (await root(CONFIG))["clusterConfig"]
    refs = [{"id": node["id"]} for node in (await load_nodes(root))["nodes"]]
    await run_successful_mutation(root, NODE_REMOVE, nodes=refs)
    await register_server(environment, "mx1.example.org")  # as the server does within a second
    for node_input in before["asInputs"]:
        await run_successful_mutation(root, NODE_ADD, **node_input)
    assert (await root(CONFIG))["clusterConfig"] == before
    assert [node["host"] for node in before["nodes"]] == [
        "2001:db8::5",
        "mx1.example.org",
        "mx2.example.org",
    ]


async def test_drain_time_is_part_of_draining(
    root: GraphQLClient, environment: Environment
) -> None:
    await insert_node(environment, "mx1.example.org")
    draining = await update_node(root, "mx1.example.org", state="DRAINING", drainTime="PT10M")
    assert draining["drainEndsAt"] is not None
    assert draining["syncState"] == "CATCHING_UP"
    up = await update_node(root, "mx1.example.org", state="UP")
    assert (up["drainEndsAt"], up["state"]) == (None, "UP")


async def test_list_is_filtered_and_ordered(root: GraphQLClient, environment: Environment) -> None:
    now = environment.now()
    await insert_node(environment, "a.example.org", tag="blue")
    await insert_node(environment, "b.example.org", state=AdministrativeNodeState.DOWN)
    await insert_node(environment, "c.example.org", tag="blue", unreachable_at=now)
    await add_node(root, "lb.example.org", kind="FRONT")

    async def hosts(**node_filter: Any) -> list[str]:
        page = await load_nodes(root, filter=node_filter or None, orderBy="HOST_DESC")
        assert page["totalCount"] == len(page["nodes"])
        return [node["host"].partition(".")[0] for node in page["nodes"]]

    assert await hosts() == ["lb", "c", "b", "a"]
    assert await hosts(tag="blue") == ["c", "a"]
    assert await hosts(state="UNREACHABLE") == ["lb", "c"]
    assert await hosts(state="DOWN") == ["b"]
    assert await hosts(kind="BACKEND", state="UP") == ["a"]
    first = await load_nodes(root, first=3)
    assert first["pageInfo"]["hasNextPage"]
    rest = await load_nodes(root, first=3, after=first["pageInfo"]["endCursor"])
    assert [node["host"] for node in rest["nodes"]] == ["lb.example.org"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"host": "not a host"}, ["host"]),
        ({"host": "x" * 300}, ["host"]),
        ({"host": "a.example.org", "port": 0}, ["port"]),
        ({"host": "a.example.org", "weight": 0}, ["weight"]),
        ({"host": "a.example.org", "weight": 10_001}, ["weight"]),
        ({"host": "a.example.org", "tag": "x" * 65}, ["tag"]),
        ({"host": "a.example.org", "tag": "a\u0007b"}, ["tag"]),
    ],
)
async def test_bad_node_is_refused(
    root: GraphQLClient, fields: dict[str, Any], path: list[str]
) -> None:
    _, errors = await run_mutation(root, NODE_ADD, **fields)
    assert [(error["__typename"], error["path"]) for error in errors] == [("ValidationError", path)]
    assert (await load_nodes(root))["totalCount"] == 0


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({}, ["set"]),
        ({"weight": -1}, ["set", "weight"]),
        ({"drainTime": "PT1M"}, ["set", "drainTime"]),
        ({"state": "DRAINING", "drainTime": "P2D"}, ["set", "drainTime"]),
        ({"state": "UP", "drainTime": "PT1M"}, ["set", "drainTime"]),
    ],
)
async def test_bad_change_is_refused(
    root: GraphQLClient, environment: Environment, values: dict[str, Any], path: list[str]
) -> None:
    await insert_node(environment, "a.example.org")
    refs = [{"host": "a.example.org"}]
    _, errors = await run_mutation(root, NODE_UPDATE, nodes=refs, set=values)
    assert [(error["code"], error["path"]) for error in errors] == [("VALIDATION", path)]
    (node,) = (await load_nodes(root))["nodes"]
    assert (node["weight"], node["state"]) == (100, "UP")


async def test_references_must_name_one_node(root: GraphQLClient, environment: Environment) -> None:
    await insert_node(environment, "a.example.org", 8025)
    await insert_node(environment, "a.example.org", 8026)
    for refs, code in (
        ([{"host": "a.example.org"}], "VALIDATION"),
        ([{"host": "b.example.org"}], "NOT_FOUND"),
        ([{"address": {"host": "a.example.org", "port": 1}}], "NOT_FOUND"),
        ([], "VALIDATION"),
    ):
        _, errors = await run_mutation(root, NODE_REMOVE, nodes=refs)
        assert [error["code"] for error in errors] == [code], refs
    assert (await load_nodes(root))["totalCount"] == 2


async def test_change_of_several_nodes_is_all_or_none(
    root: GraphQLClient, environment: Environment
) -> None:
    await insert_node(environment, "a.example.org")
    refs = [{"host": "a.example.org"}, {"id": global_ids.encode("ClusterNode", 4711)}]
    _, errors = await run_mutation(root, NODE_UPDATE, nodes=refs, set={"weight": 5})
    assert [error["code"] for error in errors] == ["NOT_FOUND"]
    assert (await load_nodes(root))["nodes"][0]["weight"] == 100


async def test_number_of_nodes_is_limited(
    root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.cluster.create.MAX_NODES", 1)
    await add_node(root, "a.example.org")
    _, errors = await run_mutation(root, NODE_ADD, host="b.example.org")
    assert [error["code"] for error in errors] == ["LIMIT_REACHED"]
    assert loaders.MAX_NODES == 1000


async def test_administrators_read_and_only_root_changes(
    admin_client: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await insert_node(environment, "a.example.org")
    assert (await load_nodes(admin_client))["totalCount"] == 1
    refs = [{"host": "a.example.org"}]
    for client, document, fields in (
        (admin_client, NODE_ADD, {"host": "b.example.org"}),
        (admin_client, NODE_UPDATE, {"nodes": refs, "set": {"state": "DOWN"}}),
        (ada, NODE_REMOVE, {"nodes": refs}),
    ):
        _, errors = await run_mutation(client, document, **fields)
        assert [error["code"] for error in errors] == ["FORBIDDEN"]
    (node,) = (await load_nodes(admin_client))["nodes"]
    assert node["state"] == "UP"


async def test_dry_run_changes_nothing(root: GraphQLClient, environment: Environment) -> None:
    await insert_node(environment, "a.example.org")
    fields = {"nodes": [{"host": "a.example.org"}], "set": {"state": "DOWN"}}
    _, errors = await run_mutation(root, NODE_UPDATE, options={"validateOnly": True}, **fields)
    assert errors == []
    assert (await load_nodes(root))["nodes"][0]["state"] == "UP"


async def test_failure_is_shown(root: GraphQLClient, environment: Environment) -> None:
    await insert_node(environment, "a.example.org")
    now = environment.now()
    values = {"unreachable_at": now, "last_failure_at": now, "last_failure": "Refused."}
    await set_node_values(environment, "a.example.org", **values)
    (node,) = (await load_nodes(root))["nodes"]
    assert (node["state"], node["lastFailure"]) == ("UNREACHABLE", "Refused.")
    assert node["unreachableSince"] == node["lastFailureAt"]


@pytest.mark.parametrize(
    "reference", ['{host: "lb.example"}', '{address: {host: "lb.example", port: 443}}']
)
async def test_node_of_the_same_atomic_request_is_found(
    root: GraphQLClient, reference: str
) -> None:
    payloads = await root(
        f"""mutation @atomic {{
          added: clusterNodeAdd(input: {{host: "lb.example", port: 443, kind: FRONT}}) {{
            errors {{ code }} }}
          changed: clusterNodeUpdate(input: {{nodes: [{reference}], set: {{weight: 7}}}}) {{
            clusterNodes {{ host weight }} errors {{ code }} }} }}"""
    )
    assert payloads["added"]["errors"] == []
    assert payloads["changed"] == {
        "clusterNodes": [{"host": "lb.example", "weight": 7}],
        "errors": [],
    }
