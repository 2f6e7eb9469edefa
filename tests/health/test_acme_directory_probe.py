"""Probes of ACME directories: by the client for certificates, in one process, once a minute."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import update

from bench.servers.ports import free_port
from models.certificates import Certificate
from models.runtime.components import Component, ComponentKind
from models.runtime.environment import Environment
from resolvers.health.prober import FOLLOW_SECONDS, stop_probing
from tests.conftest import GraphQLClient
from tests.support.operations.platform.certificate_operations import store_certificate
from tests.support.operations.platform.cluster_operations import register_server
from tests.support.servers.acme.acme_platforms import AcmePlatform, run_acme_platform
from tests.support.servers.acme.acme_proxy import AcmeProxy, AcmeReply, run_acme_proxy

BUSY_MACHINE_SECONDS = 60.0
ACME_DIRECTORY = """{ components(filter: { names: ["acmeDirectory"] }) {
  nodes { state detail address latency probedAt } } }"""


@asynccontextmanager
async def run_probed_platform(
    environment: Environment, root: GraphQLClient, folder: Path, *, has_worker: bool = True
) -> AsyncIterator[tuple[AcmePlatform, AcmeProxy, list[str]]]:
    """Run Pebble behind a proxy that records paths, and a process that orders certificates."""
    paths: list[str] = []

    async def record_path(path: str) -> None:
        paths.append(path)

    async with (
        run_acme_platform(environment, root, folder) as platform,
        run_acme_proxy(platform.pebble) as proxy,
    ):
        proxy.before_each_request = record_path
        platform.set_options(acme_directory=proxy.directory_url)
        if has_worker:
            worker = Component("acme", ComponentKind.WORKER, environment.now)
            platform.environment.components.add(worker)
        yield platform, proxy, paths
        await stop_probing(platform.environment)


async def wait_for_result(platform: AcmePlatform) -> Any:
    """Ask until the first probe has ended; the first one loads the library of the client."""
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while True:
            (component,) = (await platform.root(ACME_DIRECTORY))["components"]["nodes"]
            if component["state"] != "STARTING":
                return component
            await asyncio.sleep(0.05)


async def test_directory_is_loaded_once_a_minute_at_most(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_probed_platform(environment, root, tmp_path) as (platform, proxy, paths):
        component = await wait_for_result(platform)
        assert (component["state"], component["detail"]) == ("RUNNING", None)
        assert f"https://{component['address']}" == proxy.directory_url
        assert component["latency"] > "PT0"
        for pause in (0.0, 1.0, FOLLOW_SECONDS + 1.0):
            await asyncio.sleep(pause)
            again = await wait_for_result(platform)
            assert (again["state"], again["probedAt"]) == ("RUNNING", component["probedAt"])
        assert paths == ["/dir"]


async def test_failure_is_that_of_the_client(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_probed_platform(environment, root, tmp_path) as (platform, proxy, paths):
        proxy.replies_by_path["/dir"] = [AcmeReply({"meta": {}})]
        component = await wait_for_result(platform)
        assert (component["state"], component["latency"]) == ("FAILED", None)
        assert component["detail"].endswith("/dir: the response is no ACME directory.")
        await stop_probing(platform.environment)
        platform.set_options(acme_ca=None)  # the CA of Pebble is unknown
        component = await wait_for_result(platform)
        assert component["state"] == "FAILED"
        assert "certificate of the ACME server is not trusted" in component["detail"]
        assert paths == ["/dir"]


async def test_directories_of_issued_certificates_are_probed(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    former_address = f"localhost:{free_port()}/dir"
    async with run_probed_platform(environment, root, tmp_path) as (platform, _, paths):
        await store_certificate(platform.root)
        async with environment.write_session() as session:
            values = {"acme_directory": f"https://{former_address}"}
            await (await session.connection()).execute(update(Certificate).values(**values))
        component = await wait_for_result(platform)
        assert component["state"] == "FAILED"
        assert component["detail"].startswith(f"{former_address}: The ACME server does not respond")
        assert paths == ["/dir"]


async def test_only_the_worker_of_the_first_reachable_server_probes(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    node_id = await register_server(environment, "first.example.org")
    async with run_probed_platform(environment, root, tmp_path, has_worker=False) as (
        platform,
        _,
        paths,
    ):
        expected = ("DISABLED", "Another process probes it.")
        component = await wait_for_result(platform)
        assert (component["state"], component["detail"]) == expected
        await stop_probing(platform.environment)
        worker = Component("acme", ComponentKind.WORKER, environment.now)
        platform.environment.components.add(worker)
        platform.environment.own_node.node_id = node_id + 1
        component = await wait_for_result(platform)
        assert (component["state"], component["detail"]) == expected
        assert paths == []


async def test_directory_without_agreed_terms_is_not_probed(
    environment: Environment, root: GraphQLClient
) -> None:
    environment.components.add(Component("acme", ComponentKind.WORKER, environment.now))
    (component,) = (await root(ACME_DIRECTORY))["components"]["nodes"]
    assert component["state"] == "DISABLED"
    assert (component["address"], component["detail"]) == (None, "Not configured.")
