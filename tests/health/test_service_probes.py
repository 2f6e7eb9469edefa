"""Probes of the services that a process depends on: states, their age, and the end of probes."""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.runtime.environment import Environment
from resolvers.auth import authentication
from resolvers.health.dependencies import PROBE_PAUSE
from resolvers.health.prober import (
    FOLLOW_SECONDS,
    STATE_LIFETIME,
    WAIT_TIMEOUT,
    probe_dependencies_and_update_states,
)
from tests.conftest import GraphQLClient
from tests.support.mail_servers.scanner_servers import (
    http_response,
    send_and_hang_up,
    stay_silent,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.platform.component_operations import (
    find_component,
    list_components,
    wait_for_component,
)
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.stores.recorded_statements import record_sql


def set_options(environment: Environment, **options: Any) -> None:
    object.__setattr__(environment, "options", replace(environment.options, **options))


async def test_database_and_object_store_are_probed(
    root: GraphQLClient, environment: Environment
) -> None:
    database, blobs = [
        await wait_for_component(root, name, "RUNNING") for name in ("database", "blobs")
    ]
    is_sqlite = environment.database.dialect == "sqlite"
    assert database["version"].startswith("SQLite 3." if is_sqlite else "PostgreSQL ")
    assert database["latency"].startswith("PT0.")
    assert "password" not in database["address"]
    folder, moved_folder = Path(blobs["address"]), Path(blobs["address"] + "-moved")
    os.rename(folder, moved_folder)  # noqa: PTH104
    blobs = await wait_for_component(root, "blobs", "FAILED")
    assert blobs["detail"] == "The folder does not exist."
    health = (await root("{ health { ok } }"))["health"]
    assert health == {"ok": False}
    os.rename(moved_folder, folder)  # noqa: PTH104
    await wait_for_component(root, "blobs", "RUNNING")
    assert (await root("{ health { ok } }"))["health"] == {"ok": True}


async def test_scanners_and_resolver_are_probed(
    root: GraphQLClient, environment: Environment
) -> None:
    for name in ("rspamd", "clamav", "coldBlobs", "eventBus"):
        component = await find_component(root, name)
        assert (component["state"], component["detail"]) == ("DISABLED", "Not configured.")
    pong = http_response(b"pong\r\n").replace(b"\r\n", b"\r\nServer: rspamd/3.9\r\n", 1)
    async with AsyncExitStack() as stack:
        rspamd = await stack.enter_async_context(run_scripted_server(send_and_hang_up(pong)))
        clamd = await stack.enter_async_context(
            run_scripted_server(send_and_hang_up(b"ClamAV 1.4.1/27500/Mon\0"))
        )
        root_zone = FakeDnsServer({(".", "NS"): ["ns.example."]})
        dns_server = await stack.enter_async_context(run_dns_server(root_zone))
        set_options(
            environment,
            rspamd_url=f"http://127.0.0.1:{rspamd}",
            clamd_address=f"127.0.0.1:{clamd}",
            dns_resolver=f"127.0.0.1:{dns_server.port}",
        )
        for name in ("rspamd", "clamav", "resolver"):
            await wait_for_component(root, name, "RUNNING")
        nodes = {node["name"]: node for node in (await list_components(root, first=100))["nodes"]}
    assert (nodes["rspamd"]["state"], nodes["rspamd"]["version"]) == ("RUNNING", "rspamd/3.9")
    assert nodes["rspamd"]["address"] == f"127.0.0.1:{rspamd}"
    assert nodes["clamav"]["version"] == "ClamAV 1.4.1/27500/Mon"
    assert nodes["resolver"]["state"] == "RUNNING"
    # the servers have ended
    for name in ("rspamd", "clamav", "resolver"):
        component = await wait_for_component(root, name, "FAILED")
        assert component["latency"] is None
        assert component["detail"]


async def test_silent_services_are_named_and_do_not_delay_the_answer(
    root: GraphQLClient, environment: Environment
) -> None:
    async with run_scripted_server(stay_silent) as port:
        set_options(
            environment, rspamd_url=f"http://127.0.0.1:{port}", clamd_address=f"127.0.0.1:{port}"
        )
        nodes = {node["name"]: node for node in (await list_components(root, first=99))["nodes"]}
        for name in ("rspamd", "clamav"):  # after the end of its probe, a state is FAILED
            assert nodes[name]["state"] == "STARTING"
            assert nodes[name]["detail"].startswith("No answer for ")
        await wait_for_component(root, "database", "RUNNING")
        for name in ("rspamd", "clamav"):
            component = await wait_for_component(root, name, "FAILED")
            assert component["detail"].startswith("No answer ")


async def test_state_of_a_service_that_stops_answering_is_at_most_a_second_old(
    root: GraphQLClient, environment: Environment
) -> None:
    answer, is_silent = send_and_hang_up(b"ClamAV 1.4.1\0"), False

    async def answer_unless_silent(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await (stay_silent if is_silent else answer)(reader, writer)

    async with run_scripted_server(answer_unless_silent) as port:
        set_options(environment, clamd_address=f"127.0.0.1:{port}")
        await wait_for_component(root, "clamav", "RUNNING")
        is_silent, silent_since = True, time.monotonic()
        while True:
            age = time.monotonic() - silent_since  # a busy machine may answer much later
            if (component := await find_component(root, "clamav"))["state"] != "RUNNING":
                break
            assert age < STATE_LIFETIME + WAIT_TIMEOUT
            await asyncio.sleep(0.05)
        assert component["state"] in ("FAILED", "STARTING")
        assert component["detail"].startswith("No answer ")
        await wait_for_component(root, "clamav", "FAILED")


async def test_old_state_of_a_slow_service_is_not_shown(
    root: GraphQLClient, environment: Environment
) -> None:
    async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(WAIT_TIMEOUT + 0.1)
        await send_and_hang_up(b"ClamAV 1.4.1\0")(reader, writer)

    async with run_scripted_server(answer_slowly) as port:
        set_options(environment, clamd_address=f"127.0.0.1:{port}")
        component = await wait_for_component(root, "clamav", "RUNNING")
        assert component["latency"] > f"PT{WAIT_TIMEOUT}"
        await asyncio.sleep(FOLLOW_SECONDS + STATE_LIFETIME + 0.5)  # nobody asks
        component = await find_component(root, "clamav")
        assert component["state"] == "STARTING"
        assert component["detail"].startswith("No answer for ")


async def test_probes_end_when_nobody_asks(root: GraphQLClient, environment: Environment) -> None:
    await list_components(root)
    await authentication.wait_for_background_tasks(environment)  # the use of the key is stored
    statements = record_sql(environment.database, with_background=True)
    await asyncio.gather(*(probe_dependencies_and_update_states(environment) for _ in range(20)))
    assert statements == []
    await asyncio.sleep(STATE_LIFETIME)
    assert 1 <= len(statements) <= 1 + STATE_LIFETIME / PROBE_PAUSE
    await asyncio.sleep(FOLLOW_SECONDS)
    statements.clear()
    await asyncio.sleep(STATE_LIFETIME)
    assert statements == []
