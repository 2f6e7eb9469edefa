"""Tests of a mutation that is repeated because the server was killed before its response."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.servers.merganser_server import MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

MUTATION = """mutation { messageSend(input: {to: [{address: "carol@example.com"}], text: "Once.",
  sendAt: "2036-01-01T00:00:00Z", options: {idempotencyKey: "once"}}) { replayed
  submissions { id queueId } messages { id } errors { code } } }"""
SENT_QUERY = """{ viewer { user { messages(first: 9) { totalCount }
  submissions(first: 9) { nodes { id queueId } } } } }"""


@pytest.mark.parametrize("store", store_fixtures.STORES)
async def test_repeated_mutation_returns_lost_response(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = (
        ""
        if store == "sqlite"
        else create_migrated_database(request.getfixturevalue("postgres"), "repeats")
    )
    server = MerganserProcess(tmp_path, url, extra_settings={"FAULT": "answer:1"})
    server.create_users("ada")
    server.start()
    try:
        async with server.open_client("ada") as ada:
            with pytest.raises(httpx.TransportError):
                await ada(MUTATION)
        server.kill()  # the process has ended itself
        server.extra_settings.clear()
        server.start()
        async with server.open_client("ada") as ada:
            user: Any = (await ada(SENT_QUERY))["viewer"]["user"]
            assert user["messages"]["totalCount"] == 1  # the mutation ran before the kill
            payload = (await ada(MUTATION))["messageSend"]
            assert (payload["errors"], payload["replayed"]) == ([], True)
            assert payload["submissions"] == user["submissions"]["nodes"]
            assert (await ada(SENT_QUERY))["viewer"]["user"] == user
    finally:
        server.stop()
