"""One server for a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import stores
from tests.e2e.server import Server, free_port


def _beside(url: str, name: str) -> str:
    """A new database on the server of this URL."""
    there, _, host = url.partition("?")
    uri = f"{there.rpartition('/')[0]}/postgres?{host}".replace("+asyncpg", "")
    return stores.run(stores.new_database(uri, name))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with STORES of its own is run on these."""
    if "server" in metafunc.fixturenames:
        theirs = getattr(metafunc.module, "STORES", stores.STORES)
        metafunc.parametrize("server", theirs, indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the users ada, bob and eve; a module's SETTINGS are its own."""
    folder, store = tmp_path_factory.mktemp("server"), ""
    if request.param != "sqlite":
        url = request.getfixturevalue("postgres")
        store = _beside(
            url, f"e2e_{request.module.__name__.rpartition('.')[2]}_{Path(folder).name}"
        )
    hop = free_port()
    settings = {"NEXT_HOP": f"smtp://127.0.0.1:{hop}", **getattr(request.module, "SETTINGS", {})}
    server = Server(folder, store, settings, hop=hop)
    server.make("ada", "bob", "eve")
    server.start()
    yield server
    server.stop()
