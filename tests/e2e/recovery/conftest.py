"""Fixtures of the tests of recovery."""

import pytest

from tests.support.servers.merganser_server import MerganserProcess


@pytest.fixture(scope="module")
def prepared_server(tmp_path_factory: pytest.TempPathFactory) -> MerganserProcess:
    """A SQLite server with one user, which is not started. Each test copies its folder."""
    server = MerganserProcess(tmp_path_factory.mktemp("prepared"))
    server.create_users("ada")
    return server
