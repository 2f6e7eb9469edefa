"""Lists of components, probes of services, health and storage, and bad input."""

import asyncio
import os
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from models.events.wakeups import Wakeups
from models.runtime import leases
from models.runtime.components import (
    HOLDABLE_NAMES,
    LISTENER_NAMES,
    WORKER_NAMES,
    Component,
    ComponentKind,
    ComponentRegistry,
    ComponentState,
    HoldReason,
)
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration
from models.runtime.server_processes import ServerProcess
from models.store.columns import core_table
from models.users.roles import Role
from resolvers.cluster import process_requests
from resolvers.health.prober import (
    STATE_LIFETIME,
    WAIT_TIMEOUT,
)
from resolvers.health.request_kinds import HEALTH_REQUEST_KINDS
from resolvers.health.update import apply_component_holds
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.operations.platform.component_operations import COMPONENTS, list_components
from tests.support.stores.recorded_statements import record_sql

STOP = """mutation ($input: ComponentStopInput!) { componentStop(input: $input) {
  components { name state detail } unresponsiveNodes
  errors { __typename code message path ... on ValidationError { constraint allowedValues } } } }"""
START = STOP.replace("componentStop(", "componentStart(").replace("StopInput", "StartInput")
DASHBOARD = """{ health { ok version uptime checks { name state } }
  components(first: 100) { nodes { name state node latency } unresponsiveNodes }
  storageStatus { stores { store node size total usedPercent } }
  sessions(first: 20) { totalCount nodes { id service ip } }
  queue(first: 20) { nodes { id } } banPolicy { activeBans(first: 20) { nodes { network } } } }"""
CONTROL_MUTATIONS = {
    "componentStop": '{components: ["lmtp"]}',
    "componentStart": '{components: ["lmtp"]}',
    "configReload": "{}",
    "serverStop": "{}",
}
BUSY_MACHINE_SECONDS = 120.0
RESULT_SECONDS = STATE_LIFETIME + 0.1


class RecordedComponent(Component):
    async def start_work(self) -> None: ...

    async def finish_work(self) -> None: ...


@pytest.fixture
async def components(environment: Environment) -> list[Component]:
    """Three components that run."""
    created: list[Component] = [
        RecordedComponent(name, kind, environment.now, address="127.0.0.1:24")
        for name, kind in (
            ("lmtp", ComponentKind.LISTENER),
            ("queue", ComponentKind.WORKER),
            ("tasks", ComponentKind.WORKER),
        )
    ]
    for component in created:
        environment.components.add(component)
        await component.start()
    return created


@pytest.mark.usefixtures("components")
async def test_components_are_filtered_sorted_and_paged(root: GraphQLClient) -> None:
    every = await list_components(root, first=100)
    names = [node["name"] for node in every["nodes"]]
    assert names == sorted(names)
    assert {"lmtp", "queue", "tasks", "database", "blobs"} <= set(names)
    assert every["totalCount"] == len(names)
    assert {node["node"] for node in every["nodes"]} == {socket.gethostname()}
    assert {node["pid"] for node in every["nodes"]} == {os.getpid()}
    paged: list[str] = []
    cursor = None
    while True:
        page = await list_components(root, first=2, after=cursor, order="NAME_DESC")
        paged += [node["name"] for node in page["nodes"]]
        cursor = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert paged == names[::-1]
    (last,) = (await list_components(root, last=1))["nodes"]
    assert last["name"] == names[-1]
    for given, expected in (
        ({"kinds": ["WORKER"]}, ["queue", "tasks"]),
        ({"kinds": ["LISTENER"], "states": ["RUNNING"]}, ["lmtp"]),
        ({"nodes": ["elsewhere.example"]}, []),
        ({"names": ["tasks", "nothing"]}, ["tasks"]),
    ):
        page = await list_components(root, filter=given)
        assert [node["name"] for node in page["nodes"]] == expected
        assert page["totalCount"] == len(expected)


