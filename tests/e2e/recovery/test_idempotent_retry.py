"""A call that is repeated because its answer was lost: the server was killed before it told it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.servers.merganser_server import Server
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

SEND = """mutation { messageSend(input: {to: [{address: "carol@example.com"}], text: "Once.",
  sendTime: "2036-01-01T00:00:00Z", options: {idempotencyKey: "once"}}) { replayed
  submission { id queueId } message { id } errors { code } } }"""
SENT = """{ viewer { user { messages(first: 9) { totalCount }
  submissions(first: 9) { nodes { id queueId } } } } }"""


@pytest.mark.parametrize("store", store_fixtures.STORES)
async def test_a_call_whose_answer_was_lost_has_it_when_it_is_repeated(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = (
        "" if store == "sqlite" else create_database(request.getfixturevalue("postgres"), "repeats")
    )
    server = Server(tmp_path, url, more={"FAULT": "answer:1"})
    server.make("ada")
    server.start()
    try:
        async with server.client("ada") as ada:
            with pytest.raises(httpx.TransportError):
                await ada(SEND)
        server.kill()  # what is left of it: it ended itself
        server.more.clear()
        server.start()
        async with server.client("ada") as ada:
            there: Any = (await ada(SENT))["viewer"]["user"]
            assert there["messages"]["totalCount"] == 1  # it was done before it was killed
            done = (await ada(SEND))["messageSend"]
            assert (done["errors"], done["replayed"]) == ([], True)
            assert [done["submission"]] == there["submissions"]["nodes"]
            assert (await ada(SENT))["viewer"]["user"] == there
    finally:
        server.stop()
