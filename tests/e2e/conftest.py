"""The server of the end-to-end tests, once per database kind."""

from collections.abc import Iterator

import pytest

from bench.servers.merganser_process import use_launcher
from bench.servers.ports import free_port
from tests.support.servers.forked_process import fork_subprocess
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module on the stores in its STORES, if it has one."""
    if "server" in metafunc.fixturenames:
        stores = getattr(metafunc.module, "STORES", store_fixtures.STORES)
        metafunc.parametrize("server", stores, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def forked_servers() -> Iterator[None]:
    """Start the servers of `bench` as forks too."""
    with use_launcher(fork_subprocess):
        yield


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MerganserProcess]:
    """A server with users. Each user after bob is for one test that changes many rows."""
    store = ""
    if request.param != "sqlite":
        store = create_migrated_database(request.getfixturevalue("postgres"), "e2e")
    hop = free_port()
    settings = {
        "NEXT_HOP": f"smtp://127.0.0.1:{hop}",
        "MESSAGE_MAX_SIZE": "16 MiB",
        "UPLOAD_MAX_SIZE": "8 MiB",
    }
    server = MerganserProcess(tmp_path_factory.mktemp("server"), store, settings, next_hop_port=hop)
    server.create_users("ada", "bob", "dora", "eve", "fay", "gil", "hal")
    server.start()
    yield server
    server.stop()