async def test_cursor_of_another_list_is_refused(root: GraphQLClient) -> None:
    page = await list_components(root, first=1)
    response = await root.execute(
        COMPONENTS, first=1, after=page["pageInfo"]["endCursor"], order="NAME_DESC"
    )
    assert response["data"]["components"] is None
    assert response["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


async def test_component_stop_and_start_are_stored_with_precedence_of_nodes(
    root: GraphQLClient, environment: Environment, components: list[Component]
) -> None:
    lmtp, queue, _ = components
    node = socket.gethostname()
    payload = (await root(STOP, input={"components": ["lmtp", "queue", "lmtp"]}))["componentStop"]
    assert payload["errors"] == []
    assert payload["components"] == [
        {"name": name, "state": "STOPPED", "detail": "Stopped by componentStop."}
        for name in ("lmtp", "queue")
    ]
    payload = (await root(START, input={"components": ["lmtp"], "node": node}))["componentStart"]
    assert [row["state"] for row in payload["components"]] == ["RUNNING"]
    assert {lmtp.name: lmtp.state, queue.name: queue.state} == {
        "lmtp": ComponentState.RUNNING,
        "queue": ComponentState.STOPPED,
    }
    replaced = RecordedComponent("queue", ComponentKind.WORKER, environment.now)
    environment.components.remove(queue)
    environment.components.set_hold_rule_and_begin_changes(
        HoldReason.COMPONENT_STOP, lambda _: False
    )
    await apply_component_holds(environment)  # as a new process does
    environment.components.add(replaced)
    await replaced.start()
    assert replaced.state.name == "STOPPED"
    payload = (await root(START, input={"components": ["queue", "lmtp"]}))["componentStart"]
    assert {row["state"] for row in payload["components"]} == {"RUNNING"}
    assert replaced.state.name == "RUNNING"
    log = "{ auditLog(first: 1) { nodes { mutation after } } }"
    (entry,) = (await root(log))["auditLog"]["nodes"]
    assert entry["mutation"] == "componentStart"
    assert entry["after"] == {"components": ["queue", "lmtp"]}


async def test_simultaneous_stops_and_starts_end_as_stored(
    root: GraphQLClient, environment: Environment, components: list[Component]
) -> None:
    requests = [
        root(document, input={"components": ["tasks"]})
        for document in (STOP, START, STOP, START, STOP)
    ]
    await asyncio.gather(*requests)
    is_stopped = "tasks" in environment.components.stopped_names
    expected = ComponentState.STOPPED if is_stopped else ComponentState.RUNNING
    await components[2].release(HoldReason.NODE_STATE)  # after all changes that have begun
    assert components[2].state is expected


async def test_bad_input_is_refused(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({"components": ["http"]}, ["components", "0"], "VALIDATION"),
        ({"components": ["tasks", "database"]}, ["components", "1"], "VALIDATION"),
        ({"components": ["x" * 100_000]}, ["components", "0"], "VALIDATION"),
        ({"components": []}, ["components"], "VALIDATION"),
        ({"components": ["tasks"] * 101}, ["components"], "VALIDATION"),
        ({"components": ["tasks"], "node": "elsewhere"}, ["node"], "NOT_FOUND"),
        ({"components": ["tasks"], "node": "x" * 5000}, ["node"], "NOT_FOUND"),
    ]
    for case in each_case(cases):
        with case as (components_and_node, path, code):
            (error,) = (await root(STOP, input=components_and_node))["componentStop"]["errors"]
            assert (error["path"], error["code"]) == (path, code)
            if components_and_node["components"] == ["http"]:
                assert error["message"] == "Only serverStop stops HTTP."
                assert error["allowedValues"] == sorted(HOLDABLE_NAMES)
            assert (await root("{ auditLog(first: 1) { nodes { mutation } } }"))["auditLog"][
                "nodes"
            ] == []


async def test_names_of_components_are_known() -> None:
    assert set(WORKER_NAMES) | set(LISTENER_NAMES) == HOLDABLE_NAMES | {"http"}


async def test_only_root_controls_and_only_admins_read(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    domain_admin = await make_domain_admin(environment, http, "rita")
    for client in (ada, domain_admin, admin):
        for name, given in CONTROL_MUTATIONS.items():
            document = f"mutation {{ {name}(input: {given}) {{ errors {{ code }} }} }}"
            response = await client.execute(document)
            codes = [error["code"] for error in response["data"][name]["errors"]]
            assert codes == ["FORBIDDEN"], name
    for client in (ada, domain_admin):
        response = await client.execute(
            "{ health { ok version checks { name } } components { totalCount }"
            " storageStatus { stores { store } } }"
        )
        data = response["data"]
        assert (data["health"]["ok"], data["health"]["checks"]) == (True, None)
        assert (data["components"], data["storageStatus"]) == (None, None)
        assert {error["extensions"]["code"] for error in response["errors"]} == {"FORBIDDEN"}
    assert (await admin("{ health { checks { name } } }"))["health"]["checks"]


async def test_anybody_reads_health(http: httpx.AsyncClient, environment: Environment) -> None:
    response = await http.post("/graphql", json={"query": "{ health { ok version uptime } }"})
    assert response.json()["data"]["health"]["ok"] is True
    assert environment.components.age_seconds > 0


async def test_storage_is_reported_from_counters(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    environment.server_control.folders["spool"] = tmp_path
    document = """{ storageStatus { unresponsiveNodes
        stores { store node device size total used free usedPercent } } }"""
    report = (await root(document))["storageStatus"]
    stores = {row["store"]: row for row in report["stores"]}
    assert report["unresponsiveNodes"] == []
    assert int(stores["database"]["size"]) > 0
    disk = os.statvfs(tmp_path)
    assert int(stores["spool"]["total"]) == disk.f_blocks * disk.f_frsize
    assert stores["spool"]["device"] == str(tmp_path)
    assert 0 < stores["blobs"]["usedPercent"] <= 100
    if environment.database.dialect == "sqlite":
        assert int(stores["database"]["total"]) > int(stores["database"]["size"])
    else:
        assert stores["database"]["total"] is None
    environment.server_control.folders["spool"] = tmp_path / "missing"
    stores = {row["store"]: row for row in (await root(document))["storageStatus"]["stores"]}
    assert stores["spool"]["total"] is None


async def insert_processes(environment: Environment, count: int) -> list[int]:
    ids = [environment.new_id() for _ in range(count)]
    async with environment.write_session() as session:
        await (await session.connection()).execute(
            insert(core_table(ServerProcess)),
            [
                {
                    "id": key,
                    "server": f"server{key}",
                    "name": "alone",
                    "host": f"node{number}.example",
                    "ip_addresses": [],
                    "pid": number,
                    "version": "1",
                    "answers_requests": True,
                    "boot": "boot",
                    "heartbeat_count": 0,
                    "heartbeat_at": 0,
                    "secret_box_keys": [],
                    "started_at": environment.now(),
                    "seen_at": environment.now(),
                }
                for number, key in enumerate(ids)
            ],
        )
    return ids


async def test_unresponsive_nodes_are_named(root: GraphQLClient, environment: Environment) -> None:
    await insert_processes(environment, 2)
    page = await list_components(root, first=1)
    assert page["unresponsiveNodes"] == ["node0.example", "node1.example"]


async def test_dashboard_costs_little_and_a_constant_number_of_statements(
    root: GraphQLClient, environment: Environment, components: list[Component]
) -> None:
    assert components
    document = DASHBOARD
    for _ in range(3):
        await root(document)
    statements = record_sql(environment.database)
    seconds = {}
    for pause in (0.0, RESULT_SECONDS):  # with the last results of the probes, and with new ones
        taken = []
        for _ in range(3):
            await asyncio.sleep(pause)
            statements.clear()
            began_at = time.process_time()
            await root(document)
            taken.append(time.process_time() - began_at)
        seconds[pause] = min(taken)
    count = len(statements)
    milliseconds = [round(taken * 1000, 1) for taken in seconds.values()]
    print(f"dashboard: {milliseconds} ms CPU, {count} statements")  # noqa: T201
    assert count <= 20, statements
    assert max(seconds.values()) < 0.05  # the goal is 0.01 on a machine without other work


async def test_other_nodes_cost_no_more_statements(
    root: GraphQLClient, environment: Environment
) -> None:
    environment.process.name, environment.process.answers_requests = "asking", True
    await leases.ensure_process_registered(environment)
    counts = {}
    async with AsyncExitStack() as stack:
        for node_count in (1, 8):
            for number in range(node_count):
                await start_process(environment, f"{node_count}-{number}", stack)
            statements = record_sql(environment.database)
            deadline = time.monotonic() + BUSY_MACHINE_SECONDS
            while True:  # all processes share the event loop of the test
                statements.clear()
                page = await list_components(root, filter={"names": ["database"]}, first=20)
                if not page["unresponsiveNodes"]:
                    break
                assert time.monotonic() < deadline
            # each process also reads and writes; the polls of the requester depend on the time
            requester = [text for text in statements if text.startswith("INSERT INTO process_r")]
            counts[node_count] = len(requester)
            assert page["totalCount"] >= node_count + 1
    assert counts == {1: 1, 8: 1}


async def start_process(environment: Environment, name: str, stack: AsyncExitStack) -> None:
    """Register another process on the database, which answers requests until the stack closes."""
    other = replace(
        environment,
        process=ProcessRegistration(name=name, answers_requests=True),
        wakeups=Wakeups(),
        components=ComponentRegistry(),
    )
    await leases.ensure_process_registered(other)
    task = asyncio.create_task(
        process_requests.answer_requests_until_cancelled(other, HEALTH_REQUEST_KINDS)
    )
    stack.push_async_callback(asyncio.wait, [task])
    stack.callback(task.cancel)


async def test_requests_about_health_have_different_names() -> None:
    names = [kind.name for kind in HEALTH_REQUEST_KINDS]
    assert len(set(names)) == len(names)
    assert process_requests.ANSWER_TIMEOUT > process_requests.POLL_SECONDS + WAIT_TIMEOUT
